"""The drill's checker: silent about an honest history, and each planted bug is reported as the right kind of fault."""

import contextlib

import pytest
from sqlalchemy import update

from app.core.jobs import state
from app.core.store import blobs
from app.core.store.database import make_engine, transaction
from app.core.store.tables import jobs
from tests.system.drill import history as histories
from tests.system.drill import job as drill_job
from tests.system.drill.checker import KINDS, judge
from tests.system.drill.history import Event, Excuse, History, Job, Note, Order
from tests.system.drill.plants import EXPECTED, PLANTS

# ---- planted bugs, in one process: a zombie tries everything while its successor runs


def play(engine, folder) -> History:
    """Attempt 1 loses its lease and does not notice; attempt 2 ends the job. Everything asked twice under one key."""
    order = Order(0, "training", "k")
    for _ in range(2):
        with transaction(engine) as conn:
            order.ids.add(state.accept(conn, tenant="t", kind="training", spec={}, key="k")[0]["id"])
    first = drill_job.NotedJob(claimed(engine), engine)
    work(first, 8)
    with transaction(engine) as conn:
        conn.execute(update(jobs).values(lease_until=0))
        state.sweep(conn)
    second = drill_job.NotedJob(claimed(engine), engine)
    work(second, 16)
    claimed(engine)  # nothing is due
    work(first, 24)
    work(second, 32)
    with contextlib.suppress(state.LeaseLost), transaction(engine) as conn:
        state.finish(conn, second.id, second.token, {})
    history = histories.read(engine, folder)
    history.orders = [order]
    history.excuses = [Excuse(0, float("inf"))]  # that the zombie computes is no fault here, only what it writes
    history.damaged = histories.Blobs(folder / "blobs").damage
    return history


def claimed(engine):
    with transaction(engine) as conn:
        return state.claim_oldest(conn, "train", "w")


def work(job, images: int) -> None:
    """Whatever an attempt writes, each by itself; what a fence refuses is left."""
    key = job.artifact_key(f"checkpoint-{images}")

    def checkpoint():
        blobs.put(key, b"weights")
        job.checkpoint({"kept": [{"key": key}]})

    def progress():
        job._progress_at = float("-inf")
        job.progress(images, 32)

    writes = (progress, lambda: job.metrics(images, {"loss": 1.0}), checkpoint)
    for write in writes:
        with contextlib.suppress(state.LeaseLost):
            write()


@pytest.fixture
def stage(sqlite_url, tmp_path, configure, monkeypatch):
    """Plays the history with a planted bug, or with none."""
    configure(BLOBS_URL=f"file://{tmp_path}/blobs", DRILL_FOLDER=tmp_path)
    monkeypatch.setattr(drill_job, "PAUSE_SECONDS", 0)
    engine = make_engine(sqlite_url)

    def playing(bug: str | None = None) -> History:
        if bug:
            PLANTS[bug](monkeypatch.setattr)
        monkeypatch.setattr(state, "add_checkpoint", drill_job.noted_checkpoint(state.add_checkpoint))
        return play(engine, tmp_path)

    yield playing
    engine.dispose()


def test_an_honest_history_has_no_fault(stage):
    verdict = judge(stage())
    assert list(verdict.lines()) == [] and verdict.not_ended == []
    assert verdict.counts["attempts"] == 2 and verdict.counts["leases expired"] == 1


@pytest.mark.parametrize("bug", PLANTS)
def test_a_planted_bug_is_reported_as_what_it_is(stage, bug):
    verdict = judge(stage(bug))
    assert verdict.kinds().get(EXPECTED[bug]), "\n".join(verdict.lines())


# ---- histories made by hand, one for each kind of fault

QUEUED = ("queued", None, {})
HONEST = [QUEUED, ("running", "a", {}), ("checkpoint", "a", {"n": 1}), ("queued", None, {"why": "worker-lost"}),
          ("running", "b", {}), ("cancel_requested", None, {}), ("succeeded", "b", {})]  # fmt: skip


def history_of(told: list[tuple], **job) -> History:
    made, attempts = [], {None: 0}
    for number, (kind, writer, data, *at) in enumerate(told, 1):
        attempts.setdefault(writer, len(attempts))
        made.append(Event("j", number, kind, attempts[writer], writer, data, *at))
    claims = sum(kind == "running" for kind, *_ in told)
    job = {"checkpoint": {"n": 1}, "attempt": claims} | job
    return History({"j": Job("j", **job)}, {"j": made}, orders=[Order(0, "training", "k", ids={"j"})])


def kinds(history: History) -> set[str]:
    return set(judge(history).kinds())


def test_the_honest_history_by_hand_has_no_fault():
    assert kinds(history_of(HONEST)) == set()


@pytest.mark.parametrize(
    "told, job, kind",
    [
        ([*HONEST[:5], ("metrics", "a", {}), *HONEST[5:]], {}, "zombie write"),
        ([*HONEST[:5], ("checkpoint", "a", {"n": 1}), *HONEST[5:]], {}, "zombie checkpoint"),
        ([*HONEST[:5], ("succeeded", "a", {}), ("succeeded", "b", {})], {}, "double"),
        ([*HONEST, ("metrics", "b", {})], {}, "zombie write"),
        ([*HONEST[:3], *HONEST[4:]], {}, "illegal claim"),
        ([*HONEST, ("running", "c", {})], {"state": "running"}, "illegal claim"),
        ([QUEUED, ("running", "a", {}), ("queued", "a", {"why": "unavailable"}, 5.0), ("running", "b", {}, 5.2),
          ("succeeded", "b", {})], {}, "illegal claim"),
        ([*HONEST, ("queued", None, {"why": "worker-lost"})], {"state": "queued"}, "history"),
        ([QUEUED, ("succeeded", "a", {})], {}, "history"),
        (HONEST, {"state": "queued"}, "history"),
        (HONEST, {"attempt": 3}, "history"),
        (HONEST, {"checkpoint": {"n": 2}}, "zombie checkpoint"),
        ([*HONEST[:-1], ("failed", "b", {})], {"state": "failed"}, "failed"),
        ([*HONEST[:-1], ("canceled", "b", {})], {"state": "canceled"}, "failed"),
    ],
)  # fmt: skip
def test_faults_in_events(told, job, kind):
    assert kind in kinds(history_of(told, **job))


def test_a_gap_in_the_numbers():
    history = history_of(HONEST)
    del history.events["j"][2]
    assert kinds(history) >= {"history"}


def test_a_job_that_has_not_ended_is_no_fault():
    verdict = judge(history_of(HONEST[:-1], state="running"))
    assert verdict.not_ended == ["j"] and verdict.faults == []


def test_what_clients_were_told():
    history = history_of(HONEST)
    history.orders[0].ids = {"j", "gone"}
    assert kinds(history) == {"double", "lost"}
    history.orders[0].ids = {"j"}
    history.orders[0].states = ["running", "succeeded", "running"]
    assert kinds(history) == {"history"}
    history = history_of(HONEST)
    history.jobs["x"] = Job("x", state="queued", attempt=0)
    history.events["x"] = [Event("x", 1, "queued")]
    assert kinds(history) == {"double"}
    history = history_of([*HONEST[:-1], ("canceled", "b", {})], state="canceled")
    history.orders[0].canceled = True
    assert kinds(history) == set()
    history.unexpected = ["call: 500"]
    assert kinds(history) == {"answer"}


def test_what_processes_note():
    began = [Note(1.0, "began", "j", 1), Note(5.0, "began", "j", 2)]

    def of(*notes, **more):
        history = history_of(HONEST)
        history.notes = [*began, *notes]
        history.excuses = more.get("excuses", [])
        return kinds(history)

    assert of(Note(4.9, "computing", "j", 1), Note(9.0, "computing", "j", 2)) == set()
    assert of(Note(9.0, "computing", "j", 1)) == {"concurrent"}
    assert of(Note(9.0, "computing", "j", 1), excuses=[Excuse(3.0, 12.0)]) == set()
    assert of(Note(9.0, "accepted", "j", 1, data={"name": "progress", "began": 4.0})) == set()
    assert of(Note(9.0, "accepted", "j", 1, data={"name": "progress", "began": 6.0})) == {"zombie write"}
    assert of(Note(9.0, "pointer", "j", 2, data=[])) == set()
    assert of(Note(9.0, "pointer", "j", 2, data=["k"])) == {"pointer before blob"}


def test_blobs_that_rows_name(tmp_path):
    history = history_of(
        [*HONEST[:2], ("checkpoint", "a", ref := {"kept": [{"key": "a/b", "sha256": "0"}]}), *HONEST[3:]],
        checkpoint=ref,
    )
    assert kinds(history) == set()
    history.damaged = histories.Blobs(tmp_path).damage
    assert kinds(history) == {"pointer before blob"}


def test_weights_and_curves_that_differ():
    history = history_of(HONEST, result={"version": "v"})
    history.orders[0].recipe, history.curves = "r", {"j": {8: {"loss": 1.0}}}
    history.reference = {"r": ("v", {8: {"loss": 1.0}})}
    assert kinds(history) == set()
    history.reference = {"r": ("w", {8: {"loss": 1.0}})}
    assert kinds(history) == {"weights"}
    history.reference = {"r": ("v", {8: {"loss": 1.0}, 16: {"loss": 0.5}})}
    assert kinds(history) == {"weights"}


def test_faults_are_grouped_with_a_few_examples():
    history = history_of(HONEST)
    history.unexpected = [f"call: 500 {number}" for number in range(9)]
    lines = list(judge(history).lines())
    assert lines[0].startswith("answer") and lines[0].endswith("9") and len(lines) == 4
    assert set(EXPECTED.values()) <= set(KINDS)
