"""Operations that look at a dataset, over HTTP, with the real host behind: what they find, keep and refuse."""

import base64
import io
import zipfile

import httpx
import numpy as np
import pytest

from app.core import catalog
from app.core.jobs import state as jobs
from app.core.store import blobs, database
from app.core.store import models as model_table
from app.core.store.database import reading, transaction
from app.main import create_app
from models.evaluation.clustering import Clustering
from tests import tiny
from tests.workers.inference.test_over_http import Lane
from tests.workers.trainings import finish, store_dataset
from workers import codecs
from workers.data import open_dataset
from workers.inference import host
from workers.jobs.job import RunningJob
from workers.jobs.kinds import report as reports
from workers.store import measurement_cache, model_rows
from workers.store import models as artifacts

pytestmark = pytest.mark.anyio
HERE = "/v1/models/tiny_autoencoder"


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def client(storage, sqlite_url, monkeypatch, anyio_backend):
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    for cache in (database.settings, database.engine, measurement_cache.measurements):
        cache.cache_clear()
    monkeypatch.setattr(artifacts, "families", lambda: tiny.FAMILIES)
    monkeypatch.setattr(host.devices, "use_threads", lambda wanted: None)
    monkeypatch.setattr(reports.devices, "use_threads", lambda wanted: None)
    digest = store_dataset("small", tenant="local")
    store_dataset("large", size=16, tenant="local")
    store_dataset("theirs", seed=3, tenant="somebody else")
    for kind in (tiny.TinyAutoencoder, tiny.TinyGenerator):
        facts = {"name": kind.name, "seed": 0, "metrics": {}, "dataset": "small", "dataset_digest": digest}
        _, card = artifacts.publish(tiny.build(kind), tiny.facts(), facts)
        with transaction() as conn:
            model_rows.register(conn, tenant="local", card=card, job_id=None)
    app = create_app(catalog.load(), Lane())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        client.digest = digest
        yield client
    host.host.cache_clear()
    database.engine().dispose()
    database.engine.cache_clear()


def picture(digest: str, index: int, split: str = "train") -> bytes:
    return codecs.encode_png(getattr(open_dataset(digest), split)["images"][index : index + 1])[0]


def tile(sheet: dict, number: int) -> np.ndarray:
    """(c, h, w): what a client cuts out of a sheet."""
    pixels = codecs.decode(base64.b64decode(sheet["image"]))
    x, y = number % sheet["columns"] * sheet["width"], number // sheet["columns"] * sheet["height"]
    return pixels[:, y : y + sheet["height"], x : x + sheet["width"]]


async def test_a_posted_image_of_the_dataset_finds_itself_first(client):
    answer = await client.post(f"{HERE}/search?neighbours=3", content=picture(client.digest, 4, "validation"))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    first = found["matches"][0]
    assert (first["split"], first["index"]) == ("validation", 4) and first["distance"] < 1e-4
    assert first["label"] in ("one", "two", "three") and len(found["matches"]) == 3
    assert [match["distance"] for match in found["matches"]] == sorted(match["distance"] for match in found["matches"])
    own = open_dataset(client.digest).validation["images"][4]
    assert np.array_equal(tile(found["thumbnails"], 0), own)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "pixels"])
async def test_distances_are_those_of_the_metric(client, metric):
    query = {"metric": metric, "neighbours": 4, "split": "train"}
    answer = await client.post(f"{HERE}/search", params=query, content=picture(client.digest, 0, "validation"))
    data = open_dataset(client.digest)
    rows = codecs.to_tensor(np.concatenate([data.validation["images"][:1], data.train["images"]]))
    if metric == "pixels":
        rows = rows.flatten(1) / 8
    else:
        rows = artifacts.load_model(answer.headers["x-model-digest"]).encode(rows)
    if metric == "cosine":
        rows = rows / rows.norm(dim=1, keepdim=True)
    wanted = (rows[1:] - rows[:1]).norm(dim=1).sort()
    matches = answer.json()["matches"]
    assert [match["index"] for match in matches] == wanted.indices[:4].tolist()
    assert [match["distance"] for match in matches] == pytest.approx(wanted.values[:4].tolist(), abs=1e-5)


async def test_a_row_of_the_dataset_finds_others(client):
    found = (await client.get(f"{HERE}/similar", params={"of": "validation", "index": 2, "neighbours": 5})).json()
    assert len(found["data"][0]["matches"]) == 5
    assert ("validation", 2) not in {(match["split"], match["index"]) for match in found["data"][0]["matches"]}
    absent = await client.get(f"{HERE}/similar", params={"index": 24})
    assert absent.status_code == 422 and absent.json()["errors"][0]["pointer"] == "index"


async def test_a_map_can_be_read_backwards_and_its_atlas_is_what_it_decodes_to(client):
    query = {"atlas": 3, "latents": True}
    found = (await client.get(f"{HERE}/map", params=query)).json()
    assert len(found["data"]) == 32 == len(found["latents"])
    axes, centre, codes = (np.array(found[name]) for name in ("axes", "centre", "latents"))
    places = np.array([[point["x"], point["y"]] for point in found["data"]])
    assert places == pytest.approx((codes - centre) @ axes.T, abs=1e-5)
    assert 0 < found["explained"] <= 1 and axes @ axes.T == pytest.approx(np.eye(2), abs=1e-5)
    place = found["atlas_x"][2], found["atlas_y"][0]  # the upper right
    decoded = await client.post(
        f"{HERE}/decode", json={"latents": (centre + place @ axes).tolist()}, headers={"Accept": "image/png"}
    )
    assert np.abs(codecs.decode(decoded.content).astype(int) - tile(found["atlas"], 2)).max() <= 1
    assert np.array_equal(tile(found["sprites"], 7), open_dataset(client.digest).train["images"][7])
    quality = found["quality"]
    assert {"map", "codes", "pixels", "pixel_pca", "most_frequent"} == quality["knn_accuracy"].keys()
    assert all(0 <= value <= 1 for value in quality["trustworthiness"].values())


async def test_a_map_is_one_address_for_the_same_bytes(client):
    query = {"dataset": "small", "images": 10}
    first, second = [await client.get(f"{HERE}/map", params=query) for _ in range(2)]
    assert first.content == second.content and first.headers["etag"] == second.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    again = await client.get(f"{HERE}/map", params=query, headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    other = await client.get(f"{HERE}/map", params=query | {"images": 11})
    assert other.headers["etag"] != first.headers["etag"]
    parts = await client.get(f"{HERE}/map", params=query, headers={"Accept": "application/zip"})
    assert set(zipfile.ZipFile(io.BytesIO(parts.content)).namelist()) == {"atlas.png", "sprites.png", "facts.json"}


@pytest.mark.parametrize(
    "path, status, field",
    [
        ("map?dataset=large", 422, "dataset"),
        ("map?dataset=theirs", 404, None),
        ("map?dataset=nobody", 404, None),
        ("map?dataset=mnist5k", 409, None),
        ("map?images=0", 422, "images"),
        ("map?images=5001", 422, "images"),
        ("map?embedding=tsne&images=3", 422, "images"),
        ("map?embedding=umap", 422, "embedding"),
        ("map?label=1", 422, "label"),
        ("similar", 422, "index"),
    ],
)
async def test_what_cannot_be_looked_at_is_refused_by_name(client, path, status, field):
    answer = await client.get(f"{HERE}/{path}")
    assert answer.status_code == status, answer.text
    if field:
        assert answer.json()["errors"][0]["pointer"] == field


async def test_a_dataset_of_another_size_names_the_remedy(client):
    problem = (await client.get(f"{HERE}/map?dataset=large")).json()
    assert "image_size=8x8" in problem["remedy"] and "1x16x16" in problem["detail"]


async def test_directions_move_a_code_from_one_class_mean_towards_another(client):
    query = {"from": "one", "to": "three", "alphas": "0,1,2"}
    image = picture(client.digest, 0)
    answer = await client.post(
        f"{HERE}/directions", params=query, content=image, headers={"Accept": "application/json"}
    )
    assert answer.status_code == 200, answer.text
    data = open_dataset(client.digest).train
    codes = artifacts.load_model(answer.headers["x-model-digest"]).encode(codecs.to_tensor(np.array(data["images"])))
    way = codes[data["labels"] == 2].mean(0) - codes[data["labels"] == 0].mean(0)
    wanted = [(codes[0] + alpha * way).tolist() for alpha in (0, 1, 2)]
    found = answer.json()
    assert np.array(found["latents"]) == pytest.approx(np.array(wanted), abs=1e-5)
    assert [item["alpha"] for item in found["data"]] == [0, 1, 2] and len(found["images"]) == 3
    row = await client.post(f"{HERE}/directions", params=query, content=image)
    assert codecs.decode(row.content).shape == (1, 8, 3 * 8 + 2 * 2)
    for name, value in (("from", "four"), ("to", 3)):
        refused = await client.post(f"{HERE}/directions", params=query | {name: value}, content=image)
        assert refused.status_code == 422 and refused.json()["errors"][0]["pointer"] == name, refused.text


async def test_samples_stand_beside_the_training_image_nearest_to_them(client):
    answer = await client.get(f"{HERE}/neighbours?n=3&seed=5", headers={"Accept": "application/json"})
    found = answer.json()
    assert len(found["data"]) == 3 and len(found["images"]) == 6
    images = [codecs.decode(base64.b64decode(image)) for image in found["images"]]
    training = open_dataset(client.digest).train["images"]
    for row, item in enumerate(found["data"]):
        errors = ((training / 255.0 - images[2 * row] / 255.0) ** 2).mean((1, 2, 3)) ** 0.5
        assert item["nearest"]["index"] == errors.argmin()
        assert item["nearest"]["distance"] == pytest.approx(errors.min(), abs=0.01)
        assert np.array_equal(images[2 * row + 1], training[errors.argmin()])
    labelled = await client.get("/v1/models/tiny_generator/neighbours?n=2&seed=5&label=1")
    assert labelled.status_code == 200, labelled.text


async def test_what_a_large_dataset_costs_is_refused_until_it_is_known(client, monkeypatch):
    monkeypatch.setattr(measurement_cache, "STORED_ROWS", 8)
    asked, enough = {"content": picture(client.digest, 0)}, measurement_cache.MAX_CALL_NUMBERS
    monkeypatch.setattr(measurement_cache, "MAX_CALL_NUMBERS", 100)
    refused = await client.post(f"{HERE}/search", **asked)
    assert refused.status_code == 422 and "respond-async" in refused.json()["remedy"]
    monkeypatch.setattr(measurement_cache, "MAX_CALL_NUMBERS", enough)
    first = await client.post(f"{HERE}/search", **asked)
    stored = [key for key, _ in blobs.list("models") if "/beside/" in key]
    assert len(stored) == 1 and stored[0].endswith(f"{client.digest}/codes-all-32.npy")
    monkeypatch.setattr(measurement_cache, "MAX_CALL_NUMBERS", 100)
    measurement_cache.measurements.cache_clear()  # another process
    again = await client.post(f"{HERE}/search", **asked)
    assert again.json()["matches"] == first.json()["matches"]


def report_on(dataset: str, **params) -> str:
    """A finished cluster report on the autoencoder; returns the job's id."""
    with reading() as conn:
        digest = model_table.resolve(conn, "local", "tiny_autoencoder").digest
    spec = {"report": "cluster", "model": f"tiny_autoencoder@{digest}", "dataset": dataset, "params": params}
    with transaction() as conn:
        job_id = jobs.accept(conn, tenant="local", kind="report", spec=spec)[0]["id"]
        job = RunningJob(jobs.claim(conn, job_id, "here"))
    finish(job, reports.run_report(job))
    return job_id


@pytest.mark.parametrize("method", ["spectral", "kmeans", "gmm"])
async def test_posted_images_fall_into_the_groups_of_a_report(client, method):
    job_id = report_on("small", clusters=3, method=method, split="all")
    data = open_dataset(client.digest)
    asked = [("image", (f"{row}.png", picture(client.digest, row), "image/png")) for row in range(24)]
    answer = await client.post(f"{HERE}/cluster", params={"report": job_id}, files=asked)
    assert answer.status_code == 200, answer.text
    items = answer.json()["data"]
    model = artifacts.load_model(answer.headers["x-model-digest"])
    codes = model.encode(codecs.to_tensor(np.concatenate([data.train["images"], data.validation["images"]])))
    wanted = Clustering.fit(codes, 3, method, seed=0).assign(codes)
    assert [item["cluster"] for item in items] == wanted[0][:24].tolist()
    assert [item["distance"] for item in items] == pytest.approx(wanted[1][:24].tolist(), abs=1e-3)
    assert all(0 < item["share"] <= 1 and item["label"] in ("one", "two", "three") for item in items)
    assert ("probability" in items[0]) == (method == "gmm") and any(item["inside"] for item in items)


async def test_groups_of_another_model_of_nobody_or_of_no_report_are_refused(client):
    job_id = report_on("small", clusters=2)
    content = picture(client.digest, 0)
    with transaction() as conn:
        card = artifacts.publish(tiny.build(tiny.TinyAutoencoder, seed=1), tiny.facts(), {"name": "other", "seed": 1})[
            1
        ]
        model_rows.register(conn, tenant="local", card=card, job_id=None)
        theirs = jobs.accept(conn, tenant="somebody", kind="report", spec={"report": "cluster"})[0]["id"]
        waiting = jobs.accept(conn, tenant="local", kind="report", spec={"report": "cluster"})[0]["id"]
    for path, report, status in (
        ("/v1/models/other", job_id, 422),
        (HERE, theirs, 404),
        (HERE, waiting, 409),
        (HERE, "nonsense", 404),
        (HERE, f"jobs/{job_id}/1/fitted.safetensors", 404),
    ):
        answer = await client.post(f"{path}/cluster", params={"report": report}, content=content)
        assert answer.status_code == status and answer.json()["errors"][0]["pointer"] == "report", answer.text
    missing = await client.post(f"{HERE}/cluster", content=content)
    assert missing.status_code == 422 and missing.json()["errors"][0]["pointer"] == "report"


async def test_an_image_unlike_the_data_is_an_anomaly_and_the_data_are_not(client):
    noise = np.random.default_rng(0).integers(0, 2, (1, 1, 8, 8)).astype(np.uint8) * 255
    strange = (await client.post(f"{HERE}/anomaly", content=codecs.encode_png(noise)[0])).json()
    assert strange["score"] > strange["threshold"] and strange["anomalous"] and strange["standing"] == 1
    assert strange["thresholds"].keys() == {"score", "model", "pca", "knn"} and strange["pca"] > 0
    assert codecs.decode(base64.b64decode(strange["heat_map"])).shape == (3, 8, 8)
    files = [("image", (f"{row}.png", picture(client.digest, row, "validation"), "image/png")) for row in range(8)]
    usual = (await client.post(f"{HERE}/anomaly", files=files)).json()["data"]
    assert not any(item["anomalous"] for item in usual)  # eight images are too few for the quantile of .95
    loose = (await client.post(f"{HERE}/anomaly", params={"share": 0.6}, files=files)).json()
    assert sum(item["anomalous"] for item in loose["data"]) == 2  # the sixth of eight is the threshold
    assert np.mean([item["score"] for item in usual]) == pytest.approx(0, abs=1e-4)


async def test_a_single_image_says_nothing_of_what_is_usual_but_has_a_map(client):
    store_dataset("one", count=1, seed=9, tenant="local")
    found = (await client.get(f"{HERE}/map?dataset=one&atlas=2&latents=true")).json()
    assert len(found["data"]) == 1 and found["explained"] == 1
    assert found["quality"]["trustworthiness"] == {"map": None, "codes": None, "pixel_pca": None}
    alone = await client.post(f"{HERE}/anomaly?dataset=one", content=picture(client.digest, 0))
    assert alone.status_code == 422 and alone.json()["errors"][0]["pointer"] == "dataset"
    assert (await client.get(f"{HERE}/similar?dataset=one&index=0")).json()["data"] == [{"matches": []}]
