"""Who computes when: cheap calls between the steps of long ones, tenants in turn, nothing for clients that left."""

import itertools
import threading
import time

import msgpack
import pytest

from models import deadline
from models.deadline import Abandoned
from workers.inference import lane as lanes
from workers.inference.lane import Lane, Turn, Turns

PATIENCE = 60.0


def eventually(condition, seconds: float = PATIENCE):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.002)
    return found


class Host:
    """Scripted computations: `steps` checks of a call, `params` says which events to set or to wait for."""

    def __init__(self):
        self.trace: list[tuple] = []
        self.begun: dict[int, threading.Event] = {}
        self.gates: dict[int, threading.Event] = {}
        self.in_memory, self.loads = {"m"}, {}

    def execute(self, calls, turn: Turn):
        if not turn.long:
            turn.take()
        outcomes = turn.outcomes = [{}] * len(calls)
        try:
            with deadline.checking(turn):
                for index, call in enumerate(calls):
                    if index in turn.answered:
                        continue
                    turn.members = [call]
                    try:
                        outcomes[index] = {"answer": self.compute(call, turn)}
                    except Abandoned:
                        self.trace.append(("abandoned", call["id"]))
                        outcomes[index] = {"problem": {"code": "deadline-exceeded"}}
        finally:
            turn.leave()
        return outcomes

    def compute(self, call, turn: Turn):
        turn.take()
        number = call["id"]
        self.trace.append(("begin", number))
        self.begun.setdefault(number, threading.Event()).set()
        for step in itertools.count() if call["params"].get("forever") else range(call["params"].get("steps", 0)):
            time.sleep(call["params"].get("seconds", 0.001))
            self.trace.append(("step", number, step))
            deadline.check()
            assert turn.held and turn.turns.holder is turn
        self.trace.append(("end", number))
        return number

    def missing(self, call):
        return None if call["model"] in self.in_memory else call["model"]

    def load(self, digest, turn):
        with turn.paused():
            self.loads.setdefault(digest, threading.Event()).wait(PATIENCE)
        if digest == "broken":
            raise ValueError("damaged")
        self.in_memory.add(digest)

    @staticmethod
    def problem(error):
        return {"problem": {"code": str(error)}}


class Replies(dict):
    """What was pushed, by the id of the call; `later` has the notices."""

    def __init__(self):
        self.later, self.order = [], []

    def __call__(self, key, entries):
        for entry in entries:
            if entry.get("later"):
                self.later.append(entry["id"])
            else:
                assert (key, entry["id"]) not in self
                self[key, entry["id"]] = entry
                self.order.append(entry["id"])


@pytest.fixture
def host():
    return Host()


@pytest.fixture
def replies():
    return Replies()


@pytest.fixture
def lane(host, replies):
    lane = Lane(host, replies, threads=4)
    yield lane
    lane.stop()
    for gate in host.loads.values():
        gate.set()


def call(number: int, *, slow: bool = False, tenant: str = "a", model: str = "m", left: float = 60, **params) -> dict:
    return {
        "id": number, "model": model, "operation": "x", "price": params.pop("price", 0), "params": params,
        "tenant": tenant, "slow": slow, "seconds_left": left,
    }  # fmt: skip


def message(*calls: dict, reply_to: str = "r") -> bytes:
    return msgpack.packb({"reply_to": reply_to, "calls": list(calls)})


def in_thread(lane: Lane, *calls: dict) -> threading.Thread:
    thread = threading.Thread(target=lane.receive, args=(message(*calls),), daemon=True)
    thread.start()
    return thread


def steps_between(trace, number: int, start: tuple, end: tuple) -> int:
    part = trace[trace.index(start) : trace.index(end)]
    return len([event for event in part if event[:2] == ("step", number)])


def test_a_cheap_call_waits_for_one_step_of_a_slow_one(lane, host, replies):
    lane.receive(message(call(1, slow=True, steps=3000)))
    eventually(lambda: len(host.trace) > 5)
    host.trace.append("sent")
    lane.receive(message(call(2, steps=3)))
    assert replies.order == [2], "the cheap call is answered by the thread that received it, before the slow one"
    assert steps_between(host.trace, 1, "sent", ("begin", 2)) <= 2  # the step under way, and the one it ended with
    assert steps_between(host.trace, 1, ("begin", 2), ("end", 2)) == 0
    lane.forget("r", [1])
    eventually(lambda: ("abandoned", 1) in host.trace)


def test_a_call_that_was_taken_for_cheap_lets_others_pass_and_says_so(lane, host, replies):
    thread = in_thread(lane, call(1, forever=True, seconds=0.01))
    eventually(lambda: replies.later == [1])
    lane.receive(message(call(2)))
    assert replies.order == [2]
    lane.forget("r", [1])
    thread.join(PATIENCE)
    assert ("r", 1) not in replies


def test_companions_of_a_call_that_turns_out_long_are_answered_meanwhile(lane, host, replies):
    thread = in_thread(lane, call(1), call(2, forever=True), call(3, steps=2), call(4))
    eventually(lambda: len(replies) == 3)
    assert sorted(replies.order) == [1, 3, 4]
    lane.forget("r", [2])
    thread.join(PATIENCE)
    assert len(replies) == 3 and not lane._known


def test_a_cheap_batch_is_not_interrupted(lane, host, replies):
    threads = [in_thread(lane, call(1, steps=30)), in_thread(lane, call(2, steps=30))]
    for thread in threads:
        thread.join(PATIENCE)
    steps = [event[1] for event in host.trace if event[0] == "step"]
    assert len(list(itertools.groupby(steps))) == 2


def test_slow_calls_of_tenants_take_turns(lane, host, replies, monkeypatch):
    monkeypatch.setattr(lanes, "SLICE_SECONDS", 0.01)
    for number, tenant in enumerate("aab"):
        lane.receive(message(call(number, slow=True, tenant=tenant, steps=100)))
    eventually(lambda: len(replies) == 3)
    of_b = [place for place, event in enumerate(host.trace) if event[:2] == ("step", 2)]
    of_a = [place for place, event in enumerate(host.trace) if event[0] == "step" and event[1] in (0, 1)]
    assert of_b[-1] < of_a[-1], "b has half of the time, so its one call ends before the two of a"
    assert of_a[0] < of_b[0]


def test_the_cheaper_of_a_tenants_calls_comes_first(lane, host, replies, monkeypatch):
    lane.receive(message(call(1, slow=True, steps=200, price=9)))
    eventually(lambda: len(host.trace) > 5)
    monkeypatch.setattr(lanes, "SLICE_SECONDS", 0.01)
    lane.receive(message(call(2, slow=True, steps=20, price=1)))
    eventually(lambda: len(replies) == 2)
    assert replies.order == [2, 1]


def test_one_tenant_leaves_threads_to_others(lane, host, replies):
    for number in range(6):
        lane.receive(message(call(number, slow=True, forever=True)))
    lane.receive(message(call(9, slow=True, tenant="b", steps=3)))
    eventually(lambda: ("r", 9) in replies)
    begun = {event[1] for event in host.trace if event[0] == "begin"}
    assert len(begun - {9}) <= 2
    lane.forget("r", list(range(6)))
    eventually(lambda: not lane._known)
    assert list(replies) == [("r", 9)]


def test_long_calls_go_on_while_cheap_ones_never_end(lane, host, replies, monkeypatch):
    monkeypatch.setattr(lanes, "PATIENCE_SECONDS", 0.02)
    over, numbers = threading.Event(), itertools.count(100)

    def busy():
        while not over.is_set():
            lane.receive(message(call(next(numbers), steps=3)))

    threads = [threading.Thread(target=busy, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    lane.receive(message(call(1, slow=True, steps=50)))
    eventually(lambda: ("r", 1) in replies)
    over.set()
    for thread in threads:
        thread.join(PATIENCE)


def test_calls_of_clients_that_left_are_dropped_wherever_they_are(lane, host, replies):
    lane.forget("r", [5])  # the news was faster than the call
    for number in range(1, 8):
        lane.receive(message(call(number, slow=True, forever=True)))
    eventually(lambda: len(host.begun) == 2)
    lane.forget("r", [1, 2, 3, 4])
    eventually(lambda: len(host.begun) == 4)
    assert set(host.begun) == {1, 2, 6, 7}
    lane.forget("r", [6, 7])
    eventually(lambda: not lane._known)
    assert not replies
    lane.receive(message(call(1), reply_to="other"))
    assert list(replies) == [("other", 1)]


def test_a_group_goes_on_while_one_client_waits():
    calls = [{"deadline": time.monotonic() + 60}, {"deadline": time.monotonic() + 60, "gone": True}]
    turn = Turn(calls)
    turn()
    calls[0]["gone"] = True
    with pytest.raises(Abandoned):
        turn()


def test_a_call_sent_twice_is_computed_once(lane, host, replies):
    lane.receive(message(call(1, slow=True, steps=300)))
    lane.receive(message(call(1, slow=True, steps=300)))
    eventually(lambda: host.begun)
    lane.receive(message(call(1, slow=True, steps=300), call(2)))
    eventually(lambda: len(replies) == 2)
    assert host.trace.count(("begin", 1)) == 1
    lane.receive(message(call(1, steps=1), reply_to="again"))
    assert ("again", 1) in replies


def test_a_model_that_is_loading_holds_up_nobody(lane, host, replies):
    lane.receive(message(call(1, model="n"), call(2), call(3, model="n", slow=True, steps=2)))
    assert replies.order == [2] and 1 in replies.later
    lane.receive(message(call(4, model="n"), call(5, slow=True, steps=3)))
    eventually(lambda: ("r", 5) in replies)
    lane.forget("r", [4])
    host.loads["n"].set()
    eventually(lambda: len(replies) == 4)
    assert ("r", 4) not in replies and not lane._known
    lane.receive(message(call(6, model="n")))
    assert ("r", 6) in replies


def test_a_model_that_cannot_be_loaded_is_a_problem_of_its_calls(lane, host, replies):
    host.loads["broken"] = threading.Event()
    host.loads["broken"].set()
    lane.receive(message(call(1, model="broken"), call(2, model="broken")))
    eventually(lambda: len(replies) == 2)
    assert replies["r", 2]["problem"]["code"] == "damaged"


@pytest.mark.parametrize("shift", [31, -31])
def test_the_date_does_not_matter(lane, host, replies, monkeypatch, shift):
    now = time.time
    monkeypatch.setattr(lanes.time, "time", lambda: now() + shift)
    lane.receive(message(call(1, left=20), call(2, left=-1)))
    assert list(replies) == [("r", 1)]


def test_older_fronts_send_a_date(lane, host, replies):
    dated = [
        call(1) | {"deadline": time.time() + 60},
        call(2) | {"deadline": time.time() - 1},
        call(3) | {"deadline": 0},
    ]
    lane.receive(message(*[{k: v for k, v in each.items() if k not in ("seconds_left", "slow")} for each in dated]))
    assert list(replies) == [("r", 1), ("r", 3)]


def test_a_call_past_its_deadline_ends_at_its_next_check(lane, host, replies):
    lane.receive(message(call(1, slow=True, forever=True, left=0.2)))
    eventually(lambda: ("r", 1) in replies)
    assert replies["r", 1]["problem"]["code"] == "deadline-exceeded"


def test_what_hangs_is_overdue_and_what_checks_is_not(lane, host, monkeypatch):
    started = threading.Event()

    def hang(calls, turn):
        turn.take()
        started.set()
        eventually(lambda: "gone" in calls[0])
        turn.leave()
        return [{}]

    monkeypatch.setattr(host, "execute", hang)
    assert lane.overdue() == 0
    thread = in_thread(lane, call(1, left=0.1))
    started.wait(PATIENCE)
    eventually(lambda: lane.overdue() > 0.2)
    lane.forget("r", [1])
    thread.join(PATIENCE)
    assert lane.overdue() == 0


def test_long_calls_are_left_to_the_next_worker_when_this_one_stops(lane, host, replies):
    for number in range(5):
        lane.receive(message(call(number, slow=True, forever=True)))
    eventually(lambda: host.begun)
    lane.stop()
    eventually(lambda: not lane.slow.running)
    assert not replies


def test_no_check_reaches_the_caller_of_an_uninterrupted_section():
    seen = []
    with deadline.checking(lambda: seen.append(1)):
        with deadline.uninterrupted():
            deadline.check()
        deadline.check()
    assert seen == [1]


def test_a_pause_gives_the_turn_away(host):
    turns = Turns()
    one, other = Turn([], turns), Turn([], turns)
    one.take()
    with deadline.checking(one), deadline.paused():
        other.take()
        assert turns.holder is other
        other.leave()
    assert turns.holder is one
