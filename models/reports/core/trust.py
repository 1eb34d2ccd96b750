"""Checks of whether a measured robust accuracy is credible: known causes of attacks that fail on non-robust models.

The first five checks are those of AutoAttack (Croce & Hein 2020). The others compare attacks with each other and with
an attack of unlimited eps, which must always succeed (Carlini et al. 2019).
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.attacks.core.access import WhiteBox
from models.attacks.core.logits import as_logits, look_like_probabilities
from models.attacks.core.threat import ThreatModel
from models.attacks.criteria.classification import MIN_ENTROPY, Misclassified
from models.attacks.pgd import PGD
from models.capabilities import predicted_classes

MAX_EXTRA = 0.002
"""Fraction of all images that a black-box or transfer attack may fool beyond the white box before a flag is raised."""
MAX_GAIN = 0.02
"""The same for one step against many steps, a smaller eps against a larger, and all restarts against the best."""
RESTARTS = 3
UNLIMITED_EPS = {"linf": 1.0, "l2": 1e3, "l1": 1e6}
"""Radii that contain every image."""


@dataclass(frozen=True)
class Flag:
    """One check. `raised` is None if it could not be measured; `says` is the measurement in a sentence."""

    name: str
    raised: bool | None
    says: str

    def facts(self) -> dict[str, Any]:
        return asdict(self)


class _AutogradCalls:
    """Counts calls of autograd within a forward pass, whose effect an attack through the model would miss."""

    def __enter__(self) -> "_AutogradCalls":
        self.calls, self.originals = 0, (torch.autograd.grad, torch.autograd.backward)

        def counted(function):
            def call(*args, **kwargs):
                self.calls += 1
                return function(*args, **kwargs)

            return call

        torch.autograd.grad, torch.autograd.backward = map(counted, self.originals)
        return self

    def __exit__(self, *_: object) -> None:
        torch.autograd.grad, torch.autograd.backward = self.originals


def of_model(model: nn.Module, access: WhiteBox, x: Tensor, labels: Tensor) -> list[Flag]:
    """Checks of the model itself on a few clean images `x` (N, C, H, W), without an attack."""
    with torch.no_grad():
        logits, repeated = access.exact(x), access.exact(x)
    difference = float((logits - repeated).abs().max()) if len(x) else 0.0
    probabilities = bool(look_like_probabilities(logits).all()) if len(x) else False
    with _AutogradCalls() as autograd, torch.enable_grad():
        access.exact(x)
    entropy, dead = entropy_and_zero_gradients(access, x, labels)
    right = predicted_classes(logits) == labels
    saturated = float((entropy.detach()[right] < MIN_ENTROPY).float().mean()) if bool(right.any()) else 0.0
    training = sum(part.training for part in model.modules())
    return [
        Flag(
            "randomised",
            difference > 1e-5,
            f"Logits differ by up to {difference:.3g} between two calls.",
        ),
        Flag("softmax", probabilities, f"The model outputs {'probabilities' if probabilities else 'logits'}."),
        Flag("zero_gradient", None, "Not measured: the model has no gradient.")
        if dead is None
        else Flag("zero_gradient", dead > 0.05, f"The gradient of cross-entropy is zero on {dead:.1%} of the images."),
        Flag("optimises_at_inference", autograd.calls > 0, f"A forward pass calls autograd {autograd.calls} times."),
        Flag("logit_scale", saturated > 0.5, f"On {saturated:.1%} of the images 1 - p rounds to 0 in float32."),
        Flag("training_mode", training > 0, f"{training} parts of the model are in training mode."),
    ]


def entropy_and_zero_gradients(access: WhiteBox, x: Tensor, labels: Tensor) -> tuple[Tensor, float | None]:
    """Cross-entropy (N,), and the fraction of images where its gradient is zero; None for a model without gradients."""
    leaf, outputs = access.outputs_with_graph(x)
    with torch.enable_grad():
        entropy = nn.functional.cross_entropy(as_logits(outputs), labels, reduction="none")
    if entropy.grad_fn is None:
        return entropy, None
    return entropy, float((~access.gradient(leaf, entropy).flatten(1).any(1)).float().mean())


def of_attacks(access: WhiteBox, x: Tensor, labels: Tensor, threat: ThreatModel, seeds: Tensor) -> list[Flag]:
    """Two small experiments with PGD: with unlimited eps, and from RESTARTS random starts."""
    if not access.differentiable(x[:1]):
        names = "unbounded_fails", "restart_spread"
        return [Flag(name, None, "Not measured: the model has no gradient.") for name in names]
    criterion, norm = Misclassified(labels), threat.norm
    unlimited = PGD(steps=40, norm=norm, eps=UNLIMITED_EPS[norm], step=0.05 if norm == "linf" else 0.5)
    result = unlimited.run(access, x, criterion, threat.at(UNLIMITED_EPS[norm]), seeds)
    attacked = ~(result.initially_wrong | result.nonfinite)
    fooled = float(result.success[attacked].float().mean()) if bool(attacked.any()) else 1.0
    restart = PGD(steps=20, norm=norm, eps=float(threat.eps))
    hits = torch.stack([restart.run(access, x, criterion, threat, seeds + turn).success for turn in range(RESTARTS)])
    gain = float(hits.any(0).float().mean() - hits.float().mean(1).max())
    return [
        Flag("unbounded_fails", fooled < 0.95, f"With unlimited eps, PGD-40 fools {fooled:.1%} of the images."),
        Flag(
            "restart_spread",
            gain > MAX_GAIN,
            f"{RESTARTS} random starts together fool {gain:.1%} more than the best.",
        ),
    ]


def between(fooled: dict[str, Tensor], kinds: dict[str, str], total: int) -> list[Flag]:
    """Checks that compare attacks. `fooled` (N, E) and `kinds` (step, walk, black or transfer) are by attack name."""

    def union(kind: str) -> Tensor | None:
        hits = [each for name, each in fooled.items() if kinds[name] == kind]
        return torch.stack(hits).any(0) if hits else None

    white, step, flags = union("walk"), union("step"), []
    for name, kind, what in (
        ("black_box_wins", "black", "Black-box attacks fool"),
        ("transfer_wins", "transfer", "Examples made on other models fool"),
    ):
        other = union(kind)
        if white is None or other is None:
            flags.append(Flag(name, None, "Not measured: needs a white-box attack of many steps and another kind."))
        else:
            more = int((other & ~white).sum(0).max())
            says = f"{what} {more} images that white-box attacks do not."
            flags.append(Flag(name, more > MAX_EXTRA * total, says))
    if step is None or white is None:
        flags.append(Flag("one_step_wins", None, "Not measured: needs an attack of one step and one of many."))
    else:
        ahead = max(0, int((step.sum(0) - white.sum(0)).max()))
        says = f"One step fools up to {ahead} images more than many steps."
        flags.append(Flag("one_step_wins", ahead > MAX_GAIN * total, says))
    if step is None:
        flags.append(Flag("label_leaking", None, "Not measured: needs an attack of one step."))
    else:
        drop = int((step.sum(0).cummax(0).values - step.sum(0)).max())
        says = f"In one step, a larger eps fools up to {drop} images fewer."
        flags.append(Flag("label_leaking", drop > MAX_GAIN * total, says))
    return flags


def verdict(flags: list[Flag], strong: bool) -> dict[str, Any]:
    """Confidence in the numbers. high: no flag is raised; medium: a check could not be measured; low: a flag is raised,
    or no attack has at least 20 steps (`strong` is false)."""
    raised = [flag for flag in flags if flag.raised]
    unknown = [flag.name for flag in flags if flag.raised is None and flag.name != "transfer_wins"]
    if raised:
        level, says = "low", f"Do not trust this number: {' '.join(flag.says for flag in raised)}"
    elif not strong:
        level, says = "low", "Do not trust this number: none of the attacks has at least 20 steps."
    elif unknown:
        level, says = "medium", f"No check speaks against the number, but {', '.join(unknown)} could not be measured."
    else:
        level, says = "high", "No check speaks against the number."
    return {"confidence": level, "says": says, "flags": [flag.facts() for flag in flags]}
