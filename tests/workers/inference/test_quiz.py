"""The quiz over HTTP: real models on the real inference host, real validation images, answers that stay."""

import base64
import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import delete, select

from app.core.store import blobs, database, quizzes
from app.core.store.database import reading
from app.core.store.tables import datasets, quiz_answers
from tests import tiny
from tests.workers.served import MODELS, front, publish
from workers.data import open_dataset
from workers.inference import host

pytestmark = pytest.mark.anyio


def pixels(image: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image))))


async def asked(gallery, model: str) -> dict:
    answer = await gallery.get(f"/v1/models/{model}/quiz")
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


async def answered(gallery, model: str, ident: str, answer: int) -> dict:
    reply = await gallery.post(f"/v1/models/{model}/quiz", json={"id": ident, "answer": answer})
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.mark.parametrize("model", MODELS)
async def test_one_of_the_two_images_is_unseen_and_the_answer_says_which(gallery, digest, model):
    unseen = [np.asarray(image)[0] for image in open_dataset(digest).validation["images"]]
    places, right = Counter(), 0
    for _ in range(12):
        question = await asked(gallery, model)
        found = [any(np.array_equal(pixels(image), real) for real in unseen) for image in question["images"]]
        assert sum(found) == 1
        verdict = await answered(gallery, model, question["id"], 0)
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
    assert (await asked(gallery, model))["tally"] == verdict["tally"]


async def test_the_discriminators_verdict_is_what_score_says_of_the_same_images(gallery):
    question = await asked(gallery, "gan")
    verdict = await answered(gallery, "gan", question["id"], 1)
    bodies = {"images": question["images"]}
    items = (await gallery.post("/v1/models/gan/score", json=bodies)).json()["data"]
    assert verdict["discriminator"] == int(items[1]["log_odds"] > items[0]["log_odds"])


async def test_the_first_answer_counts_and_a_restart_forgets_nothing(gallery, digest):
    question = await asked(gallery, "gan")
    first = await answered(gallery, "gan", question["id"], 0)
    database.engine.cache_clear()
    host.host.cache_clear()
    async with front() as other:
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
async def test_answers_that_are_none_are_refused_by_name(gallery, body, pointer):
    reply = await gallery.post("/v1/models/gan/quiz", json=body)
    assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, pointer)


async def test_models_that_cannot_be_asked_about_say_why(gallery, digest):
    publish(tiny.build(tiny.TinyClassifier), tiny.facts(), "judge", digest)
    for name, code in (("judge", "unsupported-operation"), ("orphan", "conflict"), ("nobody", "not-found")):
        for reply in (
            await gallery.get(f"/v1/models/{name}/quiz"),
            await gallery.post(f"/v1/models/{name}/quiz", json={"id": "0" * 16, "answer": 0}),
        ):
            assert reply.json()["code"] == code, reply.text
    shown = [(await gallery.get(f"/v1/models/{name}")).json()["links"] for name in ("gan", "judge", "orphan")]
    assert ["quiz" in links for links in shown] == [True, False, False]
    with database.transaction() as conn:
        conn.execute(delete(datasets).where(datasets.c.digest == digest))
    blobs.delete_prefix(f"datasets/{digest}")
    reply = await gallery.get("/v1/models/gan/quiz")
    assert reply.status_code == 409 and "deleted" in reply.json()["detail"]


def test_questions_are_spread_evenly():
    found = [quizzes.question("d", quizzes.new_ident(), 10) for _ in range(2000)]
    assert 900 < sum(question.real for question in found) < 1100
    assert all(120 < count < 280 for count in Counter(question.row for question in found).values())
    assert len({question.seed for question in found}) > 1990
