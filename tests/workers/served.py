"""Models that draw images, published untrained beside the dataset they stand for, and a front that serves them."""

import httpx
import torch

from app.core import catalog
from app.core.store.database import transaction
from app.main import create_app
from models.families.autoencoders.vae import VAE
from models.families.gans.conditional_gan import ConditionalGAN
from models.families.gans.gan import GAN
from models.families.gans.style_gan import StyleGAN
from models.types import DataSpec
from tests.workers.inference.test_over_http import Lane
from workers.data import open_dataset
from workers.store import model_rows
from workers.store import models as artifacts

SMALL = {"width": 4, "batch_size": 4, "images": 32}
MODELS = {"gan": (GAN, SMALL), "conditional": (ConditionalGAN, SMALL), "vae": (VAE, {"latent_dim": 2, "body": "mlp"})}
MODELS["style"] = (StyleGAN, SMALL | {"latent_dim": 8, "widest": 8})


def publish(model, facts: dict, name: str, digest: str | None) -> None:
    about = {"name": name, "seed": 0, "metrics": {}, "dataset": "small", "dataset_digest": digest}
    _, card = artifacts.publish(model, facts, about)
    with transaction() as conn:
        model_rows.register(conn, tenant="local", card=card, job_id=None)


def publish_all(digest: str) -> None:
    """Every one of MODELS, and `orphan`, which says nothing of its origin."""
    facts = open_dataset(digest).facts
    torch.manual_seed(0)
    for name, (family, config) in MODELS.items():
        publish(family.create(config, DataSpec.from_facts(facts)), facts, name, digest)
    publish(GAN.create(SMALL, DataSpec.from_facts(facts)), facts, "orphan", None)


def front() -> httpx.AsyncClient:
    """A client of a front whose calls are computed in this process."""
    transport = httpx.ASGITransport(create_app(catalog.load(), Lane()), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")
