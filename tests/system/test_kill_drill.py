"""A service under kill -9 of everything: no job lost, none run twice at once, the same weights; planted bugs show."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.system.drill.plants import EXPECTED
from tests.system.drill.run import Drill, Plan, Report


def drill(plan: Plan, url: str) -> Report:
    with tempfile.TemporaryDirectory(prefix="drill", ignore_cleanup_errors=True) as folder:
        return Drill(plan, Path(folder), url).run()


@pytest.mark.timeout(900)
def test_jobs_survive_kills_of_everything():
    for seed in range(1, 10):  # kills that meet no job at work show nothing: then others
        with tempfile.TemporaryDirectory() as folder:
            report = drill(Plan(recipes=1, seed=seed, job_kills=4), f"sqlite:///{folder}/drill.db")
        assert not list(report.verdict.lines()) and not report.verdict.not_ended
        assert report.verdict.counts["jobs"] == Plan.jobs
        assert report.blows["processes that did not stop"] == 0
        if report.verdict.counts["attempts"] > Plan.jobs:
            break
    assert report.verdict.counts["attempts"] > Plan.jobs, "the kills interrupted too little to show anything"


ZOMBIES = Plan(
    jobs=4, job_kills=0, worker_kills=0, broker_kills=0, front_kills=0, freezes=2, kinds=("dataset",), recipes=0,
    step_seconds=0.6, lease_seconds=12, clients=4, deaf=True, seconds=300, stall_seconds=120,
)  # fmt: skip
"""Attempts that wake up after others took their job over, and do not notice."""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_zombies_that_do_not_notice_change_nothing(sqlite_url):
    report = drill(ZOMBIES, sqlite_url)
    assert not list(report.verdict.lines())
    assert report.verdict.counts["zombie writes refused"] > 0


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", EXPECTED)
def test_a_drill_sees_a_planted_bug(sqlite_url, bug):
    plan = replace(ZOMBIES, bug=bug, seconds=200)
    if bug == "blob-after-pointer":  # of the checkpoints of a training
        plan = replace(plan, freezes=0, jobs=2, kinds=("training",), recipes=1)
    report = drill(plan, sqlite_url)
    assert report.verdict.kinds().get(EXPECTED[bug]), "\n".join(report.verdict.lines())
