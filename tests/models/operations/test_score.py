"""The map of a discriminator: one logit a patch, a picture of the image's size, pairs where pairs are judged."""

import pytest
import torch

from models.operations.score import Score
from models.registry import families
from models.types import InputError
from tests.models.data import for_family


def model(name: str, **config):
    kind = families()[name]
    torch.manual_seed(0)
    spec, *_ = for_family(kind, (1, 16, 24))
    return kind.create({"images": 4, "batch_size": 2, "width": 4} | config, spec).eval()


def ask(judge, images, **params):
    asked, given = Score(), Score.Params(**params)
    rows = asked.rows(judge, images, given)
    with torch.inference_mode():
        return asked.result(judge, rows, asked.compute(judge, rows, given), given)


@pytest.mark.parametrize("name", ["cyclegan", "cut", "refiner", "pix2pix"])
def test_a_map_has_the_size_of_the_image_and_the_mean_of_the_score(name):
    judge, images = model(name), torch.rand(4, 1, 16, 24)
    plain, shown = ask(judge, images), ask(judge, images, map=True)
    assert plain.images is None and plain.facts["items"] == shown.facts["items"]
    count = 2 if name == "pix2pix" else 4
    assert shown.images.shape == (count, 1, 16, 24) and len(plain.facts["items"]) == count
    odds = torch.tensor([item["log_odds"] for item in plain.facts["items"]])
    rows, columns = shown.facts["patches"]
    down, right = ([-(-index * side // count) for index in range(count)] for side, count in ((16, rows), (24, columns)))
    first = torch.logit(shown.images[:, 0][:, down][:, :, right].double())
    torch.testing.assert_close(first.flatten(1).mean(1), odds.double(), atol=1e-4, rtol=1e-3)


def test_the_discriminator_of_each_domain_can_be_asked():
    judge, images = model("cyclegan"), torch.rand(1, 1, 16, 24)
    scores = {domain: ask(judge, images, domain=domain).facts["items"][0]["score"] for domain in (None, "a", "b")}
    assert scores[None] == scores["b"] != scores["a"]


def test_least_squares_outputs_are_read_as_probabilities():
    judge = model("cut")
    with torch.no_grad():
        for parameter in judge.judges.parameters():
            parameter.zero_()
        judge.judges["b"].layers[-1].bias.fill_(0.25)
    assert ask(judge, torch.rand(1, 1, 16, 24)).facts["items"][0]["score"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("name", "count", "params", "field"),
    [
        ("pix2pix", 3, {}, "image"),
        ("pix2pix", 2, {"domain": "a"}, "domain"),
        ("cut", 1, {"domain": "a"}, "domain"),
        ("gan", 1, {"map": True}, "map"),
        ("gan", 1, {"domain": "b"}, "domain"),
    ],
)
def test_what_a_model_cannot_judge_is_said(name, count, params, field):
    with pytest.raises(InputError) as error:
        ask(model(name), torch.rand(count, 1, 16, 24), **params)
    assert error.value.field == field
