"""One run of an attack as a table of rows: what is asked of the model, what it cost, the best image found so far.

Every tensor here has one row per image and no operation mixes rows, so an image's result is the same alone as in any
batch. An attack keeps its own row tensors in `state`; finished rows may be taken out between two steps.
"""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from models.attacks.core.access import Access
from models.attacks.core.logits import Clean, logarithm, look_like_probabilities
from models.attacks.core.norms import expand_to
from models.attacks.core.rng import RowRNG
from models.attacks.core.threat import SLACK, ThreatModel
from models.attacks.criteria.classification import Criterion

LossFn = Callable[[Tensor], Tensor]
"""Logits (N, K) -> (N,), to be increased."""

ROWS = (
    "x", "start", "seeds", "index", "done", "paused", "probabilities", "value", "last_logits", "clean_margin",
    "clean_logits",
)  # fmt: skip
COUNTS = ("queries", "gradients", "steps", "zero_gradient")
KEPT = ("best", "margin", "distance", *COUNTS)
KEEP = 0.9
"""Finished rows are put away when at most this share is left: moving the rows costs far less than a pass."""
AT_ONCE = 4096
"""Images of one forward pass when an attack asks about many per row."""


class BudgetExhausted(Exception):
    """No image can pay for another query: the run is over."""


class AttackRun:
    """The rows of a run.

    `minimal` seeks the smallest perturbation, else the smallest margin inside the ball. `stop_on_success` ends a row
    once it is adversarial inside the ball. `compact` allows finished rows to be removed, which changes batch shapes and
    with them the last bits of some kernels. `quantise_inputs` shows the model rounded images only. Rows in `skip` are
    not attacked.
    """

    minimal = False
    stop_on_success = True
    compact = True
    quantise_inputs = False

    def __init__(
        self,
        access: Access,
        x: Tensor,
        criterion: Criterion,
        threat: ThreatModel,
        seeds: Tensor,
        clean: Clean | None = None,
        start: Tensor | None = None,
        skip: Tensor | None = None,
    ):
        self.access, self.criterion, self.threat = access, criterion, threat
        self.x, self.seeds, self.start = x, seeds, x if start is None else start
        self.whole = x, criterion, threat
        self.index = torch.arange(len(x), device=x.device)
        self.done = torch.zeros(len(x), dtype=torch.bool, device=x.device) if skip is None else skip.clone()
        self.paused = torch.zeros_like(self.done)
        self.best = x.clone()
        self.margin, self.distance = (torch.full((len(x),), torch.inf, device=x.device) for _ in range(2))
        for name in COUNTS:
            setattr(self, name, torch.zeros(len(x), dtype=torch.int64, device=x.device))
        self.state = SimpleNamespace()
        # One query is kept back for the final test of the rounded image.
        self.budget = None if access.budget is None else access.budget - 1
        self._begin(clean)
        self.archive: dict[str, Tensor] | None = None

    def _begin(self, clean: Clean | None) -> None:
        """Ask about the clean images: rows wrong at the start, or without finite scores, are done."""
        self.queries += 1
        self.clean = clean = clean or Clean.of(self.access, self.x)
        self.criterion.check(clean.logits)
        self.probabilities = look_like_probabilities(clean.logits) if self.access.level else torch.zeros_like(self.done)
        self.any_probabilities = bool(self.probabilities.any())
        self.clean_logits = self.read(clean.logits)
        self.clean_margin = self.margin_of(self.clean_logits)
        self.nonfinite = ~torch.isfinite(clean.logits).flatten(1).all(1)
        self.wrong = (self.clean_margin < 0) & ~self.nonfinite
        self.margin = torch.where(self.wrong, self.clean_margin, self.margin)
        self.distance = torch.where(self.wrong, 0, self.distance)
        self.done |= self.wrong | self.nonfinite
        self.clean_probabilities = self.probabilities
        self.value, self.last_logits = self.clean_margin, self.clean_logits

    @property
    def draws(self) -> RowRNG:
        """Random numbers of these rows."""
        return RowRNG(self.seeds)

    @property
    def radius(self) -> Tensor:
        """(N,) eps of these rows."""
        return self.threat.radius(self.x)

    @property
    def active(self) -> Tensor:
        """(N,): the rows that take part in the present step."""
        return ~(self.done | self.paused)

    def read(self, outputs: Tensor) -> Tensor:
        """Outputs as logits: where the model gives probabilities, their logarithm."""
        return logarithm(outputs, self.probabilities) if self.any_probabilities else outputs

    def margin_of(self, logits: Tensor) -> Tensor:
        """The criterion's margin; an answer that is no number counts as a failure."""
        return self.criterion.margin(logits).nan_to_num(torch.inf, torch.inf, -torch.inf)

    def charge(self, count: int = 1) -> None:
        """Charge every active row; a row that cannot pay is done. Raises Spent when none is left."""
        if self.budget is not None:
            self.done = self.done | (self.active & (self.queries + count > self.budget))
            if bool(self.done.all()):
                raise BudgetExhausted
        self.queries += count * self.active

    def logits(self, x: Tensor) -> Tensor:
        """Logits of `x`, one query of each active row, without making `x` a candidate."""
        self.charge()
        return self.read(self._outputs(self.as_shown_to_model(x)))

    def evaluate(self, x: Tensor) -> Tensor:
        """Margins of `x`, which becomes a candidate for the result; one query of each active row."""
        margin = self.margin_of(self.logits(x))
        self.update_best(x, margin)
        return margin

    def margins_of(self, images: Tensor, places: Tensor) -> Tensor:
        """Margins (P,) of images of the rows `places` (P,), one query each, none of them a candidate yet."""
        self.queries = self.queries.index_add(0, places, torch.ones_like(places))
        parts = [self.access.outputs(part) for part in self.as_shown_to_model(images, places).split(AT_ONCE)]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        logits = logarithm(logits, self.probabilities[places]) if self.any_probabilities else logits
        return self.criterion.take(places).margin(logits).nan_to_num(torch.inf, torch.inf, -torch.inf)

    def evaluate_many(self, make: Callable[[Tensor], Tensor], count: int) -> Tensor:
        """Margins (N, count) of many images per row, the best of which is a candidate; `count` queries a row.

        `make` gives the images (n, count, C, H, W) of the rows whose places (n,) it is handed.
        """
        self.charge(count)
        margins = torch.full((len(self.x), count), torch.inf, device=self.x.device)
        places = self.active.nonzero()[:, 0]
        best = self.x.clone()
        # Row by row unless shapes may vary: what a forward pass sees then never depends on the other rows.
        for group in places.split(max(1, AT_ONCE // count) if self.compact else 1) if len(places) else ():
            images = make(group)
            flat = self.as_shown_to_model(images.flatten(0, 1), group.repeat_interleave(count))
            logits = self.access.outputs(flat)
            if self.any_probabilities:
                logits = logarithm(logits, self.probabilities[group].repeat_interleave(count))
            found = self.criterion.take(group).repeat(count).margin(logits)
            margins[group] = found.nan_to_num(torch.inf, torch.inf, -torch.inf).view(-1, count)
            best[group] = images[torch.arange(len(group), device=group.device), margins[group].argmin(1)]
        self.update_best(best, margins.amin(1))
        return margins

    def value_and_grad(
        self,
        x: Tensor,
        loss_fn: LossFn | None = None,
        through: Callable[[Tensor], Tensor] | None = None,
        update_best: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Margins of `x` and the gradient of `loss_fn` (the criterion's loss): one forward pass, one backward.

        `x` becomes a candidate for the result, unless `through` is given (the model then sees `through(x)`) or
        `update_best` is false. At the clean images the forward pass already made is used. The value of `loss_fn` is
        left in `value`.
        """
        first = x is self.x and through is None and self.clean.graph is not None and len(x) == len(self.clean.logits)
        if first and loss_fn is None and self.clean.gradient is not None:
            self.value = self.criterion.loss(self.clean_logits)
            return self.clean_margin, self.clean.gradient
        if first:
            leaf, outputs = self.clean.leaf, self.clean.graph
        else:
            self.charge()
            leaf, outputs = self.access.outputs_with_graph(self.as_shown_to_model(x), through)
        with torch.enable_grad():
            logits = self.read(outputs)
            value = self.criterion.loss(logits) if loss_fn is None else loss_fn(logits)
        self.value = value.detach()
        gradient = self.threat.masked(self.access.gradient(leaf, value, keep=first).nan_to_num(0, 0, 0))
        self.gradients += self.active
        self.zero_gradient += self.active & (gradient.flatten(1).abs().amax(1) == 0)
        if first and loss_fn is None:
            self.clean.gradient = gradient
        margin = self.margin_of(logits.detach())
        if update_best and not first and through is None:
            self.update_best(x, margin)
        return margin, gradient

    def jacobian(self, x: Tensor, surfaces: LossFn, update_best: bool = True) -> tuple[Tensor, Tensor]:
        """Values (N, k) of `surfaces` at `x` and their gradients (N, k, C, H, W): one forward pass, k backward.

        The logits are left in `last_logits`.
        """
        first = x is self.x and self.clean.graph is not None and len(x) == len(self.clean.logits)
        if first:
            leaf, outputs = self.clean.leaf, self.clean.graph
        else:
            self.charge()
            leaf, outputs = self.access.outputs_with_graph(self.as_shown_to_model(x))
        with torch.enable_grad():
            logits = self.read(outputs)
            values = surfaces(logits)
            columns = values.unbind(1)
        count = len(columns)
        rows = [self.access.gradient(leaf, column, keep=first or k + 1 < count) for k, column in enumerate(columns)]
        gradients = torch.stack([self.threat.masked(row.nan_to_num(0, 0, 0)) for row in rows], 1)
        self.last_logits = logits.detach()
        self.gradients += count * self.active
        if update_best and not first:
            self.update_best(x, self.margin_of(logits.detach()))
        return values.detach(), gradients

    def update_best(self, x: Tensor, margin: Tensor) -> None:
        """Keep `x` where it beats the best image so far."""
        x = self.as_shown_to_model(x)
        if self.minimal:
            distance = self.measure(x)
            hit = margin < 0
            better = torch.where(self.margin < 0, hit & (distance < self.distance), hit | (margin < self.margin))
            self.distance = torch.where(better & self.active, distance, self.distance)
        else:
            better = margin < self.margin
        better = better & self.active
        self.best = torch.where(expand_to(better, x), x, self.best)
        self.margin = torch.where(better, margin, self.margin)
        if self.stop_on_success and self.threat.bounded:
            near = self.threat.distance(self.x, x) <= self.radius * (1 + SLACK) if self.minimal else True
            self.done = self.done | (better & (margin < 0) & near)

    def rest_if_over(self) -> None:
        """Done are the rows of which the best so far is all that is asked for."""
        if self.stop_on_success and self.threat.bounded:
            near = self.distance <= self.radius * (1 + SLACK) if self.minimal else True
            self.done = self.done | ((self.margin < 0) & near)

    def measure(self, x: Tensor) -> Tensor:
        """What a minimum-norm attack makes small: the norm of the threat."""
        return self.threat.distance(self.x, x)

    def set_result(self, x: Tensor) -> None:
        """Make `x` the result of every active row unseen: the final test will be its first."""
        self.best = torch.where(expand_to(self.active, x), x, self.best)

    def as_shown_to_model(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """`x` as the model is shown it. `places` are the rows that the images belong to, when not one to one."""
        if not self.quantise_inputs or self.threat.levels is None:
            return x
        if places is None:
            return self.threat.quantise(self.x, x)
        return self.threat.take(places).quantise(self.x[places], x)

    def end_step(self) -> bool:
        """Between two steps: count, put finished rows away. False when no row is left."""
        self.steps += self.active
        left = int((~self.done).sum())
        if left == 0:
            return False
        if self.compact and left <= KEEP * len(self.done):
            self.store()
            self._take((~self.done).nonzero()[:, 0])
        return True

    def store(self) -> None:
        """Write what was found into the archive of all rows, which is made when rows are put away first."""
        if self.archive is None:
            self.archive = {name: getattr(self, name).clone() for name in KEPT}
        else:
            for name in KEPT:
                self.archive[name][self.index] = getattr(self, name)

    @property
    def found(self) -> dict[str, Tensor]:
        """What was found for all rows of the run, by the names in KEPT."""
        if self.archive is None:
            return {name: getattr(self, name) for name in KEPT}
        self.store()
        return self.archive

    def _take(self, index: Tensor) -> None:
        """Go on with the rows at `index` alone."""
        self.criterion, self.threat = self.criterion.take(index), self.threat.take(index)
        for name in (*ROWS, *KEPT):
            setattr(self, name, getattr(self, name)[index])
        for name, value in vars(self.state).items():
            if isinstance(value, Tensor) and value.ndim:
                setattr(self.state, name, value[index])

    def _outputs(self, x: Tensor) -> Tensor:
        if not self.compact or self.access.level == 2 or bool(self.active.all()):
            return self.access.outputs(x)
        # An oracle may charge for every image it is shown: rows that rest are not shown to it.
        places = self.active.nonzero()[:, 0]
        outputs = torch.zeros_like(self.clean_logits)
        return outputs.index_copy(0, places, self.access.outputs(x[places])) if len(places) else outputs
