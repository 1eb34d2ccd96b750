"""The judgement on a drill: faults by kind. A job that has not ended is none; it is counted apart.

Rules read the history from three sides: events, stamped with their writers' own tokens; notes of the processes; and
what clients were told.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.system.drill.history import Event, History, Job, entries

ENDS = ("succeeded", "failed", "canceled")
KINDS = {
    "lost": "a promised job is not there",
    "double": "a key led to two jobs, or a job ended twice",
    "illegal claim": "claimed while running, after its end, or too early",
    "concurrent": "two processes computed one job at once",
    "zombie write": "a write of an attempt was accepted after the next one had begun",
    "zombie checkpoint": "the pointer to resume from was moved by such an attempt",
    "pointer before blob": "a row named a blob that was not there, or is damaged",
    "history": "events with gaps, in an impossible order, or against the row",
    "failed": "a job failed, or was canceled unasked",
    "weights": "a model or its curve differs from the undisturbed one",
    "answer": "a status or an answer that no client should get",
}


@dataclass(frozen=True)
class Fault:
    kind: str
    job: str
    text: str

    def __post_init__(self):
        assert self.kind in KINDS


@dataclass
class Verdict:
    faults: list[Fault] = field(default_factory=list)
    not_ended: list[str] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)

    def kinds(self) -> dict[str, int]:
        return dict(Counter(fault.kind for fault in self.faults))

    def lines(self, examples: int = 3) -> Iterator[str]:
        """The faults by kind, with a few examples each."""
        for kind, count in sorted(self.kinds().items()):
            yield f"{kind} ({KINDS[kind]}): {count}"
            these = [fault for fault in self.faults if fault.kind == kind]
            yield from (f"    {fault.job} {fault.text}" for fault in these[:examples])


def judge(history: History) -> Verdict:
    verdict = Verdict()
    asked = [job for job in history.jobs.values() if job.kind != "measurement"]  # others are asked for by trainings
    verdict.not_ended = sorted(job.id for job in asked if job.state not in ENDS)
    verdict.faults += check_orders(history)
    for job in history.jobs.values():
        verdict.faults += check_events(job, history.events.get(job.id, []), history.steady_clock)
        verdict.faults += check_blobs(history, job)
    verdict.faults += check_ends(history)
    verdict.faults += check_notes(history, verdict.counts)
    verdict.faults += check_models(history, verdict.counts)
    verdict.faults += (Fault("answer", "", text) for text in history.unexpected)
    verdict.counts["jobs"] = len(asked)
    verdict.counts["ended"] = len(asked) - len(verdict.not_ended)
    verdict.counts["attempts"] = sum(job.attempt for job in asked)
    every = [event for events in history.events.values() for event in events]
    verdict.counts["leases expired"] = sum(event.data.get("why") == "worker-lost" for event in every)
    verdict.counts["resumed"] = sum(event.data.get("why") == "resumed" for event in every)
    verdict.counts["canceled"] = sum(job.state == "canceled" for job in history.jobs.values())
    return verdict


# ---- what clients were told


def check_orders(history: History) -> Iterator[Fault]:
    """Every promise is a job, every key one job, every job promised."""
    told = {((job.result or {}).get("measurement") or {}).get("job") for job in history.jobs.values()}
    for order in history.orders:
        told |= order.ids
        if len(order.ids) > 1:
            yield Fault("double", min(order.ids), f"the key {order.key} led to {len(order.ids)} jobs")
        for job_id in order.ids - history.jobs.keys():
            yield Fault("lost", job_id, f"promised under the key {order.key}")
        for before, after in zip(order.states, order.states[1:], strict=False):
            if before == "succeeded" or (before in ENDS and after == "running" and not order.canceled):
                yield Fault("history", min(order.ids), f"a client saw it {before}, then {after}")
    for job_id in history.jobs.keys() - told if history.orders else ():
        yield Fault("double", job_id, "no answer ever named it, though every request was answered in the end")


# ---- events and rows


def check_events(job: Job, events: list[Event], steady_clock: bool = True) -> Iterator[Fault]:
    """Replays the events: who may write what depends on who holds the job at that point."""
    state, holder, attempts, pointer, due = None, None, 0, None, float("-inf")
    ends: Counter = Counter()
    if [event.seq for event in events] != list(range(1, len(events) + 1)):
        yield Fault("history", job.id, "has a gap in the numbers of its events")
    for event in events:
        where = f"{event.kind} (event {event.seq}, by attempt {event.attempt})"
        if event.kind == "running":
            attempts += 1
            if state != "queued":
                yield Fault("illegal claim", job.id, f"{where} while it was {state}")
            elif event.at < due and steady_clock:
                yield Fault("illegal claim", job.id, f"{where} {due - event.at:.2f} s before it was due")
            if event.attempt != attempts:
                yield Fault("history", job.id, f"{where} is claim number {attempts}")
            state, holder = "running", event.writer
            continue
        if event.kind == "checkpoint":
            pointer = event.data
        if event.writer is not None and event.writer != holder:
            kind = "zombie checkpoint" if event.kind == "checkpoint" else "zombie write"
            yield Fault(kind, job.id, f"{where} while attempt {attempts} was {state}")
        if event.kind == "queued":
            again = state in ("failed", "canceled") and event.data.get("why") == "resumed"
            if state not in (None, "running") and not again:
                yield Fault("history", job.id, f"{where} while it was {state}")
            state, holder, due = "queued", None, due_after(event)
        elif event.kind in ENDS:
            if state in ENDS:
                yield Fault("double", job.id, f"{where} though it had {state} already")
            elif event.kind == "succeeded" and state != "running":
                yield Fault("history", job.id, f"{where} while it was {state}")
            ends[event.kind] += 1
            state, holder = event.kind, None
    if ends["succeeded"] > 1:
        yield Fault("double", job.id, f"succeeded {ends['succeeded']} times")
    if (state, attempts) != (job.state, job.attempt):
        yield Fault("history", job.id, f"is {job.state} in attempt {job.attempt}; by its events {state} in {attempts}")
    if job.checkpoint and pointer and job.checkpoint != pointer:
        yield Fault("zombie checkpoint", job.id, "its pointer is not that of its last checkpoint event")


def due_after(queued: Event) -> float:
    """When a job may be claimed again: an attempt that failed because of the infrastructure makes it wait a second."""
    held_back = queued.writer is not None and queued.data.get("why") != "released"
    return queued.at + 0.7 if held_back else float("-inf")


def check_blobs(history: History, job: Job) -> Iterator[Fault]:
    """Whatever a row names is there, with the bytes it had."""
    for key, sha256 in entries(job.checkpoint):
        if damage := history.damaged(key, sha256):
            yield Fault("pointer before blob", job.id, f"its checkpoint names {key}, which {damage}")
    if job.state == "succeeded" and job.kind == "training" and job.result:
        key = f"models/{job.result['version']}/weights.safetensors"
        if damage := history.damaged(key, None):
            yield Fault("pointer before blob", job.id, f"its model names {key}, which {damage}")


def check_ends(history: History) -> Iterator[Fault]:
    """Only what a client canceled is canceled, and nothing fails."""
    canceled = {job_id for order in history.orders if order.canceled for job_id in order.ids}
    for job in history.jobs.values():
        if job.state == "failed":
            yield Fault(
                "failed", job.id, f"{job.kind}: {(job.error or {}).get('code')} {(job.error or {}).get('detail')}"
            )
        elif job.state == "canceled" and job.id not in canceled:
            yield Fault("failed", job.id, "was canceled, and no client had asked for it")


# ---- notes of processes


def check_notes(history: History, counts: Counter) -> Iterator[Fault]:
    """Who computed and who was allowed to write, by what the processes say themselves."""
    began: dict[tuple[str, int], float] = {}
    for note in history.notes:
        if note.what == "began":
            began.setdefault((note.job, note.attempt), note.at)
    told = set()
    for note in history.notes:
        counts["steps noted"] += note.what == "computing"
        counts["zombie writes refused"] += note.what == "fenced"
        if note.what == "pointer" and note.data:
            yield Fault(
                "pointer before blob", note.job, f"attempt {note.attempt} wrote a row that names {note.data[0]}"
            )
        following = began.get((note.job, note.attempt + 1), float("inf"))
        if note.what == "accepted" and note.data["began"] > following:
            yield Fault("zombie write", note.job, f"{note.data['name']} of attempt {note.attempt} was accepted late")
        if note.what == "computing" and note.at > following:
            excused = any(excuse.start <= note.at <= excuse.end for excuse in history.excuses)
            counts["steps of zombies, excused"] += excused
            if not excused and (note.job, note.attempt) not in told:
                told.add((note.job, note.attempt))
                text = f"attempt {note.attempt} computed {note.at - following:.2f} s after the next one began"
                yield Fault("concurrent", note.job, text)


# ---- models


def check_models(history: History, counts: Counter) -> Iterator[Fault]:
    """Trainings of the same recipe give the same bits and the same curves as the undisturbed one."""
    for order in history.orders:
        for job in (history.jobs[job_id] for job_id in order.ids & history.jobs.keys()):
            if order.recipe not in history.reference or job.state != "succeeded":
                continue
            version, curve = history.reference[order.recipe]
            same = (job.result or {}).get("version") == version
            counts["weights equal" if same else "weights that differ"] += 1
            counts["of them interrupted"] += same and job.attempt > 1
            if not same:
                yield Fault("weights", job.id, f"has not the weights of an undisturbed run of {order.recipe}")
            if history.curves.get(job.id, {}) != curve:
                yield Fault("weights", job.id, f"has not the curve of an undisturbed run of {order.recipe}")
