"""A classifier behind defences, as a model of its own: weights, settings and the detector's threshold in one file."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models import deadline, registry
from models.attacks.core.rng import RowRNG
from models.capabilities import Classifies, DetectsAdversarial
from models.defences.detector import Detector
from models.defences.randomized_smoothing import RandomlySmoothed
from models.defences.stage import Defence, read_config
from models.families.classifiers.adversarial_config import is_line_art
from models.family import ENGINE, Family
from models.types import Batch, ConfigError, DataSpec, Metrics, ModelError

DRAWS, BATCH = 16, 64


class Part(BaseModel):
    """A model inside this one: its origin and all that is needed to build it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    family: str
    config: dict[str, Any]
    data: dict[str, Any]
    engine: int = 1

    @classmethod
    def of(cls, model: Family, reference: str) -> Self:
        """The description of a model."""
        data = asdict(model.data) | {"columns": {}}
        config = model.config.model_dump(mode="json")
        return cls(model=reference, family=model.name, config=config, data=data, engine=ENGINE)

    def build(self) -> Family:
        """The model with new weights, in the architecture that it had at the end of its training."""
        kind, data = registry.models()[self.family], DataSpec.from_facts(self.data)
        family = kind.from_stored(self.config, data, self.engine)
        if hasattr(family.config, "images"):
            family.grow_to(family.total - family.config.batch_size)
        return family


class Stage(BaseModel):
    """A defence by name, its settings, and its own model if it has one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    settings: dict[str, Any] = {}
    part: Part | None = None


class DefendedConfig(BaseModel):
    """The base model, the stages in front of it, and the detector."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    base: Part
    stages: tuple[Stage, ...] = ()
    draws: int = Field(DRAWS, ge=1, le=1024)
    detector: Stage = Stage(kind="squeezing")


class Defended(Classifies, RandomlySmoothed, DetectsAdversarial, Family):
    """Gradients pass straight through stages without one, and random stages are averaged, so attacks are adaptive.

    The noise of an image is seeded by its 8-bit content: the same image gets the same answer, alone or in any batch,
    and different noise at each step of an attack.
    """

    name = "defended"
    summary = "A classifier behind defences."
    Config = DefendedConfig

    def __init__(self, config: DefendedConfig, data: DataSpec):
        super().__init__(config, data)
        self.base = config.base.build()
        self.stages = nn.ModuleList(stage_of(stage) for stage in config.stages)
        self.detector = detector_of(config.detector, data)

    @classmethod
    def create(cls, config: dict, data: DataSpec) -> Self:
        return cls(DefendedConfig(**config), data)

    def load_for_serving(self, state: dict[str, Tensor]) -> Self:
        missing, unexpected = self.load_state_dict(state, strict=False)
        if missing or unexpected:
            raise ModelError("the weights do not fit the parts of this defended model")
        return self.eval().requires_grad_(False)

    def logits(self, images: Tensor) -> Tensor:
        """(b, K): logits behind all stages; with a random stage the logarithm of the mean of `draws` softmaxes."""
        return logits_behind(self.base.logits, self.stages, images, self.config.draws)

    @property
    def sigma(self) -> float | None:
        """The sigma of noise if that is the first stage; behind another stage it certifies nothing about the image."""
        stages = self.config.stages
        return self.stages[0].config.sigma if stages and stages[0].kind == "noise" else None

    def voter(self, images: Tensor) -> Tensor:
        return logits_behind(self.base.logits, self.stages[1:], images, self.config.draws)

    def adversarial_score(self, images: Tensor) -> Tensor:
        return self.detector(self.base.logits, images)

    @property
    def threshold(self) -> float | None:
        return self.detector.threshold

    def fit_detector(self, images: Tensor, seed: int = 0) -> Iterator[tuple[int, int]]:
        """Train the detector on clean images (n, c, h, w) other than those of `calibrate`. Yields (done, total)."""
        return self.detector.fit(self, self.base.logits, images.to(self.device), seed)

    def calibrate(self, images: Tensor) -> None:
        """Set the detector's threshold from clean images (n, c, h, w)."""
        self.detector.adapt_to(is_line_art(images))
        parts = [self.adversarial_score(part.to(self.device)).cpu() for part in images.split(BATCH)]
        self.detector.calibrate(torch.cat(parts))

    def optimisers(self) -> dict:
        raise ConfigError("a defended model cannot be trained; train its base model and defend that", field="family")

    def step(self, batch: Batch, optimisers: dict, context) -> Metrics:
        raise ConfigError("a defended model cannot be trained; train its base model and defend that", field="family")


def defend(
    base: Family,
    reference: str,
    stages: list[dict[str, Any]],
    load: Callable[[str], Family],
    *,
    draws: int = DRAWS,
    detector: dict[str, Any] | None = None,
) -> Defended:
    """`base` behind `stages`, each {"kind": ..., settings}; `load` returns the models that stages name.

    The result is frozen and in eval mode; its detector has no threshold yet. Raises ConfigError for invalid stages.
    """
    if not isinstance(base, Classifies):
        raise ConfigError(f"only a classifier can be defended; {reference} is a {base.name}", field="model")
    entries = [read_stage(stage, registry.defences(), load, base.data, f"stages/{k}") for k, stage in enumerate(stages)]
    detector_stage, detector_model = read_stage(
        detector or {"kind": "squeezing"}, registry.detectors(), load, base.data, "detector"
    )
    config = DefendedConfig(
        base=Part.of(base, reference), stages=tuple(stage for stage, _ in entries), draws=draws, detector=detector_stage
    )
    model = Defended(config, base.data)
    model.base.load_state_dict(base.serving_state())
    parts = [(model.detector, detector_model), *zip(model.stages, (source for _, source in entries), strict=True)]
    for part, source in parts:
        if source is not None:
            part.model.load_state_dict(source.serving_state())
    return model.eval().requires_grad_(False).to(base.device)


def read_stage(
    entry: dict[str, Any], kinds: dict[str, type], load: Callable[[str], Family], data: DataSpec, where: str
) -> tuple[Stage, Family | None]:
    """One entry of a request as a Stage, and the model it names."""
    settings = {name: value for name, value in entry.items() if name != "kind"}
    kind = entry.get("kind")
    if kind not in kinds:
        raise ConfigError(f"unknown kind {kind!r}; choose one of {', '.join(kinds)}", field=f"{where}/kind")
    config = read_config(kinds[kind], settings, where)
    settings = config.model_dump(mode="json")
    if not kinds[kind].helper:
        return Stage(kind=kind, settings=settings), None
    model = load(config.model)
    if not isinstance(model, kinds[kind].helper):
        raise ConfigError(f"{kind} needs an autoencoder; {config.model} is a {model.name}", field=f"{where}/model")
    if model.data.shape != data.shape:
        mine, theirs = ("x".join(map(str, shape)) for shape in (data.shape, model.data.shape))
        raise ConfigError(
            f"{config.model} takes images of {theirs} (channels, height, width), the classifier of {mine}",
            field=f"{where}/model",
        )
    return Stage(kind=kind, settings=settings, part=Part.of(model, config.model)), model


def stage_of(stage: Stage) -> Defence:
    """The module of a stage, with new weights in its model."""
    kind = registry.defences()[stage.kind]
    return kind(read_config(kind, stage.settings), stage.part.build() if stage.part else None)


def detector_of(stage: Stage, data: DataSpec) -> Detector:
    """The detector for images like `data`, with new weights in its model and no threshold."""
    kind = registry.detectors()[stage.kind]
    config = read_config(kind, stage.settings, "detector")
    return kind(config, data, stage.part.build()) if stage.part else kind(config, data)


def logits_behind(network, stages: nn.ModuleList, images: Tensor, draws: int) -> Tensor:
    """Logits (b, K) of `network` behind `stages`: log(mean of `draws` softmaxes) if a stage is random."""
    rng = RowRNG(fingerprints(images))
    if not any(stage.random for stage in stages):
        for stage in stages:
            images = stage(images, rng)
        return network(images)
    log_probabilities = [
        _log_softmax_behind(network, stages, images, rng.seeds + number * STRIDE) for number in range(draws)
    ]
    return torch.stack(log_probabilities).logsumexp(0) - torch.tensor(float(draws)).log()


STRIDE = 1_000_003
"""Difference between the seeds of two draws."""


def _log_softmax_behind(network, stages: nn.ModuleList, images: Tensor, seeds: Tensor) -> Tensor:
    deadline.check()
    for stage in stages:
        images = stage(images, RowRNG(seeds))
    return network(images).log_softmax(1)


def fingerprints(images: Tensor) -> Tensor:
    """(b,) int64: a hash of the 8-bit levels of each image."""
    levels = (images.detach() * 255).round().long().flatten(1)
    weights = RowRNG(torch.zeros(1, dtype=torch.int64, device=images.device)).words((levels.shape[1],), "fingerprint")
    return (levels * weights).sum(1)
