"""Which tricks help here? A small factorial experiment over switches of a GAN, with effects and intervals."""

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
from models.reports.core.base import Findings, Params, Progress, Report, Run, Subject
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
CHUNK = 25  # updates from one sign of life to the next
# Student's t, two-sided 90 %, by degrees of freedom; beyond 30 the normal's
T90 = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81, 1.8, 1.78, 1.77, 1.76, 1.75)


class GanAblationParams(Params):
    """What to try, and how long."""

    switches: list[str] = Field(
        ["label_smoothing", "instance_noise", "replay"],
        min_length=1,
        max_length=7,
        description=f"Tricks to turn on and off: {', '.join(SWITCHES)}.",
    )
    images: int = Field(12_800, ge=64, le=10**7, description="Length of each training.")
    repeats: int = Field(2, ge=1, le=16, description="Trainings of each combination, with different seeds.")


class GanAblationReport(Report):
    """The model gives the config; fresh models are trained on the dataset, a quarter to all of the combinations.

    Effects are ratios of the distance (FD) with a trick to that without, over all else; below 1 the trick helps.
    """

    name = "gan_ablation"
    aliases = ("hack_lab",)
    summary = "Trains small GANs with tricks on and off, and says which of them helped."
    needs = (HasPrior, Decodes, Discriminates)
    Params = GanAblationParams

    @classmethod
    def fits(cls, family: type[Family]) -> bool:
        return super().fits(family) and issubclass(family.Config, NetworkConfig)

    def run(self, subject: Subject, params: GanAblationParams, kept: Any = None) -> Run:
        plan = list(trials(params))
        for signs, _ in plan:
            configured(subject, signs, params)  # a clash is found before the first training
        measure = fidelity_of(subject.train, subject.validation, subject.model.device, subject.data)
        distances: list[float] = list(kept or [])
        while len(distances) < len(plan):
            signs, repeat = plan[len(distances)]
            training = started(subject, configured(subject, signs, params), repeat)
            updates = training.total // training.batch_size
            while training.images < training.total:
                with torch.enable_grad():
                    training.advance()
                if training.step % CHUNK == 0:
                    yield Progress(len(distances) * updates + training.step, len(plan) * updates)
            distances.append(distance(training, measure))
            yield Progress(len(distances) * updates, len(plan) * updates, list(distances))
        return findings(params, plan, distances, frechet(measure.floor, measure.wanted))


def configured(subject: Subject, signs: dict[str, int], params: GanAblationParams) -> NetworkConfig:
    """The model's own config with the tricks on or off. Raises ConfigError when two of them clash."""
    family, config = type(subject.model), subject.model.config.model_dump()
    for name, sign in signs.items():
        config |= SWITCHES[name][sign > 0]
    return family.resolve_config(family.Config(**(config | {"images": params.images})), subject.data)


def started(subject: Subject, config: NetworkConfig, repeat: int) -> Training:
    """A training of a new model; repeats share nothing, combinations of one repeat the seed."""
    seed = derive(subject.seed, "hack lab", repeat) % 2**31
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type(subject.model)(config, subject.data).to(subject.model.device)
    training = Training(model, subject.train, subject.validation, seed)
    model.train()
    return training


def distance(training: Training, measure: Fidelity) -> float:
    """FD of the trained model's samples."""
    model, context = training.family.eval(), training.context("evaluate")
    model.after_training(training.train, context)
    return frechet(measure.rows(model.sample_on_host(measure.count, context)), measure.wanted)


def trials(params: GanAblationParams) -> Generator[tuple[dict[str, int], int], None, None]:
    """(sign of each switch, repeat) of every training."""
    unknown = [name for name in params.switches if name not in SWITCHES]
    if unknown or len(set(params.switches)) < len(params.switches):
        raise ConfigError(
            f"{unknown[0]} is no switch; there is {', '.join(SWITCHES)}" if unknown else "a switch is named twice",
            field="params/switches",
        )
    table = design(len(params.switches))
    for repeat in range(params.repeats):
        for row in table:
            yield dict(zip(params.switches, row.tolist(), strict=True)), repeat


def design(count: int) -> np.ndarray:
    """(runs, count) of -1 and 1: orthogonal columns, each half on, of the smallest Hadamard matrix with room."""
    matrix = np.ones((1, 1), dtype=np.int64)
    while len(matrix) <= count:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    # single factors first, products of two after them: main effects are told apart, interactions are not
    order = sorted(range(1, len(matrix)), key=lambda column: (bin(column).count("1"), column))
    return matrix[:, order[:count]]


def effects(signs: np.ndarray, logs: np.ndarray) -> tuple[np.ndarray, float]:
    """(k,) slopes of log distance in signs (n, k) of -1 and 1, and the half width of their 90 % interval.

    The columns are orthogonal, so each slope is a plain mean; what they and the mean leave over is the noise.
    """
    count, width = signs.shape
    slopes = signs.T @ logs / count
    rest = logs - logs.mean() - signs @ slopes
    freedom = count - width - 1
    if freedom < 1:
        return slopes, math.inf
    spread = math.sqrt(float(rest @ rest) / freedom / count)
    return slopes, spread * (T90[freedom - 1] if freedom <= len(T90) else 1.7)


def findings(
    params: GanAblationParams, plan: list[tuple[dict[str, int], int]], distances: list[float], floor: float
) -> Findings:
    """The effects as ratios, each with its interval, and every training that was made."""
    signs = np.array([list(row.values()) for row, _ in plan], dtype=np.float64)
    slopes, half = effects(signs, np.log(np.maximum(distances, 1e-9)))
    table = []
    for name, slope in zip(params.switches, slopes.tolist(), strict=True):
        low, high = (math.exp(2 * (slope + side * half)) if math.isfinite(half) else None for side in (-1, 1))
        known = low is not None
        verdict = "unclear" if not known or low <= 1 <= high else "helps" if slope < 0 else "harms"
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
    note = "Ratios hold for this dataset, these networks and this length of training; early effects may turn round."
    return Findings(facts, {"effects": table, "trainings": runs}, notes=[note])
