"""A service under kill -9 of everything: no job lost, none run twice at once, the same weights; planted bugs show."""

import tempfile
from pathlib import Path

import pytest

from tests.system.drill.run import Drill, Plan, Report


def drill(plan: Plan, url: str) -> Report:
    with tempfile.TemporaryDirectory(prefix="drill", ignore_cleanup_errors=True) as folder:
        return Drill(plan, Path(folder), url).run()


@pytest.mark.timeout(900)
def test_jobs_survive_kills_of_everything(sqlite_url):
    report = drill(Plan(), sqlite_url)
    assert not list(report.verdict.lines()) and not report.verdict.not_ended
    assert report.verdict.counts["jobs"] == Plan.jobs
    assert report.verdict.counts["attempts"] > Plan.jobs, "the kills interrupted too little to show anything"
    assert report.blows["processes that did not stop"] == 0
