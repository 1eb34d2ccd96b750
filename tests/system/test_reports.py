"""Reports as their users meet them: asked for over HTTP, followed as jobs, read as JSON and as pictures."""

import httpx
import pytest

from app.cli.client import Client
from app.core.errors import AnamorphError, InvalidRequest, UnsupportedOperation


@pytest.fixture(scope="module")
def coder(service) -> str:
    return service.train("autoencoder", "digits8", "reports-autoencoder", {"epochs": 3})["name"]


def ask(service, **body) -> dict:
    with Client(service.url) as client:
        return client.wait(client.ask("POST", "/v1/reports", json=body).json()["id"])


def test_clusters_of_codes_are_compared_with_the_classes(service, coder):
    result = ask(service, report="cluster", model=coder, dataset="digits8", seed=1)["result"]
    assert result["facts"]["clusters"] == 10
    assert result["facts"]["accuracy"] > 3 * result["facts"]["accuracy_one_cluster"]
    assert result["model"] == f"{coder}@{result['version']}"
    sheet = httpx.get(service.url + result["artifacts"]["clusters.png"], timeout=60)
    assert sheet.headers["content-type"] == "image/png" and sheet.content.startswith(b"\x89PNG")


def test_unusual_images_are_ranked_with_plots(service, coder):
    result = ask(service, report="anomaly", model=coder, dataset="digits8")["result"]
    scores = [row["score"] for row in result["tables"]["most_unusual"]]
    assert scores == sorted(scores, reverse=True)
    plot = httpx.get(service.url + result["artifacts"]["anomaly-scores.svg"], timeout=60)
    assert b"<svg" in plot.content


def test_a_report_that_cannot_work_is_refused_at_once(service, coder):
    with Client(service.url) as client:
        with pytest.raises(InvalidRequest, match="Unknown report") as caught:
            client.ask("POST", "/v1/reports", json={"report": "clusters", "model": coder, "dataset": "digits8"})
        assert "cluster" in caught.value.remedy
        classifier = service.train("classifier", "digits8", "reports-classifier", {"epochs": 1})["name"]
        with pytest.raises(UnsupportedOperation, match="Encodes"):
            client.ask("POST", "/v1/reports", json={"report": "cluster", "model": classifier, "dataset": "digits8"})


def test_a_wish_that_only_the_data_can_refuse_fails_with_its_cause(service, coder):
    with pytest.raises(AnamorphError, match="more than 500 images"):
        ask(service, report="cluster", model=coder, dataset="digits8", params={"clusters": 500})
