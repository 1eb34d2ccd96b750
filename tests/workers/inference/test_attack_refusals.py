"""What an attack refuses, and what it says when it does otherwise than asked, over HTTP and through the worker."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from app.core.store.database import transaction
from tests import tiny
from tests.workers.inference.test_over_http import anyio_backend, client, gray, saved  # noqa: F401
from workers.store import model_rows
from workers.store import models as artifacts

pytestmark = pytest.mark.anyio
HERE = "/v1/models/tiny_classifier/attack"


async def attack(client, path: str = HERE, **query):  # noqa: F811
    return await client.post(path, params=query, content=saved(gray()), headers={"Accept": "application/json"})


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"eps": -0.1}, "eps"),
        ({"eps": 1.5}, "eps"),
        ({"eps": "8/254"}, "eps"),
        ({"eps": "nan"}, "eps"),
        ({"eps": "300/255"}, "eps"),
        ({"label": 3}, "label"),
        ({"label": -1}, "label"),
        ({"label": "class 9"}, "label"),
        ({"target": "nobody"}, "target"),
        ({"label": 1, "target": 1}, "target"),
        ({"label": 1, "target": "class 1"}, "target"),
        ({"norm": "l0"}, "norm"),
        ({"method": "jsma", "norm": "linf"}, "norm"),
        ({"method": "ddn", "norm": "l1"}, "norm"),
        ({"method": "square", "budget": 0}, "budget"),
        ({"method": "square", "budget": -4}, "budget"),
        ({"method": "pgd", "steps": 0}, "steps"),
        ({"method": "magic"}, "method"),
        ({"stepz": 3}, "stepz"),
        ({"sweep": "0.1,3"}, "eps"),
        ({"goal": "latents"}, "goal"),
        ({"reach": 2}, "reach"),
    ],
)
async def test_a_fault_is_named_and_never_the_services(client, query, field):  # noqa: F811
    answer = await attack(client, **query)
    problem = answer.json()
    assert answer.status_code == 422, problem
    assert field in problem["errors"][0]["pointer"], problem
    assert problem["detail"]


async def test_an_eps_between_levels_is_rounded_down_and_the_neighbours_are_named(client):  # noqa: F811
    told = (await attack(client, eps=0.1)).json()
    assert told["eps"] == pytest.approx(25 / 255)
    assert any("25/255" in note and "26/255" in note for note in told["notes"])


async def test_an_image_that_is_wrong_already_comes_back_as_it_was(client):  # noqa: F811
    clean = (await attack(client, eps=0)).json()["clean"]["index"]
    told = (await attack(client, eps=0.2, label=(clean + 1) % 3)).json()
    assert told["initially_wrong"] and not told["success"] and told["queries"] == 1
    assert any("unchanged" in note for note in told["notes"])
    sent = np.asarray(Image.open(io.BytesIO(base64.b64decode(told["image"]))))
    assert np.array_equal(sent, np.asarray(gray()))


async def test_a_model_that_answers_no_numbers_is_not_called_robust(client):  # noqa: F811
    family = tiny.build(tiny.TinyClassifier)
    with torch.no_grad():
        family.head.weight.fill_(torch.nan)
    _, card = artifacts.publish(family, tiny.facts(), {"name": "broken", "seed": 0, "metrics": {}})
    with transaction() as conn:
        model_rows.register(conn, tenant="local", card=card, job_id=None)
    for method in ("fgsm", "square", "hopskipjump"):
        answer = await attack(client, "/v1/models/broken/attack", method=method)
        assert answer.status_code == 422 and "finite" in answer.json()["detail"], answer.json()


async def test_goals_of_models_that_are_no_classifiers_are_checked_too(client):  # noqa: F811
    here = "/v1/models/tiny_autoencoder/attack"
    told = (await attack(client, here, goal="latents", method="pgd", eps=0.3)).json()
    assert told["adversarial"]["distance"] > 0 and told["clean"]["wanted"] > 0
    for query, field in (
        ({"label": 1}, "label"),
        ({"target": 1}, "target"),
        ({"towards": "last"}, "towards"),
        ({"method": "hopskipjump"}, "method"),
        ({"goal": "realness"}, "goal"),
        ({"direction": "ab"}, "direction"),
    ):
        answer = await attack(client, here, **query)
        assert answer.status_code == 422 and field in answer.json()["errors"][0]["pointer"], answer.json()
