"""Claims about looking at codes: a map of two numbers, groups, and a label that is obeyed."""

import torch

from models.evaluation import embedding, metrics
from models.evaluation.clustering import Clustering
from models.nn.plane import Plane
from models.reports.cluster import label_facts
from models.seeds import generator
from tests.benchmarks.claims import Found, Row, Subject, above, at_least, labelled
from tests.benchmarks.rows.codes import with_labels

LOOKED_AT = 1000
GROUPED = 2000


def map_of_two(subject: Subject) -> Found:
    """Leave-one-out accuracy of 5 neighbours on the codes of unseen images, beside PCA on pixels and pixels whole."""
    run = subject.trained("vae", {"latent_dim": 2, "epochs": 40})
    images, labels = with_labels(subject.validation, LOOKED_AT)
    pixels = images.flatten(1)
    rivals = {"PCA of pixels": Plane.through(pixels).place(pixels), "all pixels": pixels}
    beside = {name: 100 * embedding.leave_one_out(rows, labels) for name, rows in rivals.items()}
    codes = metrics.gather(subject.validation, run.model.encode, torch.device("cpu"), LOOKED_AT)
    return Found(100 * embedding.leave_one_out(codes, labels), beside, run.note, run.short)


def groups(subject: Subject) -> Found:
    """Accuracy of a mixture on codes, groups matched to classes at best, beside k-means there and on pixels."""
    run = subject.trained("vae", {"epochs": 30})
    images, labels = with_labels(subject.train, GROUPED)
    codes = metrics.gather(subject.train, run.model.encode, torch.device("cpu"), GROUPED)
    rows = {"gmm": (codes, "gmm"), "k-means on codes": (codes, "kmeans")}
    rows["k-means on pixels"] = images.flatten(1), "kmeans"
    count, found = len(subject.spec.classes), {}
    for name, (points, method) in rows.items():
        assigned = Clustering.fit(points, count, method, subject.seed).assign(points)[0]
        found[name] = 100 * label_facts(labels.numpy(), assigned.numpy())["accuracy"]
    return Found(found.pop("gmm"), found, run.note, run.short)


def obeyed(subject: Subject) -> Found:
    """Share of a conditional VAE's samples that a classifier of real images takes for the class asked for."""
    run = subject.trained("vae", {"conditional": True, "epochs": 30}, share=0.7)
    judge = subject.trained("classifier", {"epochs": 10}, share=0.3)
    draws = generator(subject.seed, "obeyed")
    noise, uniform = torch.randn(500, run.model.latent_dim, generator=draws), torch.rand(500, generator=draws)
    wanted = run.model.example_labels(len(noise))
    with torch.no_grad():
        samples = run.model.decode(run.model.draw(noise, uniform, wanted), wanted)
        share = (judge.model.logits(samples).argmax(1) == wanted).double().mean()
    beside = {"chance": 100 / len(subject.spec.classes), "the judge on real images": 100 * judge.measured["accuracy"]}
    return Found(100 * float(share), beside, f"{run.note} {judge.note}".strip(), run.short or judge.short)


MAP = Row(
    "vae-map",
    "A map of two numbers: 5 neighbours find the class of unseen images",
    "% right",
    above("PCA of pixels", by=10),
    map_of_two,
    suits=labelled,
)
GROUPS = Row(
    "vae-groups",
    "A Gaussian mixture on the codes of a VAE finds the classes again",
    "% right",
    above("k-means on pixels"),
    groups,
    suits=labelled,
)
OBEYED = Row(
    "conditional-vae-obeys",
    "Samples of a conditional VAE show the class that was asked for",
    "% right",
    at_least(90),
    obeyed,
    suits=labelled,
)
