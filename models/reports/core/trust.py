"""Whether a number of robustness can be believed: what is known to make attacks fail without the model being robust.

The first five checks are those of AutoAttack (Croce & Hein 2020); the others compare attacks with each other and with
what no model can withstand.
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

SHARE = 0.002
"""Of the images: what one attack may find and another not before it means something."""
LEAK = 0.02
RESTARTS = 3
EVERYTHING = {"linf": 1.0, "l2": 1e3, "l1": 1e6}
"""Radii that hold every image there is."""


@dataclass(frozen=True)
class Flag:
    """`raised` is None where it could not be measured; `says` is the measurement in a sentence."""

    name: str
    raised: bool | None
    says: str

    def facts(self) -> dict[str, Any]:
        return asdict(self)


class _Counting:
    """Counts calls of autograd from inside a forward pass, which an attack through it would not see."""

    def __enter__(self) -> "_Counting":
        self.calls, self.kept = 0, (torch.autograd.grad, torch.autograd.backward)

        def counted(function):
            def call(*args, **kwargs):
                self.calls += 1
                return function(*args, **kwargs)

            return call

        torch.autograd.grad, torch.autograd.backward = map(counted, self.kept)
        return self

    def __exit__(self, *_: object) -> None:
        torch.autograd.grad, torch.autograd.backward = self.kept


def of_model(model: nn.Module, access: WhiteBox, x: Tensor, labels: Tensor) -> list[Flag]:
    """What a few clean images `x` say of the model itself, without any attack."""
    with torch.no_grad():
        once, again = access.exact(x), access.exact(x)
    spread = float((once - again).abs().max()) if len(x) else 0.0
    soft = bool(look_like_probabilities(once).all()) if len(x) else False
    with _Counting() as counted, torch.enable_grad():
        access.exact(x)
    entropy, dead = slopes(access, x, labels)
    right = once.argmax(1) == labels
    sure = float((entropy.detach()[right] < MIN_ENTROPY).float().mean()) if bool(right.any()) else 0.0
    training = sum(part.training for part in model.modules())
    return [
        Flag("randomised", spread > 1e-5, f"The same images asked about twice give logits up to {spread:.3g} apart."),
        Flag("softmax", soft, "The model gives probabilities." if soft else "The model gives logits."),
        Flag("zero_gradient", None, "Not measured: the model gives no gradient.")
        if dead is None
        else Flag("zero_gradient", dead > 0.05, f"Cross-entropy has no gradient on {dead:.1%} of the images."),
        Flag("optimises_at_inference", counted.calls > 0, f"A forward pass calls autograd {counted.calls} times."),
        Flag("logit_scale", sure > 0.5, f"On {sure:.1%} of the images float32 has no digits left of 1 - p."),
        Flag("training_mode", training > 0, f"{training} parts of the model are in training mode."),
    ]


def slopes(access: WhiteBox, x: Tensor, labels: Tensor) -> tuple[Tensor, float | None]:
    """Cross-entropy (N,), and the share of the images where its gradient is zero; None for a model that gives none."""
    leaf, outputs = access.outputs_with_graph(x)
    with torch.enable_grad():
        entropy = nn.functional.cross_entropy(as_logits(outputs), labels, reduction="none")
    if entropy.grad_fn is None:
        return entropy, None
    return entropy, float((~access.gradient(leaf, entropy).flatten(1).any(1)).float().mean())


def of_attacks(access: WhiteBox, x: Tensor, labels: Tensor, threat: ThreatModel, seeds: Tensor) -> list[Flag]:
    """What two small experiments with PGD say: without a radius that matters, and from several random starts."""
    if not access.differentiable(x[:1]):
        names = "unbounded_fails", "restart_spread"
        return [Flag(name, None, "Not measured: the model gives no gradient.") for name in names]
    criterion, norm = Misclassified(labels), threat.norm
    everything = threat.at(EVERYTHING[norm])
    free = PGD(steps=40, norm=norm, eps=EVERYTHING[norm], step=0.05 if norm == "linf" else 0.5)
    won = free.run(access, x, criterion, everything, seeds)
    some = ~(won.initially_wrong | won.nonfinite)
    reached = float(won.success[some].float().mean()) if bool(some.any()) else 1.0
    starts = PGD(steps=20, norm=norm, eps=float(threat.eps))
    hits = torch.stack([starts.run(access, x, criterion, threat, seeds + turn).success for turn in range(RESTARTS)])
    gain = float(hits.any(0).float().mean() - hits.float().mean(1).max())
    return [
        Flag("unbounded_fails", reached < 0.95, f"Without a radius that matters PGD-40 reaches {reached:.1%}."),
        Flag("restart_spread", gain > LEAK, f"{RESTARTS} random starts together find {gain:.1%} more than the best."),
    ]


def between(fooled: dict[str, Tensor], kinds: dict[str, str], total: int) -> list[Flag]:
    """What attacks say of each other. `fooled` (N, E) by name; `kinds` are step, walk, black or transfer."""

    def union(*wanted: str) -> Tensor | None:
        found = [hits for name, hits in fooled.items() if kinds[name] in wanted]
        return torch.stack(found).any(0) if found else None

    white, step, flags = union("walk"), union("step"), []
    for name, kind, what in (
        ("black_box_wins", "black", "Black boxes fool"),
        ("transfer_wins", "transfer", "Examples made on other models fool"),
    ):
        other = union(kind)
        if white is None or other is None:
            flags.append(Flag(name, None, "Not measured: it takes a white box of many steps and the other kind."))
        else:
            more = int((other & ~white).sum(0).max())
            says = f"{what} {more} images that the white box does not."
            flags.append(Flag(name, more > SHARE * total, says))
    if step is None or white is None:
        flags.append(Flag("one_step_wins", None, "Not measured: it takes an attack of one step and one of many."))
    else:
        ahead = max(0, int((step.sum(0) - white.sum(0)).max()))
        says = f"One step fools at most {ahead} images more than many steps."
        flags.append(Flag("one_step_wins", ahead > LEAK * total, says))
    if step is None:
        flags.append(Flag("label_leaking", None, "Not measured: it takes an attack of one step."))
    else:
        drop = int((step.sum(0).cummax(0).values - step.sum(0)).max())
        says = f"In one step a larger eps fools up to {drop} images less."
        flags.append(Flag("label_leaking", drop > LEAK * total, says))
    return flags


def verdict(flags: list[Flag], strong: bool) -> dict[str, Any]:
    """high: nothing speaks against the numbers; medium: something was not measured; low: they are not to be trusted."""
    raised = [flag for flag in flags if flag.raised]
    unknown = [flag.name for flag in flags if flag.raised is None and flag.name != "transfer_wins"]
    if raised:
        level, says = "low", f"The number is not to be trusted: {' '.join(flag.says for flag in raised)}"
    elif not strong:
        level, says = "low", "The number is not to be trusted: no attack of at least 20 steps is among these."
    elif unknown:
        level, says = "medium", f"Nothing speaks against the number, but {', '.join(unknown)} could not be measured."
    else:
        level, says = "high", "Nothing speaks against the number."
    return {"confidence": level, "says": says, "flags": [flag.facts() for flag in flags]}
