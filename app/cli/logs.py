"""The output of the processes: one stream with prefixes on the terminal, one file each in the data folder."""

import contextlib
import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from threading import Lock
from typing import IO

FILE_BYTES, OLD_FILES = 10 << 20, 2
SILENT = {"broker"}  # nothing for users, and warnings about kernel settings that do not matter here
COLOURS = ("36", "33", "35", "32", "34")


class LogFile(RotatingFileHandler):
    """Drops lines that cannot be written, as on a full disk."""

    def handleError(self, record: logging.LogRecord) -> None: ...


class Logs:
    """With `quiet` the lines of the processes go only to the files."""

    def __init__(self, folder: Path, quiet: bool = False):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.quiet = folder, quiet
        self.names: list[str] = []
        self.lock = Lock()

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def say(self, sentence: str) -> None:
        """Prints a line of the supervisor."""
        self._print("anamorph", sentence)

    def follow(self, name: str, stream: IO[bytes]) -> None:
        """Copies `stream` line by line until it ends; a closed terminal does not stop the file."""
        handler = LogFile(self.path(name), maxBytes=FILE_BYTES, backupCount=OLD_FILES, encoding="utf-8", delay=True)
        with stream, contextlib.suppress(OSError), contextlib.closing(handler):
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip()
                handler.emit(logging.makeLogRecord({"msg": line}))
                if not self.quiet and name not in SILENT:
                    self._print(name, line)

    def _print(self, name: str, line: str) -> None:
        with self.lock, contextlib.suppress(OSError, ValueError):
            if name not in self.names:
                self.names.append(name)
            prefix = f"{name:<8} |"
            if sys.stderr.isatty():
                prefix = f"\033[{COLOURS[self.names.index(name) % len(COLOURS)]}m{prefix}\033[0m"
            print(prefix, line, file=sys.stderr, flush=True)
