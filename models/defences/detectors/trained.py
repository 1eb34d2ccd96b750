"""A detector that has learned from attacks: a small network on how the answer moves when the image is squeezed, and on
the image itself (the evidence of Xu et al. 2018, judged by a network as in Metzen et al. 2017).
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.attacks.core.access import ScoreOracle, WhiteBox
from models.attacks.core.base import Attack, Eps
from models.attacks.core.rng import RowRNG
from models.attacks.core.sweep import noise
from models.attacks.core.threat import ThreatModel
from models.attacks.criteria.classification import Misclassified
from models.attacks.ddn import DDN
from models.attacks.deepfool import DeepFool
from models.attacks.fgsm import FGSM
from models.attacks.pgd import PGD
from models.attacks.square import Square
from models.defences.detector import Detector, Network, Quantile
from models.defences.detectors.feature_squeezing import squeezers
from models.families.classifiers.adversarial_config import is_line_art
from models.family import Family
from models.nn.fit import fit_small
from models.seeds import generator
from models.types import ConfigError, DataSpec, InputError

TEACHERS: dict[str, Attack] = {
    attack.name: attack for attack in (FGSM(), PGD(steps=10), DeepFool(), DDN(steps=50), Square(queries=200))
}
SIZES = 0.25, 0.5, 0.75, 1.0
"""Shares of eps that the rows of a lesson are attacked with in turn: a detector should not know one size alone."""
CHUNK, FEWEST, NUMBERS = 50, 64, 24_000_000
LEADING, CHANNELS, WIDTH, SAMPLED = 5, 16, 64, 14
EPOCHS, UPDATES, BATCH, RATE, DECAY = 20, 300, 128, 3e-3, 1e-3


class Lesson(Quantile):
    """What it learns from."""

    attacks: Annotated[list[Literal[*TEACHERS]], Field(min_length=1, max_length=len(TEACHERS))] = Field(
        ["fgsm", "pgd", "deepfool"], description="Attacks it is shown. Others it will have to recognise unseen."
    )
    eps: Eps | None = Field(
        None, description="Largest size (linf) of those that have one. Empty: 0.3 for line art in grey, else 8/255."
    )
    images: int = Field(400, ge=FEWEST, le=20_000, description="At most so many clean images, from the training split.")


class Trained(Detector):
    """The score is the log odds of an attack. Random signs of the attacks' size count as clean: harmless noise should
    raise no alarm. All parts have a gradient, straight through what rounds, so an attack can know the detector.
    """

    name = "trained"
    summary = "A small network that was shown attacks on this very model, and clean and noisy images beside them."
    learns = True
    passes = 5
    lesson_settings: ClassVar[dict[str, dict[str, Any]]] = {
        name: attack.config.model_dump(exclude_unset=True) for name, attack in TEACHERS.items()
    }
    Config = Lesson

    def __init__(self, config: Lesson, data: DataSpec):
        super().__init__(config, data)
        self.squeezers = squeezers()
        self.leading = min(LEADING, len(data.classes or ()) or LEADING)
        width = self.leading * (len(self.squeezers) + 1) + len(self.squeezers)
        stride = max(1, min(data.height, data.width) // SAMPLED)  # a mean over places needs no more of them
        self.sight = nn.Sequential(
            nn.Conv2d(2 * data.channels, CHANNELS, 3, stride, 1), nn.ReLU(),
            nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.judge = nn.Sequential(nn.Linear(width + 2 * CHANNELS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Fresh weights that the seed decides."""
        draws = generator(seed, "detector")
        for layer in (*self.sight, *self.judge):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=draws)
                nn.init.zeros_(layer.bias)

    def forward(self, network: Network, images: Tensor) -> Tensor:
        return self.verdict(self.evidence(network, images), images)

    def evidence(self, network: Network, images: Tensor) -> Tensor:
        """(b, d): log chances of the leading classes, for the image and each squeezed one, and how far they moved."""
        draws = RowRNG(torch.zeros(len(images), dtype=torch.int64, device=images.device))
        plain = network(images).log_softmax(1)
        order = plain.topk(self.leading, 1).indices
        moved = [network(squeeze(images, draws)).log_softmax(1) for squeeze in self.squeezers]
        chances = [torch.asinh(answer.gather(1, order)) for answer in (plain, *moved)]  # no end where a slope dies
        away = [(answer.exp() - plain.exp()).abs().sum(1, keepdim=True) for answer in moved]
        return torch.cat([*chances, *away], 1)

    def verdict(self, evidence: Tensor, images: Tensor) -> Tensor:
        around = F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
        seen = self.sight(torch.cat([images - 0.5, 4 * (images - around)], 1))
        return self.judge(torch.cat([(evidence - self.mean) / self.spread, seen], 1))[:, 0]

    def learn(self, model: Family, network: Network, images: Tensor, seed: int) -> Iterator[tuple[int, int]]:
        images = images[: max(FEWEST, min(self.config.images, NUMBERS // images[0].numel()))]
        parts = images.split(CHUNK)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for number, part in enumerate(parts):
            found += [
                (shown, self.evidence(network, shown), guilty) for shown, guilty in self.lesson(model, part, seed)
            ]
            yield number + 1, len(parts) + 1
        self.fit(*(torch.cat(column) for column in zip(*found, strict=True)), seed)
        yield len(parts) + 1, len(parts) + 1

    def lesson(self, model: Family, images: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images with a 1 for each that is adversarial: clean, noisy, and those that an attack turned."""
        top = self.config.eps
        if top is None:
            top = 0.3 if is_line_art(images) else 8 / 255
        eps = torch.tensor([top * SIZES[row % len(SIZES)] for row in range(len(images))], device=images.device)
        seeds = torch.arange(len(images), device=images.device) + seed
        threat, harmless = ThreatModel("linf", eps, 256), torch.zeros(len(images), device=images.device)
        yield images, harmless
        yield noise(images, threat, seeds), harmless
        for name in self.config.attacks:
            hard = turned(model, images, TEACHERS[name], threat, seeds)
            yield hard, torch.ones(len(hard), device=images.device)

    def fit(self, images: Tensor, evidence: Tensor, guilty: Tensor, seed: int) -> None:
        """Logistic regression of `guilty` (n,) through the network, both sides with the same weight."""
        if not bool(guilty.any()):
            raise ConfigError("no attack turned any image, so there is nothing to learn from", "detector/attacks",
                              "raise detector.eps, or choose squeezing")  # fmt: skip
        self.begin(seed)
        self.mean.copy_(evidence.mean(0))
        self.spread.copy_(evidence.std(0).clamp_min(1e-3))
        learned = [*self.sight.parameters(), *self.judge.parameters()]
        for parameter in learned:
            parameter.requires_grad_(True)
        updates = min(UPDATES, -(-EPOCHS * len(images) // BATCH))
        draws, weight = generator(seed, "lesson"), (1 - guilty).sum() / guilty.sum()

        def loss() -> Tensor:
            rows = torch.randint(len(images), (BATCH,), generator=draws).to(images.device)
            logits = self.verdict(evidence[rows], images[rows])
            return F.binary_cross_entropy_with_logits(logits, guilty[rows], pos_weight=weight)

        for _ in fit_small(learned, loss, updates, RATE, DECAY, total_steps=updates):
            pass
        for parameter in learned:
            parameter.requires_grad_(False)

    @property
    def unit(self) -> float:
        return 1.0


def turned(model: Family, images: Tensor, attack: Attack, threat: ThreatModel, seeds: Tensor) -> Tensor:
    """8-bit images (m, c, h, w): those of `images` that the attack makes the model answer otherwise.

    Raises ConfigError for an attack that needs the gradient of a model that has none.
    """
    box = ScoreOracle(model.logits) if attack.access == "scores" else white_box(model)
    aim = Misclassified(model.logits(images).argmax(1))
    try:
        made = attack.run(
            box, images, aim, ThreatModel(attack.norms[0], None, 256) if attack.minimal else threat, seeds
        )
    except InputError as error:
        if error.field != "method":
            raise
        raise ConfigError(f"{attack.name}: {error.detail}", "detector/attacks", "let it learn from square") from None
    return made.images[made.success & ~made.initially_wrong]


def white_box(model: Family) -> WhiteBox:
    return WhiteBox(model, lambda net, x: net.logits(x), shape=model.data.shape)
