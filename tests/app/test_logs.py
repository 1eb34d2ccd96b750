"""Log lines that cannot be written are lost, without an error or a traceback."""

import os
import subprocess
import sys

import pytest

CODE = """
import logging, sys, structlog
from app.core import logs
logs.configure(open(sys.argv[1], "w", buffering=1))
structlog.get_logger("a").warning("full", job="x")
logging.getLogger("b").warning("full")
print("goes on")
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_stops_no_process_and_prints_no_traceback():
    answer = subprocess.run([sys.executable, "-c", CODE, "/dev/full"], capture_output=True, text=True)
    assert answer.stdout == "goes on\n"
    assert "Logging error" not in answer.stderr and "log.warning" not in answer.stderr


def test_lines_are_written_where_they_can_be(tmp_path):
    subprocess.run([sys.executable, "-c", CODE, str(tmp_path / "log")], check=True)
    assert (tmp_path / "log").read_text().count("full") == 2
