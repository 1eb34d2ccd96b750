"""Claims about codes: what denoising restores, what a linear probe and neighbours find in codes, what mixtures draw."""

import torch
from torch import Tensor

from models.capabilities import Encodes
from models.data import Columns
from models.evaluation import metrics
from models.evaluation.fidelity import Fidelity, frechet
from models.evaluation.metrics import Pca
from models.seeds import generator
from models.types import DataSpec
from tests.benchmarks.claims import Found, Row, Subject, Trained, above, at_least, at_most_times, labelled

PROBE_ROWS = 20_000
QUERIES = 5000
REFERENCE = 60_000


def restored(p: float, body: str):
    """A measure of PSNR on unseen images of which a share `p` of the pixels is set to zero."""

    def measure(subject: Subject) -> Found:
        config = {"noise": "masking", "p": p, "vary": False, "epochs": 30, "reconstruction": "bce", "body": body}
        config |= {"width": 32} if body == "unet" else {"latent_dim": 1000, "code": "sigmoid", "learning_rate": 1e-3}
        run = subject.trained("denoising_autoencoder", config)
        found = run.measured
        beside = {"noisy": found["psnr_noisy"], "median filter": found["psnr_noisy"] + found["psnr_gain_median_filter"]}
        return Found(found["psnr_denoised"], beside, run.note, run.short)

    return measure


DAE_HALF = Row(
    "dae-unet-half",
    "U-shaped denoising autoencoder, half of the pixels masked",
    "dB PSNR",
    at_least(21),
    restored(0.5, "unet"),
)
DAE_THIRD = Row(
    "dae-unet-third",
    "U-shaped denoising autoencoder, 30 % of the pixels masked",
    "dB PSNR",
    at_least(23),
    restored(0.3, "unet"),
)
DAE_CLASSIC = Row(
    "dae-classic-half",
    "Classic denoising autoencoder (one sigmoid layer of 1000 units), half of the pixels masked",
    "dB PSNR",
    above("noisy", by=5),
    restored(0.5, "linear"),
)


def with_labels(columns: Columns, most: int) -> tuple[Tensor, Tensor]:
    """Evenly spaced rows: images (n, c, h, w) and labels (n,)."""
    return tuple(torch.cat(list(metrics.spaced_rows(columns, name, most))) for name in ("images", "labels"))


@torch.no_grad()
def codes_of(model: Encodes, images: Tensor) -> Tensor:
    return torch.cat([model.encode(part.to(model.device)).cpu() for part in images.split(256)])


def probe(subject: Subject, coder) -> float:
    """Per cent of unseen images that a linear softmax on standardised `coder(images)` names rightly."""
    rows, labels = with_labels(subject.train, PROBE_ROWS)
    queries, truth = with_labels(subject.validation, QUERIES)
    count = len(subject.spec.classes)
    return 100 * metrics.linear_softmax_accuracy(coder(rows), labels, coder(queries), truth, count)


def raw_and_pca(subject: Subject) -> dict[str, float]:
    pca = Pca(torch.cat(list(metrics.spaced_rows(subject.train))).flatten(1), 32)

    def projected(images: Tensor) -> Tensor:
        return (images.flatten(1) - pca.mean) @ pca.basis.T

    return {"raw pixels": probe(subject, lambda images: images.flatten(1)), "PCA 32": probe(subject, projected)}


DENOISER = {"body": "linear", "latent_dim": 1000, "code": "sigmoid", "reconstruction": "bce"}
DENOISER |= {"noise": "masking", "p": 0.5, "learning_rate": 1e-3, "epochs": 15}


def denoising_features(subject: Subject) -> Found:
    run = subject.trained("denoising_autoencoder", DENOISER, share=0.5)
    value = probe(subject, lambda images: codes_of(run.model, images))
    return Found(value, raw_and_pca(subject), run.note, run.short)


FEATURES = Row(
    "dae-features",
    "A linear probe of 1000 units of a denoising autoencoder beats one of raw pixels",
    "% right",
    above("raw pixels", by=3),
    denoising_features,
    suits=labelled,
)
FEATURES_FULL = Row(
    "dae-features-full",
    "The same probe in absolute terms; the target is for 60 000 training images",
    "% right",
    at_least(97.5),
    denoising_features,
    suits=labelled,
)


def contractive_features(subject: Subject) -> Found:
    # one sigmoid layer, cross-entropy: the plain autoencoder, and with tied weights, without and with the penalty
    shape = {"body": "linear", "latent_dim": 512, "code": "sigmoid", "reconstruction": "bce", "epochs": 15}
    shape |= {"learning_rate": 1e-3}
    plain = subject.trained("autoencoder", shape, share=0.35)
    free = subject.trained("contractive_autoencoder", shape | {"contraction": 0.0}, share=0.4)
    run = subject.trained("contractive_autoencoder", shape, share=0.6)
    runs = {"tied alone": free, "autoencoder": plain, "contractive": run}
    found = {
        name: probe(subject, lambda images, model=one.model: codes_of(model, images)) for name, one in runs.items()
    }
    short = any(one.short for one in runs.values())
    return Found(found.pop("contractive"), found | raw_and_pca(subject), run.note, short)


CONTRACTIVE = Row(
    "cae-features",
    "A linear probe of a contractive autoencoder beats one of a plain autoencoder of the same size",
    "% right",
    above("autoencoder", by=1),
    contractive_features,
    suits=labelled,
)


def neighbours(subject: Subject) -> Found:
    run = subject.trained("vae", {"body": "mlp", "hidden": [400], "latent_dim": 20, "epochs": 30})
    rows, labels = with_labels(subject.train, REFERENCE)
    queries, truth = with_labels(subject.validation, QUERIES)
    pca = Pca(rows[:10_000].flatten(1), 20)

    def accuracy(coder) -> float:
        return 100 * metrics.knn_accuracy(coder(rows), labels, coder(queries), truth)

    beside = {"PCA 20": accuracy(lambda images: (images.flatten(1) - pca.mean) @ pca.basis.T)}
    return Found(accuracy(lambda images: codes_of(run.model, images)), beside, run.note, run.short)


NEIGHBOURS = Row(
    "vae-neighbours",
    "Five nearest neighbours in the codes of a VAE name images better than in as many numbers of PCA",
    "% right",
    above("PCA 20"),
    neighbours,
    suits=labelled,
)
NEIGHBOURS_FULL = Row(
    "vae-neighbours-full",
    "The same neighbours in absolute terms; the target is for 60 000 images to look among",
    "% right",
    at_least(96),
    neighbours,
    suits=labelled,
)


def drawn(run: Trained, count: int, seed: int) -> Tensor:
    draws, width = generator(seed, "drawn"), run.model.latent_dim
    codes = run.model.draw(torch.randn(count, width, generator=draws), torch.rand(count, generator=draws))
    with torch.no_grad():
        return torch.cat([run.model.decode(part).cpu() for part in codes.split(256)])


def mixture_samples(subject: Subject) -> Found:
    auto = subject.trained("autoencoder", {"latent_dim": 32, "epochs": 20}, share=0.5)
    prior = subject.trained("vae", {"latent_dim": 20, "epochs": 20}, share=0.6)
    classes = len(subject.spec.classes) if labelled(subject.spec) else None
    judge = Fidelity(subject.train, subject.validation, torch.device("cpu"), classes)
    distances = [frechet(judge.rows(drawn(run, judge.count, subject.seed)), judge.reference) for run in (auto, prior)]
    beside = {"floor (real against real)": frechet(judge.floor, judge.reference), "VAE prior": distances[1]}
    note = f"{judge.count} images on each side, features of a network trained on this dataset; {auto.note}"
    return Found(distances[0], beside, note, auto.short or prior.short)


def pictures(spec: DataSpec) -> bool:
    return spec.layout in ("plain", "labelled", "attributes")


# 12 and 30 beside a floor of 2.43 and a VAE prior of 155 in the features of a plain classifier: as ratios they carry
# over to other features
SAMPLES = Row(
    "ae-mixture-samples",
    "An autoencoder sampled through a mixture: Fréchet distance near that between real images",
    "FD",
    at_most_times(4.9, "floor (real against real)"),
    mixture_samples,
    suits=pictures,
)
SAMPLES_PRIOR = Row(
    "ae-mixture-against-prior",
    "The same samples beside those of a VAE from its prior",
    "FD",
    at_most_times(0.2, "VAE prior"),
    mixture_samples,
    suits=pictures,
)
