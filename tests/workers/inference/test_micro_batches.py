"""Micro-batches from and to a real broker, and calls that became jobs."""

import io
import json
import time
import zipfile

import numpy as np
import pytest

from app.core.calls.messages import Answer, Call, pack_calls, pack_inputs, unpack_reply
from app.core.errors import AnamorphError, TooLarge, UnsupportedOperation
from app.core.jobs import queue
from app.core.store import blobs
from tests import tiny
from tests.system.processes import eventually
from tests.workers.trainings import accept, attempt, finish, store_dataset
from workers import codecs
from workers.inference import host, lane
from workers.jobs.job import RunningJob, Stopped
from workers.jobs.kinds import operation as deferred
from workers.store import models as artifacts


@pytest.fixture(autouse=True)
def registered(place, monkeypatch):
    monkeypatch.setattr(artifacts, "families", lambda: tiny.FAMILIES)
    monkeypatch.setattr(host.devices, "use_threads", lambda wanted: None)
    yield
    host.lane.cache_clear()
    host.host.cache_clear()


@pytest.fixture
def digest(registered) -> str:
    return artifacts.publish(tiny.build(tiny.TinyAutoencoder), tiny.facts(), {"name": "tiny"})[0]


@pytest.fixture
def broker(valkey, monkeypatch):
    monkeypatch.setenv("BROKER_URL", valkey.url)
    queue.settings.cache_clear()
    lane.broker.cache_clear()
    yield lane.broker()
    lane.broker().close()
    lane.broker.cache_clear()


def pngs(count: int, size: int = 8) -> list[bytes]:
    return codecs.encode_png(np.random.default_rng(0).integers(0, 256, (count, 1, size, size), dtype=np.uint8))


def answers(broker, key: str, count: int = 1) -> dict[int, Answer | AnamorphError]:
    """The next `count` answers. A model that is not in memory is loaded first, by another thread."""
    found = {}
    while len(found) < count:
        _, reply = broker.blpop([key], 60)
        found |= {number: outcome for number, outcome in unpack_reply(reply) if outcome is not None}
    return found


def test_a_micro_batch_is_answered_on_the_list_it_names(broker, digest):
    soon = time.monotonic() + 60
    calls = [
        (1, Call(digest, "denoise", {}, pngs(2), deadline=soon)),
        (2, Call(digest, "encode", {}, pngs(1), encoding="none", deadline=soon)),
        (3, Call(digest, "denoise", {}, [b"no image"], deadline=soon)),
        (4, Call(digest, "samples", {"n": 4}, grid=True, deadline=soon)),
    ]
    host.lane().receive(pack_calls("replies:me", calls))
    found = answers(broker, "replies:me", 4)
    assert [len(found[number].images) for number in (1, 2, 4)] == [2, 0, 1]
    assert codecs.decode_npy(found[2].latents).shape == (1, 3)
    assert found[3].code == "invalid-image" and found[1].timings["compute"] > 0


def test_a_reply_that_nobody_fetches_disappears(broker, digest):
    call = Call(digest, "samples", {"n": 1}, deadline=time.monotonic() + 60)
    host.lane().receive(pack_calls("replies:gone", [(1, call)]))
    eventually(lambda: broker.llen("replies:gone") == 2, 60)  # a notice, as its model is loaded first, and the answer
    assert 0 < broker.ttl("replies:gone") <= lane.REPLY_SECONDS


def test_calls_past_their_deadline_are_dropped(broker, digest, monkeypatch):
    late, early = (Call(digest, "samples", {"n": 1}, deadline=time.monotonic() + offset) for offset in (-1, 60))
    host.lane().receive(pack_calls("replies:me", [(1, late), (2, early)]))
    assert list(answers(broker, "replies:me")) == [2]
    monkeypatch.setattr(host.Host, "execute", lambda *_: pytest.fail("nothing was to be computed"))
    host.lane().receive(pack_calls("replies:me", [(1, late)]))
    assert broker.llen("replies:me") == 0


def test_a_broker_that_is_gone_does_not_kill_the_worker(valkey, broker, digest, monkeypatch):
    monkeypatch.setattr(lane, "REPLY_SECONDS", 60)
    message = pack_calls("replies:me", [(1, Call(digest, "samples", {"n": 1}, deadline=time.monotonic() + 60))])
    valkey.stop()
    host.lane().receive(message)


def test_dataset_images_need_no_model(broker, place):
    dataset = store_dataset()
    asked = Call("", "dataset_images", {"dataset": dataset, "start": 20, "count": 100}, deadline=time.monotonic() + 60)
    wrong = Call("", "dataset_images", {"dataset": dataset, "start": -1}, deadline=time.monotonic() + 60)
    sheet = Call("", "dataset_images", {"dataset": dataset, "count": 4}, grid=True, deadline=time.monotonic() + 60)
    host.lane().receive(pack_calls("replies:me", [(1, asked), (2, wrong), (3, sheet)]))
    found = answers(broker, "replies:me", 3)
    assert len(found[1].images) == len(found[1].facts["labels"]) == 4
    assert [codecs.decode(image).shape for image in found[3].images] == [(1, 18, 18)]
    assert codecs.decode(found[1].images[0]).shape == (1, 8, 8)
    assert found[2].code == "invalid-request" and found[2].field == "start"


def deferred_job(digest: str, operation: str, images: list[bytes] | None = None, **spec) -> str:
    upload = None
    if images:
        upload = f"uploads/{operation}"
        blobs.put(upload, pack_inputs(images, None))
    spec = {"model": digest, "name": "mine", "operation": operation, "params": {}, "upload": upload} | spec
    return accept(kind="operation", **{"encoding": "png", "grid": False} | spec)


def run(job_id: str) -> dict:
    job = attempt(job_id)
    return finish(job, deferred.run_operation(job))


def test_a_call_as_a_job_leaves_what_the_call_would_have_answered(digest):
    images = pngs(150)
    calls = [{"model": digest, "operation": "reconstruct", "params": {}, "images": images, "encoding": "png"}]
    wanted = host.execute(calls)[0]["answer"]
    row = run(deferred_job(digest, "reconstruct", images))
    keys = row["result"]["artifacts"]
    with zipfile.ZipFile(io.BytesIO(blobs.get(keys["images.zip"]))) as archive:
        assert [archive.read(name) for name in sorted(archive.namelist())] == wanted["images"]
    assert blobs.get(keys["latents.npy"]) == wanted["latents"]
    assert json.loads(blobs.get(keys["facts.json"])) == wanted["facts"]
    assert row["result"]["count"] == 150 and len(row["result"]["facts"]["items"]) == 100
    assert row["progress"]["images"] == 150


def test_frames_keep_their_names(digest):
    job_id = deferred_job(digest, "denoise", pngs(3))
    blobs.put("uploads/denoise", pack_inputs(pngs(3), None, ["a", "b2", "b10"]), create_only=False)
    with zipfile.ZipFile(io.BytesIO(blobs.get(run(job_id)["result"]["artifacts"]["images.zip"]))) as archive:
        assert archive.namelist() == ["a.png", "b2.png", "b10.png"]


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ({"grid": True}, {"facts.json", "latents.npy", "images.png"}),
        ({"encoding": "webp"}, {"facts.json", "latents.npy", "images.zip"}),
        ({"encoding": "npy"}, {"facts.json", "latents.npy", "images.npy"}),
    ],
)
def test_the_files_follow_the_form_asked_for(digest, how, names):
    assert set(run(deferred_job(digest, "samples", params={"n": 70}, **how))["result"]["artifacts"]) == names


def test_a_job_can_be_stopped_between_batches(digest, monkeypatch):
    class Stopping(RunningJob):
        done = 0

        def progress(self, images, total, eta_seconds=None):
            self.done, self.canceled = images, True

    job = attempt(deferred_job(digest, "samples", params={"n": 200}), Stopping)
    with pytest.raises(Stopped):
        deferred.run_operation(job)
    assert job.done == 64


def test_a_job_can_be_stopped_inside_a_batch_that_takes_long(place):
    class Stopping(RunningJob):
        asked = 0

        @property
        def stopping(self):
            self.asked += 1
            return "cancel" if self.asked > 20 else None

    family = tiny.build(tiny.TinyClassifier)
    judge = artifacts.publish(family, tiny.facts(), {"name": "judge", "seed": 0})[0]
    job = attempt(deferred_job(judge, "certify", pngs(1), params={"n": 1_000_000}), Stopping)
    with pytest.raises(Stopped):
        deferred.run_operation(job)
    assert job.asked < 30


def test_jobs_that_cannot_be_done_say_why(digest, monkeypatch):
    with pytest.raises(UnsupportedOperation):
        run(deferred_job(digest, "classify"))
    with pytest.raises(AnamorphError, match="gone"):
        run(deferred_job(digest, "denoise", upload="uploads/none"))
    monkeypatch.setattr(deferred, "MAX_FLOATS", 640)
    with pytest.raises(TooLarge, match="11 images"):
        run(deferred_job(digest, "denoise", pngs(11)))


def test_images_of_another_size_are_resized_on_request(digest):
    calls = [{"model": digest, "operation": "denoise", "params": {}, "images": pngs(1, 16), "encoding": "png"}]
    assert host.execute(calls)[0]["problem"]["code"] == "invalid-image"
    calls[0]["params"] = {"resize": True}
    assert codecs.decode(host.execute(calls)[0]["answer"]["images"][0]).shape == (1, 8, 8)
