"""Durable jobs survive kill -9 of workers, broker and front end: none lost, none run twice at once, results right."""

import tempfile
from pathlib import Path

from tests.system.drill import Drill, Plan


def test_jobs_survive_kills_of_everything_else(sqlite_url):
    with tempfile.TemporaryDirectory(prefix="drill") as folder:
        report = Drill(Plan(), Path(folder), sqlite_url).run()
    assert report.faults == []
    assert report.counts["jobs"] == 40
    assert report.counts["attempts"] >= 45, "the kills interrupted too little to show anything"
    assert report.counts["steps of zombies"] == 0
    assert report.counts["processes that did not stop"] == 0
