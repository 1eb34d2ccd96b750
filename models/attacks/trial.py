"""One run of an attack as a table of rows: what is asked of the model, what it cost, the best image found so far.

Every tensor here has one row per image and no operation mixes rows, so an image's result is the same alone as in any
batch. An attack keeps its own row tensors in `state`; finished rows may be taken out between two steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from models.attacks.access import Access
from models.attacks.criterion import Criterion, pick
from models.attacks.draws import Draws
from models.attacks.norms import wide
from models.attacks.threat import SLACK, ThreatModel

Climb = Callable[[Tensor], Tensor]
"""Outputs (N, ...) -> (N,), to be increased."""

ROWS = ("x", "start", "seeds", "index", "done", "wrong", "broken", "best", "margin", "distance")
COUNTS = ("queries", "gradients", "steps", "flat")
KEPT = ("best", "margin", "distance", *COUNTS)


@dataclass
class Clean:
    """The forward pass over the clean images, made once: its graph and gradient serve whoever asks there again."""

    logits: Tensor
    leaf: Tensor | None = None
    graph: Tensor | None = None
    gradient: Tensor | None = None

    @classmethod
    def of(cls, access: Access, x: Tensor) -> "Clean":
        """Asks the model, with a graph where gradients can be seen."""
        if access.level < 2:
            return cls(access.outputs(x))
        leaf, graph = access.trace(x)
        return cls(graph.detach(), leaf, graph)


def probabilities(outputs: Tensor) -> Tensor:
    """(N,): the rows that a softmax seems to have gone over already."""
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return torch.zeros(len(outputs), dtype=torch.bool, device=outputs.device)
    return (outputs >= 0).all(1) & ((outputs.sum(1) - 1).abs() < 1e-4)


def as_logits(outputs: Tensor) -> Tensor:
    """Outputs, or their logarithm in rows that look like probabilities."""
    soft = probabilities(outputs)
    if not bool(soft.any()):
        return outputs
    return torch.where(soft[:, None], outputs.clamp_min(1e-38).log(), outputs)


class Trial:
    """The rows of a run. `minimal` seeks the smallest perturbation, else the smallest margin inside the ball.

    `early` lets a row rest once it is adversarial (inside the ball). `compact` allows finished rows to be taken out,
    which changes batch shapes and with them the last bits of some kernels. Rows marked in `rest` are left alone.
    """

    def __init__(
        self,
        access: Access,
        x: Tensor,
        criterion: Criterion,
        threat: ThreatModel,
        seeds: Tensor,
        *,
        minimal: bool = False,
        early: bool = True,
        compact: bool = True,
        clean: Clean | None = None,
        start: Tensor | None = None,
        rest: Tensor | None = None,
    ):
        self.access, self.criterion, self.threat = access, criterion, threat
        self.minimal, self.early, self.compact = minimal, early, compact
        self.x, self.seeds, self.start = x, seeds, x if start is None else start
        self.whole = x, criterion, threat
        self.index = torch.arange(len(x), device=x.device)
        self.done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.best = x.clone()
        self.margin, self.distance = (torch.full((len(x),), torch.inf, device=x.device) for _ in range(2))
        for name in COUNTS:
            setattr(self, name, torch.zeros(len(x), dtype=torch.int64, device=x.device))
        self.state = SimpleNamespace()
        # One query is kept back for the final test of the rounded image.
        self.budget = None if access.budget is None else access.budget - 1
        self._begin(clean)
        if rest is not None:
            self.done = self.done | rest
        self.first_wrong, self.first_broken, self.first_soft = self.wrong, self.broken, self.soft
        self.archive = {name: getattr(self, name).clone() for name in KEPT}

    def _begin(self, clean: Clean | None) -> None:
        """Ask about the clean images: rows wrong at the start, or without finite scores, are done."""
        self.queries += 1
        self.clean = clean = clean or Clean.of(self.access, self.x)
        self.criterion.check(clean.logits)
        self.broken = ~torch.isfinite(clean.logits).flatten(1).all(1)
        self.soft = probabilities(clean.logits) if self.access.level else torch.zeros_like(self.done)
        self.has_soft = bool(self.soft.any())
        margin = self._margin(self.read(clean.logits))
        self.wrong = margin < 0
        self.margin = torch.where(self.wrong, margin, self.margin)
        self.distance = torch.where(self.wrong, 0, self.distance)
        self.done |= self.wrong | self.broken
        self.clean_margin = margin

    @property
    def draws(self) -> Draws:
        """Random numbers of these rows."""
        return Draws(self.seeds)

    @property
    def radius(self) -> Tensor:
        """(N,) eps of these rows."""
        return self.threat.radius(self.x)

    def read(self, outputs: Tensor) -> Tensor:
        """Outputs as logits: where the model gives probabilities, their logarithm."""
        if not self.has_soft:
            return outputs
        return torch.where(self.soft[:, None], outputs.clamp_min(1e-38).log(), outputs)

    def _margin(self, logits: Tensor) -> Tensor:
        return self.criterion.margin(logits).nan_to_num(torch.inf, torch.inf, -torch.inf)

    def spend(self, count: int = 1) -> None:
        """Charge every active row; a row that cannot pay is done."""
        if self.budget is not None:
            self.done |= self.queries + count > self.budget
        self.queries += count * ~self.done

    def scores(self, x: Tensor) -> Tensor:
        """Logits of `x`, one query of each active row, without making `x` a candidate."""
        self.spend()
        return self.read(self._outputs(x))

    def look(self, x: Tensor) -> Tensor:
        """Margins of `x`, which becomes a candidate for the result; one query of each active row."""
        margin = self._margin(self.scores(x))
        self.offer(x, margin)
        return margin

    def look_many(self, x: Tensor) -> Tensor:
        """Margins (N, k) of k images per row (N, k, C, H, W), the best of which is a candidate; k queries a row."""
        self.spend(x.shape[1])
        margins = torch.full(x.shape[:2], torch.inf, device=x.device)
        active = (~self.done).nonzero()[:, 0]
        # Row by row unless shapes may vary: what a forward pass sees then never depends on the other rows.
        for group in (active,) if self.compact else active.split(1):
            if len(group):
                margins[group] = self._many(x, group)
        best = margins.argmin(1)
        self.offer(x[torch.arange(len(x), device=x.device), best], pick(margins, best))
        return margins

    def _many(self, x: Tensor, group: Tensor) -> Tensor:
        count = x.shape[1]
        outputs = self.access.outputs(x[group].flatten(0, 1))
        if self.has_soft:
            soft = self.soft[group].repeat_interleave(count)[:, None]
            outputs = torch.where(soft, outputs.clamp_min(1e-38).log(), outputs)
        found = self.criterion.take(group).repeat(count).margin(outputs)
        return found.nan_to_num(torch.inf, torch.inf, -torch.inf).view(-1, count)

    def slope(self, x: Tensor, climb: Climb | None = None) -> tuple[Tensor, Tensor]:
        """Margins of `x`, a candidate, and the gradient of `climb` (the criterion's loss): one forward, one backward.

        At the clean images the forward pass already made is used.
        """
        reuse = x is self.x and self.clean.graph is not None and len(x) == len(self.clean.logits)
        if reuse and climb is None and self.clean.gradient is not None:
            return self.clean_margin, self.clean.gradient
        if reuse:
            leaf, outputs = self.clean.leaf, self.clean.graph
        else:
            self.spend()
            leaf, outputs = self.access.trace(x)
        with torch.enable_grad():
            logits = self.read(outputs)
            value = self.criterion.loss(logits) if climb is None else climb(logits)
        gradient = self.threat.masked(self.access.gradient(leaf, value, keep=reuse).nan_to_num(0, 0, 0))
        self._count(gradient)
        if reuse:
            self.clean.gradient = gradient if climb is None else self.clean.gradient
            return self.clean_margin, gradient
        margin = self._margin(logits.detach())
        self.offer(x, margin)
        return margin, gradient

    def jacobian(self, x: Tensor, surfaces: Climb) -> tuple[Tensor, Tensor]:
        """Values (N, k) of `surfaces` at `x` and their gradients (N, k, C, H, W): one forward, k backward."""
        self.spend()
        leaf, outputs = self.access.trace(x)
        with torch.enable_grad():
            logits = self.read(outputs)
            values = surfaces(logits)
        count = values.shape[1]
        rows = [self.access.gradient(leaf, values[:, k], keep=k + 1 < count) for k in range(count)]
        gradients = torch.stack([self.threat.masked(row.nan_to_num(0, 0, 0)) for row in rows], 1)
        self.gradients += count * ~self.done
        self.offer(x, self._margin(logits.detach()))
        return values.detach(), gradients

    def offer(self, x: Tensor, margin: Tensor) -> None:
        """Keep `x` where it beats the best image so far."""
        if self.minimal:
            distance = self.threat.distance(self.x, x)
            hit = margin < 0
            better = torch.where(self.margin < 0, hit & (distance < self.distance), hit | (margin < self.margin))
        else:
            better = margin < self.margin
        better = better & ~self.done
        self.best = torch.where(wide(better, x), x, self.best)
        self.margin = torch.where(better, margin, self.margin)
        if self.minimal:
            self.distance = torch.where(better, distance, self.distance)
        if self.early and (not self.minimal or self.threat.bounded):
            inside = self.distance <= self.radius * (1 + SLACK) if self.minimal else True
            self.done = self.done | (better & (margin < 0) & inside)

    def propose(self, x: Tensor) -> None:
        """Make `x` the result of every active row unseen: the final test will be its first."""
        self.best = torch.where(wide(self.done, x), self.best, x)
        self.margin = torch.where(self.done, self.margin, torch.inf)

    def end_step(self) -> bool:
        """Between two steps: count, put finished rows away. False when no row is left."""
        self.steps += ~self.done
        left = int((~self.done).sum())
        if left == 0:
            return False
        if self.compact and left <= 0.75 * len(self.done):
            self.store()
            self.take((~self.done).nonzero()[:, 0])
        return True

    def store(self) -> None:
        """Write what was found into the archive of all rows."""
        for name in KEPT:
            self.archive[name][self.index] = getattr(self, name)

    def take(self, index: Tensor) -> None:
        """Go on with the rows at `index` alone."""
        self.criterion, self.threat = self.criterion.take(index), self.threat.take(index)
        for name in (*ROWS, *COUNTS, "soft", "clean_margin"):
            setattr(self, name, getattr(self, name)[index])
        for name, value in vars(self.state).items():
            if isinstance(value, Tensor) and value.ndim:
                setattr(self.state, name, value[index])

    def _outputs(self, x: Tensor) -> Tensor:
        if not self.compact or self.access.level == 2 or not bool(self.done.any()):
            return self.access.outputs(x)
        # An oracle may charge for every image it is shown: finished rows are not shown to it.
        active = (~self.done).nonzero()[:, 0]
        outputs = torch.zeros(len(x), *self.clean.logits.shape[1:], device=x.device)
        return outputs.index_copy(0, active, self.access.outputs(x[active])) if len(active) else outputs

    def _count(self, gradient: Tensor) -> None:
        self.gradients += ~self.done
        self.flat += ~gradient.flatten(1).any(1) & ~self.done
