"""What a vae says of an unfamiliar image by its bound, held against closed forms and the rest of the anomaly scores."""

import math

import pytest
import torch

from models.data import Columns
from models.evaluation.anomaly import bound
from models.evaluation.dataset_view import DatasetView
from models.families.autoencoders.vae import VAE
from models.losses import reconstruction as losses
from models.operations.anomaly import Anomaly, AnomalyParams
from models.reports.anomaly import AnomalyReport
from models.reports.core.base import Subject
from models.types import DataSpec
from tests.models.reports.test_reports import finish

ROWS = {"images": 40, "labels": 40}
DATA = DataSpec("labelled", 8, 8, 1, ("a", "b"), {"train": ROWS, "validation": ROWS})


def columns(seed: int) -> Columns:
    draws = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 90, (40, 1, 8, 8), generator=draws, dtype=torch.uint8)
    images[:20] += 160
    return Columns({"images": images.numpy(), "labels": (torch.arange(40) // 20).numpy()})


def model(**config) -> VAE:
    torch.manual_seed(0)
    return VAE.create({"latent_dim": 3, "body": "mlp", "hidden": [16]} | config, DATA).eval().requires_grad_(False)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "discretised_logistic"])
def test_negative_elbo_is_reconstruction_nll_plus_kl(likelihood):
    vae, images = model(likelihood=likelihood), columns(0).head(5)["images"]
    silent = [layer for layer in vae.decoder.modules() if isinstance(layer, torch.nn.Linear)][-1]
    torch.nn.init.zeros_(silent.weight)  # the picture no longer depends on the code, so that no draw matters
    mean, logvar = vae.posterior(images)
    wanted = vae.reconstruction_nll(vae.decoder(mean), images) + losses.gaussian_kl(mean, logvar).sum(1)
    assert torch.allclose(vae.negative_elbo(images, torch.randn(4, 3)), wanted)


def test_negative_elbo_bounds_nll_and_is_mean_over_draws():
    vae, images = model(), columns(0).head(20)["images"]
    noise = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    whole = vae.negative_elbo(images, noise)
    assert torch.allclose(whole, torch.stack([vae.negative_elbo(images, draw[None]) for draw in noise]).mean(0))
    assert whole.mean() > vae.importance_nll(images, 512, torch.Generator().manual_seed(2)).mean()


def test_an_anomaly_is_scored_by_the_bound_too():
    vae, home = model(), columns(1)
    images = torch.cat([columns(2).head(2)["images"], torch.eye(8)[None, None]])
    operation = Anomaly()
    operation.view = DatasetView(vae, "d", DATA, {"train": columns(0), "validation": home})
    params = AnomalyParams()
    rows = operation.rows(vae, images, params)
    facts = operation.result(vae, rows, operation.compute(vae, rows, params), params).facts
    usual, given = (bound(vae)(part).double() for part in (home.head(40)["images"], images))
    wanted = (given - usual.mean()) / usual.std(correction=0)
    assert [item["elbo"] for item in facts["items"]] == pytest.approx(wanted.tolist(), rel=1e-4)
    highest = ((usual - usual.mean()) / usual.std(correction=0)).sort().values
    rank = math.ceil(0.95 * (len(usual) + 1))  # a conformal quantile
    assert facts["thresholds"]["elbo"]["0.95"] == pytest.approx(float(highest[rank - 1]), rel=1e-4)


def test_the_report_judges_the_bound_beside_the_rest():
    train, home = columns(0), columns(1)
    who = Subject(model(), DATA, train, home, home, seed=0)
    found = finish(AnomalyReport, who, normal=["a"], split="validation")
    assert {f"{name}_auroc" for name in ("model", "pca", "knn", "elbo")} <= found.facts.keys()
    assert 0 <= found.facts["elbo_auroc"] <= 1 and "elbo" in found.tables["most_unusual"][0]
