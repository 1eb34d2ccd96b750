"""Claims about autoencoders and variational autoencoders: reconstruction and likelihood."""

import torch
from torch import Tensor

from models.data import Columns
from models.evaluation.fidelity import decode_prior, evenly, frechet, in_chunks
from models.families.autoencoders.vae import VAE
from models.seeds import generator
from tests.benchmarks.claims import Found, Row, Subject, above, at_least, at_most, at_most_times, labelled, pixels
from tests.benchmarks.rows.codes import codes_of, probe

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


JUDGE = {"body": "conv", "latent_dim": 64, "epochs": 10}
"""A frozen classifier of the training images, whose 64 features and confidence judge samples."""
CONFIDENT, JUDGED = 0.9, 1000
_JUDGED: dict[tuple, tuple] = {}
"""What `judged` found, for the two rows that share it."""


def judged(subject: Subject) -> tuple[dict[str, float], dict[str, float], str, bool]:
    """FD in the features of the judge less that of real images, and % read with confidence > .9, by kind of image."""
    key = subject.name, subject.seed, subject.minutes, subject.images
    if key not in _JUDGED:
        run = subject.trained("vae", {}, share=0.6)
        judge = subject.trained("classifier", JUDGE, share=0.7).model
        count = min(JUDGED, len(subject.validation))
        draws = generator(subject.seed, "judged")
        kinds = {"real": subject.train.rows(evenly(len(subject.train), count), ["images"])["images"]}
        for name in ("mixture", "prior"):
            kinds[name] = in_chunks(lambda size, name=name: decode_prior(run.model, size, draws, name), count)
        unseen = subject.validation.head(count)["images"]
        kinds["reconstructions"] = run.model.decode(run.model.encode(unseen))
        reference = in_parts(judge.trunk, unseen)
        distances = {name: frechet(in_parts(judge.trunk, images), reference) for name, images in kinds.items()}
        logits = {name: in_parts(judge.logits, images) for name, images in (kinds | {"real": unseen}).items()}
        shares = {
            name: 100 * float((rows.softmax(1).amax(1) > CONFIDENT).double().mean()) for name, rows in logits.items()
        }
        floor = distances.pop("real")
        excess = {name: distance - floor for name, distance in distances.items()}
        note = f"{run.model.config.components} components, {count} images on each side, floor {floor:.3g}; {run.note}"
        _JUDGED[key] = excess, shares, note, run.short
    return _JUDGED[key]


@torch.no_grad()
def in_parts(function, images: Tensor) -> Tensor:
    return torch.cat([function(part).flatten(1) for part in images.split(250)])


def samples_near(subject: Subject) -> Found:
    excess, _, note, short = judged(subject)
    return Found(excess.pop("mixture"), excess, note, short)


def samples_read(subject: Subject) -> Found:
    _, shares, note, short = judged(subject)
    return Found(shares.pop("mixture"), shares, note, short)


SAMPLES_NEAR = Row(
    "vae-samples-near",
    "Default samples of a VAE: Fréchet distance in a classifier's features, above that between real images",
    "excess FD",
    at_most_times(0.2, "prior"),
    samples_near,
    suits=labelled,
)
SAMPLES_READ = Row(
    "vae-samples-read",
    "Default samples of a VAE are read with confidence > .9 by a frozen classifier",
    "% read",
    at_least(88),
    samples_read,
    suits=labelled,
)


def default_error(subject: Subject) -> Found:
    """The default autoencoder, at the effort that the budget allows."""
    run = subject.trained("autoencoder", {"effort": "good"})
    note = f"body {run.model.config.body}, {run.model.latent_dim} numbers; {run.note}"
    return Found(run.measured["mse"], {"PCA": run.measured["mse_pca"]}, note, run.short)


AE_DEFAULT = Row(
    "ae-default-pca",
    "The default autoencoder at good effort beside PCA with as many numbers; from 12,000 images .21 x is asked",
    "MSE per pixel",
    at_most_times(0.29, "PCA"),
    default_error,
)


def sparse_probe(subject: Subject) -> Found:
    auto = subject.trained("autoencoder", {"effort": "lesson"}, share=0.6)
    run = subject.trained("sparse_autoencoder", {"effort": "lesson"})
    values = [probe(subject, lambda images, model=one.model: codes_of(model, images)) for one in (run, auto)]
    measured = run.measured
    note = f"L0 {measured['l0']:.1f} of {run.model.latent_dim}, MSE {measured['mse']:.5f}, PCA of as many axes "
    note += f"{measured['mse_pca']:.5f}, {measured['dead_units']} dead units; {run.note}"
    beside = {"autoencoder": values[1], "raw pixels": probe(subject, lambda images: images.flatten(1))}
    return Found(values[0], beside, note, run.short or auto.short)


SPARSE_PROBE = Row(
    "sparse-probe",
    "A linear probe of a default sparse code (at most 40 active units) beats one of a default autoencoder's code",
    "% right",
    above("autoencoder", by=3),
    sparse_probe,
    suits=labelled,
)


def contractive_error(subject: Subject) -> Found:
    size = {"latent_dim": max(8, min(32, subject.spec.pixels // 6))}
    runs = {name: subject.trained("contractive_autoencoder", size | more) for name, more in CONTRACTIONS.items()}
    run, free = runs["contractive"], runs["without the penalty"]
    values = {name: probe(subject, lambda images, one=one: codes_of(one.model, images)) for name, one in runs.items()}
    note = ", ".join(
        f"{name}: probe {values[name]:.1f} %, contraction per variance {one.measured['contraction_per_variance']:.3g}"
        for name, one in runs.items()
    )
    beside = {"PCA": run.measured["mse_pca"], "without the penalty": free.measured["mse"]}
    return Found(
        run.measured["mse"], beside, f"{size['latent_dim']} units; {note}; {run.note}", run.short or free.short
    )


CONTRACTIONS = {"contractive": {}, "without the penalty": {"contraction": 0.0}}
CONTRACTIVE_ERROR = Row(
    "cae-small-code",
    "A contractive autoencoder with few units reconstructs nearly as well as PCA with as many numbers",
    "MSE per pixel",
    at_most_times(1.1, "PCA"),
    contractive_error,
    suits=labelled,
)


def denoised(subject: Subject) -> Found:
    run = subject.trained("denoising_autoencoder", {"effort": "good", "noise": "masking"})
    found = run.measured
    beside = {"noisy": found["psnr_noisy"], "median filter": found["psnr_noisy"] + found["psnr_gain_median_filter"]}
    note = f"{run.model.config.reconstruction}, width {run.model.config.width}; {run.note}"
    return Found(found["psnr_denoised"], beside, note, run.short)


DENOISED = Row(
    "dae-default-half",
    "The default denoiser at good effort, half of the pixels masked; a small grey set",
    "dB PSNR",
    at_least(19.5),
    denoised,
)


def likelihood(subject: Subject) -> Found:
    run = subject.trained("vae", CLASSIC | {"epochs": 20, "learning_rate": 2e-3})
    found = run.measured
    beside = {"-ELBO of the same draws": found["nll_nelbo"]}
    interval = f"90 % interval {found['nll_low']:.1f} to {found['nll_high']:.1f}, {found['nll_images']:.0f} images"
    return Found(found["nll"], beside, f"{interval}, 64 draws each, -ELBO {found['nelbo']:.1f}; {run.note}", run.short)


VAE_LIKELIHOOD = Row(
    "vae-likelihood",
    "VAE 784-400-20, soft pixels: importance-sampled -log p of unseen images; the target is for 60 000",
    "nats",
    at_most(96),
    likelihood,
    suits=lambda spec: spec.shape == (1, 28, 28),
)
