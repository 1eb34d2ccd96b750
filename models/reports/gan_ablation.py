"""A factorial experiment over GAN tricks: the effect of each on FD, with confidence intervals."""

import math
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from pydantic import Field

from models.capabilities import Decodes, Discriminates, HasPrior
from models.evaluation.fidelity import Fidelity, fidelity_of, frechet
from models.families.gans.presets import NetworkConfig
from models.family import Family
from models.reports.core.base import Params, Progress, Report, ReportResult, Run, Subject
from models.seeds import derive
from models.training.loop import Training
from models.types import ConfigError

SWITCHES: dict[str, tuple[dict, dict]] = {
    # name: (settings when off, settings when on)
    "sgd_discriminator": (
        {"discriminator_optimiser": "adam", "discriminator_learning_rate": None},
        {"discriminator_optimiser": "sgd", "discriminator_learning_rate": 0.01},
    ),
    "label_smoothing": ({"label_smoothing": 0.0}, {"label_smoothing": 0.1}),
    "label_flips": ({"label_flips": 0.0}, {"label_flips": 0.05}),
    "instance_noise": ({"instance_noise": 0.0}, {"instance_noise": 0.1}),
    "replay": ({"replay": 0}, {"replay": 1024}),
    "joint_batches": ({"separate_batches": True}, {"separate_batches": False}),
    "spherical_latents": ({"latent": "normal"}, {"latent": "sphere"}),
    "generator_dropout": (
        {"generator_dropout": 0.0, "dropout_when_sampling": False},
        {"generator_dropout": 0.2, "dropout_when_sampling": True},
    ),
    "max_pooling": ({"downsampling": "stride"}, {"downsampling": "max"}),
    "relu": ({"activation": "leaky_relu"}, {"activation": "relu"}),
    "saturating_loss": ({"loss": "non_saturating"}, {"loss": "minimax"}),
    "gradient_penalty": ({"r1": 0.0}, {"r1": 1.0}),
    "minibatch_stddev": ({"minibatch_stddev": False}, {"minibatch_stddev": True}),
    "diff_augment": ({"augment": "none"}, {"augment": "diff"}),
}
PROGRESS_EVERY = 25  # updates
# Student's t, two-sided 90 %, for 1 to 15 degrees of freedom; 1.7 from there on
T90 = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81, 1.8, 1.78, 1.77, 1.76, 1.75)


class GanAblationParams(Params):
    """The tricks, and the length and number of trainings."""

    switches: list[str] = Field(
        ["label_smoothing", "instance_noise", "replay"],
        min_length=1,
        max_length=7,
        description=f"Tricks to compare, on and off: {', '.join(SWITCHES)}.",
    )
    images: int = Field(12_800, ge=64, le=10**7, description="Length of each training, in images.")
    repeats: int = Field(2, ge=1, le=16, description="Number of trainings of each combination, with different seeds.")


class GanAblationReport(Report):
    """New models with the config of the given one are trained on the dataset, with combinations of the tricks.

    The combinations are a fractional factorial design. The effect of a trick is the ratio of FD with it to FD without,
    averaged over the combinations; below 1 the trick helps.
    """

    name = "gan_ablation"
    aliases = ("hack_lab",)
    summary = "Trains small GANs with tricks on and off, and measures which of them help."
    needs = (HasPrior, Decodes, Discriminates)
    Params = GanAblationParams

    @classmethod
    def fits(cls, family: type[Family]) -> bool:
        return super().fits(family) and issubclass(family.Config, NetworkConfig)

    def run(self, subject: Subject, params: GanAblationParams, progress_state: Any = None) -> Run:
        plan = list(trials(params))
        for signs, _ in plan:
            config_with(subject, signs, params)  # raises before the first training if two settings conflict
        fidelity = fidelity_of(subject.train, subject.validation, subject.model.device, subject.data)
        distances: list[float] = list(progress_state or [])
        while len(distances) < len(plan):
            signs, repeat = plan[len(distances)]
            training = new_training(subject, config_with(subject, signs, params), repeat)
            updates = training.total // training.batch_size
            while training.images < training.total:
                with torch.enable_grad():
                    training.advance()
                if training.step % PROGRESS_EVERY == 0:
                    yield Progress(len(distances) * updates + training.step, len(plan) * updates)
            distances.append(distance(training, fidelity))
            yield Progress(len(distances) * updates, len(plan) * updates, list(distances))
        return summarise(params, plan, distances, frechet(fidelity.floor, fidelity.reference))


def config_with(subject: Subject, signs: dict[str, int], params: GanAblationParams) -> NetworkConfig:
    """The model's config with each trick on (1) or off (-1). Raises ConfigError when two settings conflict."""
    family, config = type(subject.model), subject.model.config.model_dump()
    for name, sign in signs.items():
        config |= SWITCHES[name][sign > 0]
    return family.resolve_config(family.Config(**(config | {"images": params.images})), subject.data)


def new_training(subject: Subject, config: NetworkConfig, repeat: int) -> Training:
    """A training of a new model. The combinations of one repeat have the same seed, repeats have different ones."""
    seed = derive(subject.seed, "hack lab", repeat) % 2**31
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type(subject.model)(config, subject.data).to(subject.model.device)
    training = Training(model, subject.train, subject.validation, seed)
    model.train()
    return training


def distance(training: Training, fidelity: Fidelity) -> float:
    """FD of the samples of a finished training."""
    model, context = training.family.eval(), training.context("evaluate")
    model.after_training(training.train, context)
    return frechet(fidelity.rows(model.sample_on_host(fidelity.count, context)), fidelity.reference)


def trials(params: GanAblationParams) -> Generator[tuple[dict[str, int], int], None, None]:
    """For every training: the sign of each switch (1 is on, -1 is off), and the number of the repeat."""
    unknown = [name for name in params.switches if name not in SWITCHES]
    if unknown or len(set(params.switches)) < len(params.switches):
        raise ConfigError(
            f"unknown switch {unknown[0]!r}; choose from {', '.join(SWITCHES)}"
            if unknown
            else "switches must be different; you sent one twice",
            field="params/switches",
        )
    table = design(len(params.switches))
    for repeat in range(params.repeats):
        for row in table:
            yield dict(zip(params.switches, row.tolist(), strict=True)), repeat


def design(count: int) -> np.ndarray:
    """(runs, count) of -1 and 1: orthogonal, balanced columns of the smallest Hadamard matrix that has enough."""
    matrix = np.ones((1, 1), dtype=np.int64)
    while len(matrix) <= count:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    # columns of single factors first, then products of two: main effects are separable, interactions are not
    order = sorted(range(1, len(matrix)), key=lambda column: (bin(column).count("1"), column))
    return matrix[:, order[:count]]


def effects(signs: np.ndarray, logs: np.ndarray) -> tuple[np.ndarray, float]:
    """(k,) least-squares slopes of log distances (n,) in signs (n, k), and the half width of their 90 % interval.

    The columns are orthogonal, so each slope is a mean; the noise is estimated from the residuals.
    """
    count, width = signs.shape
    slopes = signs.T @ logs / count
    residuals = logs - logs.mean() - signs @ slopes
    freedom = count - width - 1
    if freedom < 1:
        return slopes, math.inf
    error = math.sqrt(float(residuals @ residuals) / freedom / count)
    return slopes, error * (T90[freedom - 1] if freedom <= len(T90) else 1.7)


def summarise(
    params: GanAblationParams, plan: list[tuple[dict[str, int], int]], distances: list[float], floor: float
) -> ReportResult:
    """The effects as ratios with their intervals, and all trainings."""
    signs = np.array([list(row.values()) for row, _ in plan], dtype=np.float64)
    slopes, half = effects(signs, np.log(np.maximum(distances, 1e-9)))
    table = []
    for name, slope in zip(params.switches, slopes.tolist(), strict=True):
        low, high = (math.exp(2 * (slope + side * half)) if math.isfinite(half) else None for side in (-1, 1))
        verdict = "unclear" if low is None or low <= 1 <= high else "helps" if slope < 0 else "harms"
        table.append({"switch": name, "ratio": math.exp(2 * slope), "low": low, "high": high, "verdict": verdict})
    runs = [
        {name: "on" if sign > 0 else "off" for name, sign in row.items()} | {"repeat": repeat, "fd": fd}
        for (row, repeat), fd in zip(plan, distances, strict=True)
    ]
    facts = {
        "trainings": len(plan),
        "images": params.images,
        "fd_floor": floor,
        "fd_median": float(np.median(distances)),
    }
    note = "The ratios hold for this dataset, architecture and training length; in longer trainings they may reverse."
    return ReportResult(facts, {"effects": table, "trainings": runs}, notes=[note])
