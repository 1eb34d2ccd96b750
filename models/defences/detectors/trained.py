"""A detector trained on attacks: a small network on the image and on the changes of the predictions under squeezing
(features of Xu et al. 2018, classified by a network as in Metzen et al. 2017).
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

TRAINING_ATTACKS: dict[str, Attack] = {
    attack.name: attack for attack in (FGSM(), PGD(steps=10), DeepFool(), DDN(steps=50), Square(queries=200))
}
EPS_FRACTIONS = 0.25, 0.5, 0.75, 1.0
"""Fractions of eps used for the training images in turn, so that the detector does not learn a single size."""
CHUNK, MIN_IMAGES, MAX_VALUES = 50, 64, 24_000_000
"""Images per step of the preparation, minimum images of a training, maximum pixel values in memory."""
LEADING, CHANNELS, WIDTH, SAMPLED = 5, 16, 64, 14
EPOCHS, UPDATES, BATCH, RATE, DECAY = 20, 300, 128, 3e-3, 1e-3


class TrainedConfig(Quantile):
    """Attacks and images of the training."""

    attacks: Annotated[list[Literal[*TRAINING_ATTACKS]], Field(min_length=1, max_length=len(TRAINING_ATTACKS))] = Field(
        ["fgsm", "pgd", "deepfool"], description="Attacks it is trained on; others it must recognise without training."
    )
    eps: Eps | None = Field(
        None, description="Maximum size (linf) of bounded attacks. Default: 0.3 for grey line art, else 8/255."
    )
    images: int = Field(
        400, ge=MIN_IMAGES, le=20_000, description="Maximum number of clean images, from the training split."
    )


class Trained(Detector):
    """The score is the log odds of an attack. Images with random signs of the same size count as clean, so that random
    noise is not detected. All parts have a gradient (straight through roundings), so adaptive attacks are possible.

    `sight`, `judge`, `mean` and `spread` are keys of published state dicts.
    """

    name = "trained"
    summary = "A small network trained on attacks on this model, and on clean and noisy images."
    needs_training = True
    passes = 5
    attack_settings: ClassVar[dict[str, dict[str, Any]]] = {
        name: attack.config.model_dump(exclude_unset=True) for name, attack in TRAINING_ATTACKS.items()
    }
    Config = TrainedConfig

    def __init__(self, config: TrainedConfig, data: DataSpec):
        super().__init__(config, data)
        self.squeezers = squeezers()
        self.leading = min(LEADING, len(data.classes or ()) or LEADING)
        width = self.leading * (len(self.squeezers) + 1) + len(self.squeezers)
        stride = max(1, min(data.height, data.width) // SAMPLED)  # the mean over positions needs no higher resolution
        self.sight = nn.Sequential(
            nn.Conv2d(2 * data.channels, CHANNELS, 3, stride, 1), nn.ReLU(),
            nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.judge = nn.Sequential(nn.Linear(width + 2 * CHANNELS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Initialise the weights from the seed."""
        rng = generator(seed, "detector")
        for layer in (*self.sight, *self.judge):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=rng)
                nn.init.zeros_(layer.bias)

    def forward(self, network: Network, images: Tensor) -> Tensor:
        return self.log_odds(self.features(network, images), images)

    def features(self, network: Network, images: Tensor) -> Tensor:
        """(b, d): asinh of the log probabilities of the top classes for the image and each squeezed version, and the l1
        distances of their probabilities.
        """
        rng = RowRNG(torch.zeros(len(images), dtype=torch.int64, device=images.device))
        plain = network(images).log_softmax(1)
        order = plain.topk(self.leading, 1).indices
        squeezed = [network(squeeze(images, rng)).log_softmax(1) for squeeze in self.squeezers]
        chances = [
            torch.asinh(answer.gather(1, order)) for answer in (plain, *squeezed)
        ]  # compresses large values without a vanishing gradient
        distances = [(answer.exp() - plain.exp()).abs().sum(1, keepdim=True) for answer in squeezed]
        return torch.cat([*chances, *distances], 1)

    def log_odds(self, features: Tensor, images: Tensor) -> Tensor:
        """(b,): log odds of an attack, from the features and from the image with its high-pass part."""
        blurred = F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
        view = self.sight(torch.cat([images - 0.5, 4 * (images - blurred)], 1))
        return self.judge(torch.cat([(features - self.mean) / self.spread, view], 1))[:, 0]

    def fit(self, model: Family, network: Network, images: Tensor, seed: int) -> Iterator[tuple[int, int]]:
        images = images[: max(MIN_IMAGES, min(self.config.images, MAX_VALUES // images[0].numel()))]
        parts = images.split(CHUNK)
        examples: list[tuple[Tensor, Tensor, Tensor]] = []
        for number, part in enumerate(parts):
            examples += [(x, self.features(network, x), y) for x, y in self.examples(model, part, seed)]
            yield number + 1, len(parts) + 1
        self._train(*(torch.cat(column) for column in zip(*examples, strict=True)), seed)
        yield len(parts) + 1, len(parts) + 1

    def examples(self, model: Family, images: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (n, c, h, w) and targets (n,): 0 for clean and noisy images, 1 for successful adversarial images."""
        top = self.config.eps
        if top is None:
            top = 0.3 if is_line_art(images) else 8 / 255
        eps = torch.tensor(
            [top * EPS_FRACTIONS[row % len(EPS_FRACTIONS)] for row in range(len(images))], device=images.device
        )
        seeds = torch.arange(len(images), device=images.device) + seed
        threat, clean = ThreatModel("linf", eps, 256), torch.zeros(len(images), device=images.device)
        yield images, clean
        yield noise(images, threat, seeds), clean
        for name in self.config.attacks:
            attacked = successes(model, images, TRAINING_ATTACKS[name], threat, seeds)
            yield attacked, torch.ones(len(attacked), device=images.device)

    def _train(self, images: Tensor, features: Tensor, targets: Tensor, seed: int) -> None:
        """Logistic regression of the targets (n,) with equal weight of both classes."""
        if not bool(targets.any()):
            raise ConfigError("no attack succeeded on any image, so there is nothing to learn from", "detector/attacks",
                              "raise detector.eps, or choose squeezing")  # fmt: skip
        self.reset(seed)
        self.mean.copy_(features.mean(0))
        self.spread.copy_(features.std(0).clamp_min(1e-3))
        learned = [*self.sight.parameters(), *self.judge.parameters()]
        for parameter in learned:
            parameter.requires_grad_(True)
        updates = min(UPDATES, -(-EPOCHS * len(images) // BATCH))
        rng, weight = generator(seed, "lesson"), (1 - targets).sum() / targets.sum()

        def loss() -> Tensor:
            rows = torch.randint(len(images), (BATCH,), generator=rng).to(images.device)
            logits = self.log_odds(features[rows], images[rows])
            return F.binary_cross_entropy_with_logits(logits, targets[rows], pos_weight=weight)

        for _ in fit_small(learned, loss, updates, RATE, DECAY, total_steps=updates):
            pass
        for parameter in learned:
            parameter.requires_grad_(False)

    @property
    def unit(self) -> float:
        return 1.0


def successes(model: Family, images: Tensor, attack: Attack, threat: ThreatModel, seeds: Tensor) -> Tensor:
    """Adversarial 8-bit images (m, c, h, w) of those `images` on which the attack succeeds.

    Raises ConfigError if the attack needs gradients and the model has none.
    """
    if attack.access == "scores":
        access = ScoreOracle(model.logits)
    else:
        access = WhiteBox(model, lambda net, x: net.logits(x), shape=model.data.shape)
    criterion = Misclassified(model.logits(images).argmax(1))
    try:
        threat = ThreatModel(attack.norms[0], None, 256) if attack.minimal else threat
        result = attack.run(access, images, criterion, threat, seeds)
    except InputError as error:
        if error.field != "method":
            raise
        raise ConfigError(f"{attack.name}: {error.detail}", "detector/attacks", "use square") from None
    return result.images[result.success & ~result.initially_wrong]
