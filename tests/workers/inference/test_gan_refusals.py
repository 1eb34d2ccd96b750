"""What cannot be asked of adversarial families, over HTTP: each wish is refused by the field and with a remedy."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from app.core.jobs import state as jobs
from app.core.store.database import transaction
from tests.workers.trainings import store_dataset
from workers.jobs import lifecycle
from workers.jobs.job import RunningJob

pytestmark = pytest.mark.anyio
SMALL = {"images": 64, "batch_size": 8, "width": 4}


def png(size: tuple[int, int] = (8, 8), mode: str = "L", value: int = 0) -> bytes:
    out = io.BytesIO()
    draws = np.random.default_rng(value).integers(0, 255, (size[1], size[0]), dtype=np.uint8)
    Image.fromarray(draws).convert(mode).save(out, "PNG")
    return out.getvalue()


CALLS = {
    "label out of range": ("GET", "conditional/samples?label=3", "label"),
    "label of another kind": ("GET", "conditional/samples?label=four", "label"),
    "one of several labels": ("GET", "conditional/samples?labels=0&labels=9", "label"),
    "label and labels": ("GET", "conditional/samples?label=0&labels=1", "labels"),
    "label of a model that knows none": ("GET", "gan/samples?label=0", "label"),
    "no truncation": ("GET", "style/samples?truncation=0", "truncation"),
    "negative truncation": ("GET", "style/samples?truncation=-0.5", "truncation"),
    "more than the limit": ("GET", "gan/samples?n=2000", "n"),
    "crossing beyond the last layer": ("GET", "style/mix?crossing=9", "crossing"),
    "another size": ("POST", "gan/project", ""),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_that_cannot_be_answered_names_the_field(gallery, name):
    method, path, field = CALLS[name]
    answer = await gallery.request(method, f"/v1/models/{path}", content=png((9, 8)) if method == "POST" else None)
    problem = answer.json()
    assert (answer.status_code, problem["code"] in ("invalid-request", "invalid-image")) == (422, True), answer.text
    pointers = [fault["pointer"].split("/")[0] for fault in problem.get("errors", [])]
    assert field in pointers or not field
    told = problem["detail"] + (problem.get("remedy") or "") + "".join(f["detail"] for f in problem.get("errors", []))
    assert len(told) > 30
    if name == "more than the limit":
        assert "1024" in told
    if name == "another size":
        assert "8 x 8" in told


async def test_more_samples_than_a_call_may_bring_become_a_job(gallery):
    answer = await gallery.get("/v1/models/gan/samples?n=600")
    assert answer.status_code == 422 and "respond-async" in answer.json()["remedy"], answer.text
    answer = await gallery.get("/v1/models/gan/samples?n=600", headers={"Prefer": "respond-async"})
    assert answer.status_code == 202


async def ended(client, body: dict) -> dict:
    """The error of the job that a training becomes."""
    answer = await client.post("/v1/trainings", json=body)
    assert answer.status_code == 202, answer.text
    return (await run(client, answer.json()["id"]))["error"]


async def run(client, job_id: str) -> dict:
    """The job after it ran as its worker would run it, in this process."""
    with transaction() as conn:
        job = RunningJob(jobs.claim(conn, job_id, "here"))
    lifecycle.end(job)
    return (await client.get(f"/v1/jobs/{job_id}")).json()


CONFIGS = {
    "two tricks": ("gan", {"loss": "wasserstein", "label_smoothing": 0.1}, "loss=wasserstein and label_smoothing=0.1"),
    "penalty and norm": ("gan", {"r1": 1, "discriminator_norm": "batch"}, "discriminator_norm=batch and r1=1.0"),
    "style and penalty": ("style_gan", {"loss": "hinge", "gradient_penalty": 1}, "loss=hinge and gradient_penalty=1.0"),
    "growth": ("progressive_gan", {"fade_images": 1000}, "the full size is reached only after"),
    "condition": ("conditional_gan", {"condition": "targets"}, "needs the column targets"),
}


@pytest.mark.parametrize("name", CONFIGS)
async def test_a_config_that_cannot_work_is_refused_before_there_is_a_job(gallery, name):
    family, config, words = CONFIGS[name]
    body = {"family": family, "dataset": "small", "config": SMALL | config}
    answer = await gallery.post("/v1/trainings", json=body)
    problem = answer.json()
    assert answer.status_code == 422, answer.text
    assert problem["code"] in ("invalid-config", "invalid-dataset") and words in problem["detail"]
    pointer = problem["errors"][0]["pointer"]
    assert problem["remedy"] and (pointer == "/dataset" or pointer.removeprefix("/config/") in body["config"] | EMPTY)


EMPTY = {"conditioning": None, "generator_norm": None}
"""Settings that a clash may be blamed on though nobody gave them."""


async def test_labels_that_are_needed_are_asked_for_at_once(gallery):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        for index in range(8):
            out.writestr(f"{index}.png", png(value=index))
    headers = {"Content-Type": "application/zip"}
    answer = await gallery.post("/v1/datasets?name=bare&layout=plain", content=archive.getvalue(), headers=headers)
    assert (await run(gallery, answer.json()["id"]))["status"] == "succeeded"
    answer = await gallery.post("/v1/trainings", json={"family": "conditional_gan", "dataset": "bare"})
    problem = answer.json()
    assert (answer.status_code, problem["errors"][0]["pointer"]) == (422, "/dataset")
    assert "labelled" in problem["detail"] + problem.get("remedy", "")


async def test_one_image_is_too_few_to_learn_from(gallery):
    store_dataset("lonely", count=1, seed=5, tenant="local")
    error = await ended(gallery, {"family": "gan", "dataset": "lonely", "config": SMALL})
    assert error["code"] == "invalid-dataset" and "at least 2" in error["detail"]


async def test_gray_and_transparent_pictures_together_are_learned_from_in_colour(gallery):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        for index in range(24):
            out.writestr(f"{index}.png", png(mode=("L", "RGBA", "RGB", "LA")[index % 4], value=index))
    headers = {"Content-Type": "application/zip"}
    answer = await gallery.post("/v1/datasets?name=mixed&layout=plain", content=archive.getvalue(), headers=headers)
    dataset = await run(gallery, answer.json()["id"])
    assert dataset["status"] == "succeeded", dataset["error"]
    body = {"family": "gan", "dataset": "mixed", "name": "mixed", "config": SMALL}
    answer = await gallery.post("/v1/trainings", json=body)
    job = await run(gallery, answer.json()["id"])
    assert job["status"] == "succeeded", job["error"]
    picture = await gallery.get("/v1/models/mixed/samples?n=1&seed=1")
    assert Image.open(io.BytesIO(picture.content)).mode == "RGB"
