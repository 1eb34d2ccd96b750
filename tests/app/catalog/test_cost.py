"""What reports cost before they are made: expressions, the answer of a dry run, refusals with the computed price."""

import pytest

from app.core import catalog as catalogs
from app.core.catalog import cost as prices
from tests.app.conftest import add_dataset, add_model

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("expression", "value"), [("2", 2), ("steps + 2", 12), ("restarts * (steps + 1)", 33), ("min(steps, 4) ** 0.5", 2)]
)
def test_expressions_are_sums_products_powers_and_bounds(expression, value):
    assert prices.evaluate(expression, {"steps": 10, "restarts": 3}) == value


@pytest.mark.parametrize("expression", ["__import__('os')", "steps.real", "nobody + 1", "[1]", "max(1, *x)", "'a'"])
def test_other_expressions_are_refused(expression):
    with pytest.raises(ValueError, match="not an expression"):
        prices.evaluate(expression, {"steps": 10, "x": [2]})


def test_every_attack_has_a_price_over_its_own_settings():
    entries = catalogs.load()
    for name, entry in entries["attacks"].items():
        config = {key: spec.get("default") for key, spec in entry["params"]["properties"].items()}
        forwards, backwards = prices.of_attack(entry, config, 10, 784)
        assert forwards >= 2 and backwards >= 0, name
        assert prices.of_attack(entry, config | {"budget": 2}, 10, 784)[0] == 2


@pytest.fixture
def app(app):
    """With the catalog of the release: its attacks and their prices."""
    app.state.catalog = catalogs.load()
    add_model("c", "classifier")
    add_dataset("squares")
    return app


BODY = {"model": "c", "dataset": "squares", "attacks": ["fgsm", {"method": "pgd", "steps": 9}], "eps": [0.1, "8/255"]}


async def test_the_short_form_is_the_robustness_report_with_its_price(client):
    job = (await client.post("/v1/reports", json=BODY)).json()
    asked = job["request"]
    assert asked["report"] == "robustness" and asked["params"]["eps"] == [0.1, "8/255"]
    assert asked["params"]["attacks"][0] == {"method": "fgsm", "budget": None}
    assert asked["params"]["attacks"][1]["steps"] == 9 and asked["params"]["attacks"][1]["restarts"] == 1
    images, radii = 20, 2
    assert asked["price"]["forwards"] == images * (radii * (2 + 12) + radii + 1) + images * 120
    assert asked["price"]["passes"] == asked["price"]["forwards"] + asked["price"]["backwards"]


async def test_a_dry_run_prices_and_makes_nothing(client):
    answer = await client.post("/v1/reports?dry_run=true", json=BODY)
    assert answer.status_code == 200 and answer.json()["price"]["passes"] > 0
    assert (await client.get("/v1/jobs")).json()["data"] == []


async def test_a_minimum_norm_attack_is_counted_once_for_all_eps(client):
    price = {}
    for count in (1, 5):
        body = BODY | {"attacks": ["fab"], "eps": [value / 255 for value in range(count)]}
        price[count] = (await client.post("/v1/reports?dry_run=true", json=body)).json()["price"]["forwards"]
    assert price[5] - price[1] == 20 * 4


async def test_a_report_above_the_limit_is_refused_with_its_price(client, home):
    home(max_passes_per_job=10_000)
    answer = await client.post("/v1/reports", json=BODY | {"attacks": ["autoattack"]})
    problem = answer.json()
    assert answer.status_code == 429 and problem["code"] == "quota-exceeded"
    assert problem["price"]["passes"] > problem["price"]["limit"] == 10_000
    assert f"{problem['price']['passes']:,}" in problem["detail"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"attacks": ["fgsn"]}, "/params/attacks/0"),
        ({"attacks": ["fgsm", {"method": "pgd", "stepz": 3}]}, "/params/attacks/1/stepz"),
        ({"attacks": [{"method": "pgd", "steps": 0}]}, "/params/attacks/0/steps"),
        ({"attacks": [{"method": "pgd", "eps": 0.1}]}, "/params/attacks/0/eps"),
        ({"attacks": ["ddn"]}, "/params/attacks/0"),
        ({"attacks": []}, "/params/attacks"),
        ({"eps": [-0.1]}, "/params/eps"),
        ({"eps": ["8/256"]}, "/params/eps"),
        ({"params": {"eps": [0.1]}}, "/eps"),
        ({"params": {"others": ["nobody"]}}, None),
    ],
)
async def test_invalid_parameters_of_reports_are_named(client, change, field):
    problem = (await client.post("/v1/reports", json=BODY | change)).json()
    assert problem["status"] in (404, 422), problem
    assert field is None or problem["errors"][0]["pointer"] == field


async def test_attacks_that_a_report_knows_by_name_stay_names_and_are_priced(client):
    add_model("s", "segmenter")
    add_dataset("masks", "segmentation")
    body = {"report": "segmentation_attack", "model": "s", "dataset": "masks", "eps": ["8/255"]}
    asked = (await client.post("/v1/reports", json=body | {"attacks": ["segpgd", "dag"]})).json()["request"]
    assert asked["params"]["attacks"] == ["segpgd", "dag"]
    images, run = 20, (20 + 3) + (100 + 2)
    assert asked["price"]["forwards"] == images * (1 + run + 2 * 2) + 6 * run
    refused = await client.post("/v1/reports", json=body | {"attacks": ["square"]})
    assert refused.status_code == 422 and "/params/attacks" in refused.text


@pytest.mark.parametrize("name", ["defences", "smoothing", "adversarial_detection"])
async def test_defences_and_certificates_have_a_price_that_grows_with_the_images(client, name):
    body = {"report": name, "model": "c", "dataset": "squares", "params": {"images": 4}}
    few, many = [
        (await client.post("/v1/reports?dry_run=true", json=body | {"params": {"images": count}})).json()["price"]
        for count in (4, 8)
    ]
    assert 0 < few["passes"] < many["passes"] <= 2 * few["passes"]
