"""Claims about autoencoders and variational autoencoders: reconstruction and likelihood."""

import torch

from models.data import Columns
from models.families.autoencoders.vae import VAE
from tests.benchmarks.claims import Found, Row, Subject, at_most, at_most_times, pixels

NLL_ROWS = 1000
NLL_DRAWS = 1000
NLL_NUMBERS = 40_000_000


def beats_pca(subject: Subject) -> Found:
    run = subject.trained("autoencoder", {"body": "conv", "latent_dim": 32, "width": 32, "epochs": 30})
    found = run.measured
    return Found(found["mse"], {"PCA": found["mse_pca"], "mean image": found["mse_mean_image"]}, run.note, run.short)


AE_BEATS_PCA = Row(
    "ae-beats-pca",
    "A convolutional autoencoder reconstructs unseen images better than PCA with as many numbers (32)",
    "MSE per pixel",
    at_most_times(0.30, "PCA"),
    beats_pca,
)

CLASSIC = {"body": "mlp", "hidden": [400], "latent_dim": 20, "likelihood": "bernoulli", "batch_size": 128}
"""The network 784-400-20 of Kingma & Welling's experiments."""


def nelbo(subject: Subject) -> Found:
    run = subject.trained("vae", CLASSIC | {"epochs": 100, "learning_rate": 2e-3})
    beside = {"mean image": independent_pixels(subject.train, subject.validation)}
    active = f"{run.measured['active_units']:.0f} of 20 units active, "
    return Found(run.measured["nelbo"], beside, active + run.note, run.short)


def independent_pixels(train: Columns, validation: Columns) -> float:
    """Nats of the mean image as a Bernoulli model of soft pixels: what knows no code at all."""
    mean = pixels(train).mean(0).clamp(1e-3, 1 - 1e-3)
    rows = pixels(validation)
    return float(-(rows * mean.log() + (1 - rows) * (1 - mean).log()).sum(1).mean())


VAE_NELBO = Row(
    "vae-nelbo",
    "VAE 784-400-20, soft pixels: -ELBO of unseen images; the target is for 60 000 training images",
    "nats",
    at_most(101.5),
    nelbo,
    suits=lambda spec: spec.shape == (1, 28, 28),
)


def binarised(columns: Columns, seed: int) -> Columns:
    """Every pixel drawn once as black or white with its grey value as the probability (Salakhutdinov & Murray 2008)."""
    images = torch.from_numpy(columns.columns["images"].copy())
    draws = torch.Generator().manual_seed(seed)
    black = torch.rand(images.shape, generator=draws) * 255 < images
    return Columns({"images": (black * 255).to(torch.uint8).numpy()})


def binarised_nll(subject: Subject) -> Found:
    train, validation = binarised(subject.train, 1), binarised(subject.validation, 2)
    config = {"body": "conv", "latent_dim": 40, "width": 32, "likelihood": "bernoulli", "epochs": 100}
    run = subject.trained("vae", config, share=0.8, train=train, validation=validation)
    rows = min(NLL_ROWS, len(validation))
    images = validation.head(rows)["images"]
    value = importance_sampled(run.model, images, NLL_DRAWS, subject)
    baseline = independent_pixels(train, validation)
    note = f"{value[1]} images, {NLL_DRAWS} draws each, -ELBO {run.measured['nelbo']:.1f}, {run.note}"
    return Found(value[0], {"independent pixels": baseline}, note, run.short)


@torch.no_grad()
def importance_sampled(model: VAE, images: torch.Tensor, draws: int, subject: Subject) -> tuple[float, int]:
    """Mean -log p of as many of the images as the budget allows, at least 50, and their number."""
    generator = torch.Generator().manual_seed(subject.seed)
    size = max(1, NLL_NUMBERS // (draws * model.data.pixels))
    found: list[torch.Tensor] = []
    for part in images.split(size):
        if sum(map(len, found)) >= 50 and subject.left < 0:
            break
        found.append(model.importance_nll(part, draws, generator))
    values = torch.cat(found)
    return float(values.double().mean()), len(values)


VAE_NLL = Row(
    "vae-binarised-nll",
    "VAE on statically binarised digits: importance-sampled -log p of unseen images; the target is for 60 000",
    "nats",
    at_most(90.0),
    binarised_nll,
    suits=lambda spec: spec.channels == 1 and spec.layout in ("plain", "labelled", "attributes"),
)
