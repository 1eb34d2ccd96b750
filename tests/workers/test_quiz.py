"""The quiz over HTTP: real models on the real inference host, real validation images, answers that stay."""

import base64
import io
from collections import Counter

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from sqlalchemy import select

from app.core import blobs, catalog, database, quizzes
from app.core.database import reading, transaction
from app.core.tables import quiz_answers
from app.main import create_app
from models.families.conditional_gan import ConditionalGAN
from models.families.gan import GAN
from models.families.vae import VAE
from models.types import DataSpec
from tests import tiny
from tests.workers.test_over_http import Lane
from tests.workers.trainings import store_dataset
from workers import artifacts, host, records
from workers.data import open_dataset

pytestmark = pytest.mark.anyio
SMALL = {"width": 4, "batch_size": 4, "images": 32}
MODELS = {"gan": (GAN, SMALL), "conditional": (ConditionalGAN, SMALL), "vae": (VAE, {"latent_dim": 2, "body": "mlp"})}


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def digest(storage, sqlite_url, monkeypatch, anyio_backend):
    """The dataset's; beside it stand models that learned from it, and one that says nothing of its origin."""
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    database.settings.cache_clear()
    database.engine.cache_clear()
    monkeypatch.setattr(host.devices, "use_threads", lambda wanted: None)
    digest = store_dataset()
    facts = open_dataset(digest).facts
    torch.manual_seed(0)
    for name, (family, config) in MODELS.items():
        publish(family.create(config, DataSpec.from_facts(facts)), facts, name, digest)
    publish(GAN.create(SMALL, DataSpec.from_facts(facts)), facts, "orphan", None)
    yield digest
    host.host.cache_clear()
    database.engine().dispose()
    database.engine.cache_clear()


def publish(model, facts: dict, name: str, digest: str | None) -> None:
    about = {"name": name, "seed": 0, "metrics": {}, "dataset": "small", "dataset_digest": digest}
    _, card = artifacts.publish(model, facts, about)
    with transaction() as conn:
        records.register(conn, tenant="local", card=card, job_id=None)


@pytest.fixture
async def client(digest):
    app = create_app(catalog.load(), Lane())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


def pixels(image: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image))))


async def asked(client, model: str) -> dict:
    answer = await client.get(f"/v1/models/{model}/quiz")
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


async def answered(client, model: str, ident: str, answer: int) -> dict:
    reply = await client.post(f"/v1/models/{model}/quiz", json={"id": ident, "answer": answer})
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.mark.parametrize("model", MODELS)
async def test_one_of_the_two_images_is_unseen_and_the_answer_says_which(client, digest, model):
    unseen = [np.asarray(image)[0] for image in open_dataset(digest).validation["images"]]
    places, right = Counter(), 0
    for _ in range(12):
        question = await asked(client, model)
        found = [any(np.array_equal(pixels(image), real) for real in unseen) for image in question["images"]]
        assert sum(found) == 1
        verdict = await answered(client, model, question["id"], 0)
        assert verdict["real"] == found.index(True) and verdict["correct"] == (verdict["real"] == 0)
        places[verdict["real"]] += 1
        right += verdict["discriminator"] == verdict["real"]
        assert (question["label"] is not None) == (model == "conditional")
    assert set(places) == {0, 1}, "the order is drawn anew each time"
    judged = model != "vae"
    assert verdict["tally"] == {
        "answered": 12,
        "correct": places[0],
        "discriminator_correct": right if judged else None,
    }
    assert (verdict["discriminator"] is not None) == judged
    assert (await asked(client, model))["tally"] == verdict["tally"]


async def test_the_discriminators_verdict_is_what_score_says_of_the_same_images(client):
    question = await asked(client, "gan")
    verdict = await answered(client, "gan", question["id"], 1)
    bodies = {"images": question["images"]}
    items = (await client.post("/v1/models/gan/score", json=bodies)).json()["data"]
    assert verdict["discriminator"] == int(items[1]["log_odds"] > items[0]["log_odds"])


async def test_the_first_answer_counts_and_a_restart_forgets_nothing(client, digest):
    question = await asked(client, "gan")
    first = await answered(client, "gan", question["id"], 0)
    database.engine.cache_clear()
    host.host.cache_clear()
    transport = httpx.ASGITransport(create_app(catalog.load(), Lane()), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as other:
        assert await answered(other, "gan", question["id"], 1) == first
    with reading() as conn:
        assert len(conn.execute(select(quiz_answers)).all()) == first["tally"]["answered"] == 1


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"id": "nothing", "answer": 0}, "/id"),
        ({"id": "0" * 16, "answer": 2}, "/answer"),
        ({"id": "0" * 16}, "/answer"),
    ],
)
async def test_answers_that_are_none_are_refused_by_name(client, body, pointer):
    reply = await client.post("/v1/models/gan/quiz", json=body)
    assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, pointer)


async def test_models_that_cannot_be_asked_about_say_why(client, digest):
    publish(tiny.build(tiny.TinyClassifier), tiny.facts(), "judge", digest)
    for name, code in (("judge", "unsupported-operation"), ("orphan", "conflict"), ("nobody", "not-found")):
        for reply in (
            await client.get(f"/v1/models/{name}/quiz"),
            await client.post(f"/v1/models/{name}/quiz", json={"id": "0" * 16, "answer": 0}),
        ):
            assert reply.json()["code"] == code, reply.text
    shown = [(await client.get(f"/v1/models/{name}")).json()["links"] for name in ("gan", "judge", "orphan")]
    assert ["quiz" in links for links in shown] == [True, False, False]
    blobs.delete_prefix(f"datasets/{digest}")
    reply = await client.get("/v1/models/gan/quiz")
    assert reply.status_code == 409 and "deleted" in reply.json()["detail"]


def test_questions_are_spread_evenly():
    found = [quizzes.question("d", quizzes.new_ident(), 10) for _ in range(2000)]
    assert 900 < sum(question.real for question in found) < 1100
    assert all(120 < count < 280 for count in Counter(question.row for question in found).values())
    assert len({question.seed for question in found}) > 1990
