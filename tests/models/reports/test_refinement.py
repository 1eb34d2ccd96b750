"""The refinement report against worlds whose answers are known: a perfect refiner, an idle one, one that lies."""

import numpy as np
import torch

from models.capabilities import Refines
from models.data import Columns
from models.evaluation import refinement
from models.evaluation.refinement import Domain, domain_labels, refinement_report
from models.families.refiner.refiner import Refiner
from models.reports.core.base import Subject
from models.reports.refinement import RefinementReport
from models.types import DataSpec
from tests.models.reports.test_reports import finish

SIDE = 12


def bars(labels: np.ndarray, seed: int) -> np.ndarray:
    """A bright bar whose place says the class, (n, 1, 12, 12) in levels."""
    draws = np.random.default_rng(seed)
    images = draws.integers(0, 40, (len(labels), 1, SIDE, SIDE)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, :, 4 * label : 4 * label + 3] += 150
    return images


def world(labelled: bool = True) -> tuple[DataSpec, Columns, Columns]:
    """The real domain is the simulated one as a negative."""
    splits = []
    for seed, count in enumerate((90, 45)):
        labels = np.arange(count) % 3
        columns = {"a": bars(labels, seed), "b": 255 - bars(labels, 10 + seed)}
        given = {"a_labels": labels, "b_labels": labels} if labelled else {}
        splits.append(Columns(columns | given))
    names = ("left", "middle", "right") if labelled else None
    spec = DataSpec("unpaired", SIDE, SIDE, 1, names, {"train": {"a": 90, "b": 90}, "validation": {"a": 45, "b": 45}})
    return spec, *splits


class Negative(Refines, torch.nn.Module):
    device = torch.device("cpu")

    def refine(self, images, noise=None):
        return 1 - images


class Idle(Negative):
    def refine(self, images, noise=None):
        return images


class Liar(Negative):
    """Realistic, but every class is shown as another."""

    def refine(self, images, noise=None):
        return 1 - images.roll(4, 3)


def report(model, labelled: bool = True):
    spec, train, validation = world(labelled)
    return finish(RefinementReport, Subject(model, spec, train, validation, validation, seed=0), updates=60)


def test_perfect_refiner_has_the_accuracies_of_real_images():
    facts = report(Negative()).facts
    assert facts["accuracy_refined"] > 0.95 < facts["accuracy_real"] and facts["accuracy_raw"] < 0.6
    assert facts["accuracy_linear_refined"] > 0.95 > facts["accuracy_linear_raw"]
    assert facts["domain_accuracy_raw"] > 0.95 and abs(facts["domain_accuracy_refined"] - 0.5) < 0.2
    assert facts["label_agreement"] > 0.95 and facts["moved_l1"] > 0.5


def test_an_idle_refiner_changes_no_number():
    facts = report(Idle()).facts
    assert facts["moved_l1"] == 0 and facts["label_agreement"] == facts["label_agreement_raw"] > 0.95
    for name in ("accuracy", "accuracy_linear", "domain_accuracy", "domain_accuracy_linear"):
        assert facts[f"{name}_refined"] == facts[f"{name}_raw"]


def test_a_refiner_that_swaps_classes_looks_real_and_loses_its_labels():
    facts = report(Liar()).facts
    assert facts["label_agreement"] < 0.2 and facts["accuracy_refined"] < 0.2
    assert abs(facts["domain_accuracy_refined"] - 0.5) < 0.2


def test_without_labels_only_the_domains_are_compared():
    result = report(Negative(), labelled=False)
    assert "accuracy_raw" not in result.facts and "domain_accuracy_refined" in result.facts
    assert "a_labels" in result.notes[0] and not result.curves
    _, train, validation = world(labelled=False)
    cheap = refinement_report(Negative().refine, train, validation, None)
    assert set(cheap) == {"moved_l1", "domain_accuracy_raw", "domain_accuracy_refined"}


def test_the_plot_and_the_sheet_show_each_source():
    result = report(Idle())
    assert set(result.curves[0].series) == {"raw", "refined", "colour", "real"}
    assert len(result.curves[0].x) == len(result.curves[0].series["raw"]) == refinement.CURVE_POINTS
    sheet = result.pictures["refined"]
    assert len(sheet) == 48 and torch.equal(sheet[:16], sheet[16:32])


def test_two_domains_have_equal_weight_for_any_sizes():
    images = torch.zeros(3, 1, 2, 2), torch.ones(7, 1, 2, 2)
    pair = domain_labels(Domain(images[0], None), Domain(images[1], None))
    assert pair.labels.tolist() == [0, 0, 0, 1, 1, 1] and pair.images.mean((1, 2, 3)).tolist() == [0, 0, 0, 1, 1, 1]


def test_labels_of_the_simulated_domain_alone_reach_a_step():
    spec, train, _ = world()
    batch = train.batch(seed=0, start=0, size=8)
    assert set(batch) == {"a", "b", "a_labels"}
    brightest = batch["a"].mean((1, 2)).unflatten(1, (3, 4)).mean(2).argmax(1)
    assert torch.equal(brightest, batch["a_labels"])
    assert Refiner.create({"images": 8}, spec).config.images >= 8
