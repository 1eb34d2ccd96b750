"""Jobs over HTTP: pages, cancel and resume, curves, snapshots, files, and the stream of events."""

import asyncio
import hashlib
import json

import pytest

from app.core.jobs import events
from app.core.jobs import state as jobs
from app.core.store import blobs
from app.core.store.database import transaction
from tests.app.conftest import add_dataset, png

pytestmark = pytest.mark.anyio
BODY = {"family": "vae", "dataset": "squares"}


@pytest.fixture(autouse=True)
def dataset(app):
    add_dataset("squares")


@pytest.fixture
async def job(client):
    return (await client.post("/v1/trainings", json=BODY)).json()


def claimed(job: dict) -> jobs.Claim:
    with transaction() as conn:
        return jobs.claim(conn, job["id"], "worker:1")


def write(change, *args) -> None:
    with transaction() as conn:
        change(conn, *args)


def told(text: str) -> list[tuple[str | None, str, dict]]:
    """(id, event, data) of each frame."""
    frames = [frame for frame in text.split("\n\n") if frame and not frame.startswith(":")]
    fields = [dict(line.split(": ", 1) for line in frame.split("\n")) for frame in frames]
    return [(field.get("id"), field["event"], json.loads(field["data"])) for field in fields]


async def test_pages_have_every_job_once_newest_first(client):
    ids = [(await client.post("/v1/trainings", json=BODY)).json()["id"] for _ in range(5)]
    found, query = [], {"limit": 2}
    while query.get("cursor", True):
        page = (await client.get("/v1/jobs", params=query)).json()
        found += [item["id"] for item in page["data"]]
        query["cursor"] = page["next_cursor"]
    assert found == ids[::-1]


async def test_lists_are_filtered_and_filters_are_checked(client, job):
    write(jobs.cancel, "local", job["id"])
    other = (await client.post("/v1/trainings", json=BODY)).json()
    listed = (await client.get("/v1/jobs?status=queued")).json()["data"]
    assert [item["id"] for item in listed] == [other["id"]]
    assert (await client.get("/v1/jobs?kind=dataset")).json()["data"] == []
    for query in ("status=done", "cursor=x", "limit=0", "limit=101", "kind=A%00"):
        assert (await client.get(f"/v1/jobs?{query}")).status_code == 422, query


async def test_a_running_job_shows_progress_and_the_latest_metrics(client, job):
    claim = claimed(job)
    write(jobs.progress, job["id"], claim.token, {"images": 64, "total": 640, "eta_seconds": 9.5})
    for images, loss in ((32, 2.0), (64, 1.0)):
        write(events.add_metrics, job["id"], claim.token, images, {"loss": loss})
    seen = (await client.get(f"/v1/jobs/{job['id']}")).json()
    assert (seen["status"], seen["attempt"], seen["queue_position"]) == ("running", 1, None)
    assert seen["progress"] == {"images": 64, "total": 640, "eta_seconds": 9.5}
    assert seen["metrics"] == {"loss": 1.0}
    assert (await client.get("/v1/jobs")).json()["data"] == [seen]
    curves = (await client.get(f"/v1/jobs/{job['id']}/metrics?since=32")).json()
    assert curves == {"data": [{"images": 64, "values": {"loss": 1.0}}], "next_since": 64}
    table = await client.get(f"/v1/jobs/{job['id']}/metrics", headers={"Accept": "text/csv"})
    assert table.text == "images,loss\n32,2.0\n64,1.0\n"


async def test_cancel_is_idempotent_and_what_is_over_cannot_be_canceled(client, job):
    here = f"/v1/jobs/{job['id']}"
    for _ in range(2):
        answer = await client.post(f"{here}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "canceled")
    resumed = await client.post(f"{here}/resume")
    assert (resumed.status_code, resumed.json()["status"]) == (202, "queued")
    assert (await client.post(f"{here}/resume")).status_code == 409
    claim = claimed(job)
    assert (await client.post(f"{here}/cancel")).json()["cancel_requested"] is True
    write(jobs.finish, job["id"], claim.token, {"model": "m", "version": "d"})
    answer = await client.post(f"{here}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (409, "succeeded")
    done = (await client.get(here)).json()
    assert done["result"]["model"] == "m" and done["links"]["model"] == "/v1/models/m"


async def test_a_failed_job_tells_its_problem(client, job):
    claim = claimed(job)
    write(jobs.fail, job["id"], claim.token, {"code": "diverged", "status": 422, "detail": "The loss is not finite."})
    seen = (await client.get(f"/v1/jobs/{job['id']}")).json()
    assert seen["error"]["code"] == "diverged" and "resume" in seen["links"]


async def test_snapshots_are_listed_in_order_and_served(client, job):
    for images in (1000, 64):
        blobs.put(f"jobs/{job['id']}/snapshots/{images}.png", png(images % 255))
    listed = (await client.get(f"/v1/jobs/{job['id']}/snapshots")).json()["data"]
    assert [item["images"] for item in listed] == [64, 1000]
    picture = await client.get(listed[0]["url"])
    assert (picture.headers["content-type"], picture.content) == ("image/png", png(64))
    assert (await client.get(f"/v1/jobs/{job['id']}/snapshots/65.png")).status_code == 404


async def test_snapshots_come_with_their_metrics_and_whether_they_can_be_forked(client, job):
    claim = claimed(job)
    for images in (0, 64, 128):
        blobs.put(f"jobs/{job['id']}/snapshots/{images}.png", png(images))
        told = {"images": images, "metrics": {"loss": images / 2} if images else {}}
        write(jobs.add_event, job["id"], claim.token, "snapshot", told)
    again = {"images": 128, "metrics": {"loss": 3.0}}
    write(jobs.add_event, job["id"], claim.token, "snapshot", again)  # a later attempt passed it too
    ref = {"kept": [{"images": 130}, {"images": 128}], "marks": [{"images": 64}]}
    write(jobs.add_checkpoint, job["id"], claim.token, ref)
    found = (await client.get(f"/v1/jobs/{job['id']}/snapshots")).json()
    assert found["checkpoints"] == [64, 128, 130]
    assert [(item["metrics"], item["checkpoint"]) for item in found["data"]] == [
        ({}, False),
        ({"loss": 32.0}, True),
        ({"loss": 3.0}, True),
    ]


async def test_checkpoints_of_other_kinds_are_no_snapshots(client, job):
    claim = claimed(job)
    ref = {"kept": [{"key": f"jobs/{job['id']}/1/checkpoint", "sha256": "0" * 64, "bytes": 9}]}
    write(jobs.add_checkpoint, job["id"], claim.token, ref)  # as reports and perturbations write them
    answer = await client.get(f"/v1/jobs/{job['id']}/snapshots")
    assert (answer.status_code, answer.json()["checkpoints"]) == (200, [])


async def test_files_of_a_job_are_served_by_name_and_their_keys_stay_inside(client, job):
    claim = claimed(job)
    key = f"jobs/{job['id']}/1/facts.json"
    blobs.put(key, b'{"a": 1}')
    write(jobs.finish, job["id"], claim.token, {"artifacts": {"facts.json": key}})
    seen = await client.get(f"/v1/jobs/{job['id']}")
    assert key not in seen.text
    address = seen.json()["result"]["artifacts"]["facts.json"]
    answer = await client.get(address)
    assert (answer.headers["content-type"], answer.content) == ("application/json", b'{"a": 1}')
    assert (await client.get(address, headers={"Range": "bytes=0-0"})).content == b"{"
    assert (await client.get(f"/v1/jobs/{job['id']}/artifacts/other")).status_code == 404


async def test_a_damaged_or_lost_file_of_a_job_is_refused(client, job):
    claim, data = claimed(job), b'{"a": 1}'
    key, sha256 = f"jobs/{job['id']}/1/facts.json", hashlib.sha256(data).hexdigest()
    blobs.put(key, data)
    stored = {"artifacts": {"facts.json": key}, "sha256": {"facts.json": sha256}}
    write(jobs.finish, job["id"], claim.token, stored)
    address = f"/v1/jobs/{job['id']}/artifacts/facts.json"
    answer = await client.get(address)
    assert (answer.content, answer.headers["etag"]) == (data, f'"{sha256}"')
    for damage in (lambda: blobs.put(key, b'{"a": 2}', create_only=False), lambda: blobs.delete_prefix(key)):
        damage()
        answer = await client.get(address)
        assert (answer.status_code, answer.json()["code"]) == (503, "storage-damaged"), answer.text
        assert "facts.json" in answer.json()["detail"]


async def test_a_damaged_snapshot_is_refused(client, job):
    key = f"jobs/{job['id']}/snapshots/32.png"
    blobs.put(key, png(1)[:-3])
    answer = await client.get(f"/v1/{key}")
    assert (answer.status_code, answer.json()["code"]) == (503, "storage-damaged"), answer.text


@pytest.mark.parametrize("path", ["", "/events", "/metrics", "/snapshots", "/snapshots/1.png", "/artifacts/a"])
@pytest.mark.parametrize("job_id", ["nothing", "0" * 8, "01a202a5-6e28-785c-859d-6886ecc5a183"])
async def test_an_unknown_job_is_404_everywhere(client, path, job_id):
    assert (await client.get(f"/v1/jobs/{job_id}{path}")).status_code == 404


async def test_the_stream_tells_what_happened_and_ends_with_the_end(client, job):
    claim = claimed(job)
    write(events.add_metrics, job["id"], claim.token, 32, {"loss": 2.0})
    write(jobs.add_event, job["id"], claim.token, "snapshot", {"images": 32})
    write(jobs.add_checkpoint, job["id"], claim.token, {"images": 32, "kept": [{"key": "secret/key"}]})
    write(jobs.finish, job["id"], claim.token, {"model": "m"})
    answer = await client.get(f"/v1/jobs/{job['id']}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "secret" not in answer.text
    frames = told(answer.text)
    assert [(number, kind) for number, kind, _ in frames] == [
        ("1", "state"),
        ("2", "state"),
        ("3", "metrics"),
        ("4", "snapshot"),
        ("5", "log"),
        ("6", "completed"),
    ]
    assert [data["status"] for _, kind, data in frames if kind == "state"] == ["queued", "running"]
    assert frames[2][2]["values"] == {"loss": 2.0}
    assert frames[3][2]["url"] == f"/v1/jobs/{job['id']}/snapshots/32.png"
    assert frames[5][2]["status"] == "succeeded" and frames[5][2]["id"] == job["id"]


@pytest.mark.parametrize("where", ["header", "query"])
async def test_a_broken_stream_goes_on_after_the_last_event(client, job, where):
    write(jobs.cancel, "local", job["id"])
    header, query = ({"Last-Event-ID": "1"}, {}) if where == "header" else ({}, {"after": 1})
    answer = await client.get(f"/v1/jobs/{job['id']}/events", headers=header, params=query)
    assert [(number, kind) for number, kind, _ in told(answer.text)] == [("2", "completed")]


async def test_who_knows_everything_of_a_finished_job_is_told_not_to_come_back(client, job):
    write(jobs.cancel, "local", job["id"])
    answer = await client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "2"})
    assert answer.status_code == 204


async def test_an_end_before_a_resume_is_not_the_end(client, job):
    write(jobs.cancel, "local", job["id"])
    write(jobs.resume, "local", job["id"])
    write(jobs.cancel, "local", job["id"])
    answer = await client.get(f"/v1/jobs/{job['id']}/events")
    assert [kind for _, kind, _ in told(answer.text)] == ["state", "state", "state", "completed"]


async def test_a_watcher_sees_progress_and_the_end_while_they_happen(client, job, monkeypatch):
    monkeypatch.setattr("app.api.routes.job_events.POLL_SECONDS", 0.02)
    watcher = asyncio.create_task(client.get(f"/v1/jobs/{job['id']}/events"))
    await asyncio.sleep(0.1)
    claim = claimed(job)
    for images in (10, 20):
        write(jobs.progress, job["id"], claim.token, {"images": images, "total": 30, "eta_seconds": None})
        await asyncio.sleep(0.15)
    write(jobs.finish, job["id"], claim.token, {})
    frames = told((await asyncio.wait_for(watcher, 5)).text)
    assert [data["images"] for number, kind, data in frames if kind == "progress" and number is None] == [10, 20]
    assert frames[-1][1] == "completed"


async def test_head_of_a_stream_does_not_wait_for_its_end(client, job):
    answer = await asyncio.wait_for(client.head(f"/v1/jobs/{job['id']}/events"), 5)
    assert answer.status_code == 200 and not answer.content


async def test_a_training_shows_its_alarms_as_they_are_now_and_streams_them(client, job):
    token = claimed(job).token
    alarm = {"name": "overfitting", "cause": "It learns by heart.", "remedy": "Stop.", "evidence": {"loss": 0.5}}
    alarm |= {"images": 640, "cleared": None, "treated": None, "at_images": 640}
    write(jobs.add_event, job["id"], token, "alarm", alarm)
    (shown,) = (await client.get(f"/v1/jobs/{job['id']}")).json()["alarms"]
    assert (shown["name"], shown["images"], shown["cleared"]) == ("overfitting", 640, None)
    write(jobs.add_event, job["id"], token, "alarm_cleared", alarm | {"cleared": 960, "at_images": 960})
    write(jobs.finish, job["id"], token, {"model": "vae-squares"})
    (listed,) = (await client.get("/v1/jobs")).json()["data"]
    assert [alarm["cleared"] for alarm in listed["alarms"]] == [960]
    stream = told((await client.get(f"/v1/jobs/{job['id']}/events")).text)
    assert [(kind, data["name"]) for _, kind, data in stream if kind.startswith("alarm")] == [
        ("alarm", "overfitting"),
        ("alarm_cleared", "overfitting"),
    ]
