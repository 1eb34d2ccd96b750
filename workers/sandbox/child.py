"""The child process of a room: `python -P -m workers.sandbox.child MODULE` with what it may use in its arguments.

Imports the module, gives up all rights, then answers calls of the module's functions. Frames come on descriptor `calls`
and go out on `answers`. Imports nothing of the service but this package and the module.
"""

import argparse
import importlib
import os
import sys
import threading
import time
from typing import Any

from workers.sandbox import limits, pipe

OUT_OF_MEMORY = 71
"""Exit status after a MemoryError that could not be answered."""
MESSAGE = 1000
"""Characters of an error's text that are sent back."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    for name in ("parent", "memory", "calls", "answers"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    limits.first_limits(options.memory)
    limits.die_with(options.parent)
    module = importlib.import_module(options.module)
    if prepare := getattr(module, "prepare", None):
        prepare()
    folder = os.getcwd()
    os.rmdir(folder)  # a folder without a name: nothing can be made in it
    if sys.platform != "linux":
        threading.Thread(target=follow, args=(options.parent,), daemon=True).start()
    sealed = limits.seal()
    write(options.answers, pipe.pack({"sealed": sealed}))
    try:
        while True:
            function, arguments, seconds = pipe.read(lambda buffer: fill(options.calls, buffer), sys.maxsize)
            limits.limit_cpu(seconds)
            write(options.answers, answer(module, function, arguments))
    except MemoryError:  # too little is left even to say so
        os._exit(OUT_OF_MEMORY)


def answer(module: Any, function: str, arguments: list[Any]) -> list[memoryview]:
    """The frame of {"value": ...}, {"memory": text}, or {"error": name of the exception, "text": its text}."""
    try:
        return pipe.pack({"value": getattr(module, function)(*arguments)})
    except Exception as error:
        error.__traceback__ = None  # frees what the frames of the function hold, so that the answer can be made
        text = str(error)[:MESSAGE]
        return pipe.pack({"memory": text} if out_of_memory(error) else {"error": type(error).__name__, "text": text})


def out_of_memory(error: Exception) -> bool:
    """Python's own error, or the texts of C++ libraries."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in text for words in ("bad_alloc", "bad allocation", "failed to allocate", "out of memory")
    )


def follow(parent: int) -> None:
    """Ends with the parent, on systems where the kernel does not see to it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def fill(descriptor: int, buffer: memoryview) -> None:
    while buffer:
        count = os.readv(descriptor, [buffer])
        if count == 0:
            os._exit(0)  # the parent closed the room
        buffer = buffer[count:]


def write(descriptor: int, frame: list[memoryview]) -> None:
    for buffer in frame:
        while buffer:
            buffer = buffer[os.write(descriptor, buffer) :]


if __name__ == "__main__":
    main()
