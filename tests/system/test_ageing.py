"""Ageing and refining as their users meet them: an upload with labels.csv, a training, calls, jobs, wrong wishes."""

import base64
import io
import zipfile

import httpx
import numpy as np
import pytest
from PIL import Image

from app.cli.client import Client
from app.core.errors import AnamorphError, InvalidDataset, InvalidRequest

SHORT = {"images": 160, "batch_size": 16, "width": 8, "latent_dim": 8}
GROUPS = ["0-18", "19-59", "60+"]


def face(age: int, person: int, seed: int = 0) -> bytes:
    """A bright square, larger with age, darker for every other person."""
    pixels = np.random.default_rng((age, person, seed)).integers(0, 20, (16, 16), np.uint8)
    pixels[2 : 4 + age // 8, 2 : 4 + age // 8] += np.uint8(120 + 40 * (person % 3))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def zipped(lines: list[str]) -> bytes:
    """Faces of six people at three ages each, beside `lines`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("labels.csv", "\n".join(lines))
        for person in range(6):
            for age in (10, 25, 70):
                archive.writestr(f"{person}-{age}.png", face(age, person))
    return file.getvalue()


def table(change: str = "{age}") -> list[str]:
    names = ["file,age,identity"]
    return names + [f"{p}-{age}.png,{change.format(age=age)},p{p}" for p in range(6) for age in (10, 25, 70)]


def upload(client: Client, name: str, lines: list[str]) -> dict:
    headers = {"Content-Type": "application/zip"}
    job = client.ask("POST", f"/v1/datasets?name={name}", content=zipped(lines), headers=headers).json()
    return client.wait(job["id"])["result"]


@pytest.fixture(scope="module")
def model(service) -> str:
    with Client(service.url) as client:
        try:
            client.get("/v1/datasets/faces-of-tests")
        except AnamorphError:
            upload(client, "faces-of-tests", table())
    return service.train("age_cgan", "faces-of-tests", "tests-ageing", SHORT)["name"]


def post(service, model: str, query: str, **headers: str) -> httpx.Response:
    address = f"{service.url}/v1/models/{model}/age{query}"
    given = {"Content-Type": "image/png", **headers}
    return httpx.post(address, content=face(25, 1, seed=9), headers=given, timeout=60)


def test_age_operation_returns_the_same_bytes_for_the_same_request(service, model):
    one, again = (post(service, model, "?to=60%2B&steps=5") for _ in range(2))
    assert one.status_code == 200 and one.headers["content-type"] == "image/png", one.text
    assert one.content == again.content and Image.open(io.BytesIO(one.content)).size == (16, 16)
    facts = post(service, model, "?to=60%2B&steps=5", Accept="application/json").json()
    assert facts["to"] == "60+" and 0 <= facts["identity_distance"] <= 2 and facts["from"] in GROUPS
    assert base64.b64decode(facts["image"]) == one.content
    for meant in ("65", "60+"):  # the plus of an address is a space: an age in years
        assert post(service, model, f"?to={meant}&steps=5").content == one.content


def test_all_ages_come_as_a_row_with_identity_distances(service, model):
    row = post(service, model, "?all=true&steps=5")
    assert Image.open(io.BytesIO(row.content)).size == (16 * len(GROUPS), 16)
    facts = post(service, model, "?all=true&steps=5", Accept="application/json").json()
    assert [age["to"] for age in facts["ages"]] == GROUPS and all("identity_distance" in age for age in facts["ages"])
    one = post(service, model, "?to=60%2B&steps=5").content
    assert base64.b64decode(facts["age-2"]) == one


def test_the_ways_to_find_a_face_differ_and_a_slow_one_may_be_a_job(service, model):
    found = {way: post(service, model, f"?to=60%2B&latents={way}").content for way in ("z0", "pixel", "identity")}
    assert len(set(found.values())) == 3
    deferred = post(service, model, "?to=60%2B", Prefer="respond-async")
    assert deferred.status_code == 202
    with Client(service.url) as client:
        result = client.wait(deferred.json()["id"])["result"]
    assert httpx.get(service.url + result["artifacts"]["images.png"], timeout=60).content == found["identity"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "to"),
        ("?to=soon", "to"),
        ("?to=60%2B&all=true", "all"),
        ("?to=60%2B&latents=w", "latents"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_by_name(service, model, query, field):
    answer = post(service, model, query)
    problem = answer.json()
    assert answer.status_code == 422 and answer.headers["content-type"] == "application/problem+json"
    assert field in (problem.get("field"), *(error["pointer"] for error in problem.get("errors", ())))


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["name,age", "1.png,3"], "labels.csv needs the column file"),
        (["file,years", "1.png,3"], "labels.csv needs the column file"),
        (table("-{age}"), "age must not be negative; found -"),
        (table("about {age}"), "age must be a number; found .about"),
    ],
)
def test_a_table_that_cannot_be_read_leaves_nothing_behind(service, lines, sentence):
    with Client(service.url) as client:
        with pytest.raises(InvalidDataset, match=sentence):
            upload(client, "faces-unreadable", lines)
        assert all(item["name"] != "faces-unreadable" for item in client.get("/v1/datasets")["data"])


def test_a_single_age_is_imported_with_a_warning_and_refused_for_ageing(service):
    with Client(service.url) as client:
        try:
            client.get("/v1/datasets/faces-of-one-age")
        except AnamorphError:
            result = upload(client, "faces-of-one-age", table("30"))
            assert any("age 30" in warning for warning in result["warnings"])
        body = {"family": "age_cgan", "dataset": "faces-of-one-age", "name": "never", "config": SHORT}
        with pytest.raises(InvalidDataset, match="same age"):
            client.wait(client.ask("POST", "/v1/trainings", json=body).json()["id"])


def domains() -> bytes:
    """Two domains of squares in two sizes, which are the classes; the second domain is grainy."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(60):
            for domain, grain in (("A", 0), ("B", 1)):
                age = (10, 70)[number % 2]
                archive.writestr(f"{domain}/{'small' if age == 10 else 'large'}/{number}.png", face(age, number, grain))
    return file.getvalue()


def test_refined_images_are_compared_with_raw_ones_in_a_report(service):
    with Client(service.url) as client:
        headers = {"Content-Type": "application/zip"}
        client.wait(client.ask("POST", "/v1/datasets?name=squares", content=domains(), headers=headers).json()["id"])
        config = {"images": 160, "batch_size": 16, "width": 8, "blocks": 1}
        refiner = service.train("refiner", "squares", "tests-refiner", config)["name"]
        body = {"report": "refinement", "model": refiner, "dataset": "squares", "params": {"updates": 30}}
        result = client.wait(client.ask("POST", "/v1/reports", json=body).json()["id"])["result"]
        assert {"accuracy_raw", "accuracy_refined", "label_agreement", "domain_accuracy_refined"} <= set(
            result["facts"]
        )
        assert {"refined.png", "accuracy-on-real-images.svg"} <= set(result["artifacts"])
        with pytest.raises(InvalidRequest):
            client.ask("POST", "/v1/reports", json=body | {"params": {"images": 1}})
