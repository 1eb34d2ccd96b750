"""One run of an attack as a table of rows: queries and gradients of the model, their costs, the best images so far.

Every tensor here has one row per image and no operation mixes rows, so an image's result is the same alone as in any
batch. An attack keeps its own row tensors in `state`; finished rows may be removed between two steps.
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
"""Logits (N, K) -> values (N,) to increase."""

ROWS = (
    "x", "start", "seeds", "index", "done", "paused", "probabilities", "value", "last_logits", "clean_margin",
    "clean_logits",
)  # fmt: skip
COUNTS = ("queries", "gradients", "steps", "zero_gradient")
RESULTS = ("best", "margin", "distance", *COUNTS)
COMPACT_BELOW = 0.9
"""Finished rows are removed once at most this fraction is left: moving rows costs far less than a forward pass."""
AT_ONCE = 4096
"""Maximum images of one forward pass when an attack evaluates many per row."""


class BudgetExhausted(Exception):
    """No row has budget left for another query. Ends the run, whose result is the best image so far."""


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
        # One query is reserved for the final test of the rounded image.
        self.budget = None if access.budget is None else access.budget - 1
        self._evaluate_clean(clean)
        self.archive: dict[str, Tensor] | None = None

    def _evaluate_clean(self, clean: Clean | None) -> None:
        """Evaluate the clean images. Rows that are adversarial already, or whose outputs are not finite, are done."""
        self.queries += 1
        self.clean = clean = clean or Clean.of(self.access, self.x)
        self.criterion.check(clean.logits)
        self.probabilities = look_like_probabilities(clean.logits) if self.access.level else torch.zeros_like(self.done)
        self.any_probabilities = bool(self.probabilities.any())
        self.clean_logits = self.as_logits(clean.logits)
        self.clean_margin = self.margin_of(self.clean_logits)
        self.nonfinite = ~torch.isfinite(clean.logits).flatten(1).all(1)
        self.wrong = (self.clean_margin < 0) & ~self.nonfinite
        self.margin = torch.where(self.wrong, self.clean_margin, self.margin)
        self.distance = torch.where(self.wrong, 0, self.distance)
        self.done |= self.wrong | self.nonfinite
        self.clean_probabilities = self.probabilities
        self.value, self.last_logits = self.clean_margin, self.clean_logits

    @property
    def rng(self) -> RowRNG:
        """Random numbers of these rows, each from its own seed."""
        return RowRNG(self.seeds)

    @property
    def radius(self) -> Tensor:
        """(N,) eps of these rows."""
        return self.threat.radius(self.x)

    @property
    def active(self) -> Tensor:
        """(N,): rows that take part in the current step."""
        return ~(self.done | self.paused)

    def as_logits(self, outputs: Tensor) -> Tensor:
        """Outputs as logits: the logarithm where the model gives probabilities."""
        return logarithm(outputs, self.probabilities) if self.any_probabilities else outputs

    def margin_of(self, logits: Tensor) -> Tensor:
        """(N,): the criterion's margin; NaN counts as a failure of the attack (infinity)."""
        return self.criterion.margin(logits).nan_to_num(torch.inf, torch.inf, -torch.inf)

    def charge(self, count: int = 1) -> None:
        """Charge every active row `count` queries; a row without the budget is done.

        Raises BudgetExhausted when every row is done.
        """
        if self.budget is not None:
            self.done = self.done | (self.active & (self.queries + count > self.budget))
            if bool(self.done.all()):
                raise BudgetExhausted
        self.queries += count * self.active

    def logits(self, x: Tensor) -> Tensor:
        """Logits of `x`, which does not become a candidate; one query of each active row."""
        self.charge()
        return self.as_logits(self._outputs(self.as_shown_to_model(x)))

    def evaluate(self, x: Tensor) -> Tensor:
        """Margins (N,) of `x`, which becomes a candidate for the result; one query of each active row."""
        margin = self.margin_of(self.logits(x))
        self.update_best(x, margin)
        return margin

    def margins_of(self, images: Tensor, rows: Tensor) -> Tensor:
        """Margins (P,) of images that belong to `rows` (P,); one query each, none becomes a candidate."""
        self.queries = self.queries.index_add(0, rows, torch.ones_like(rows))
        parts = [self.access.outputs(part) for part in self.as_shown_to_model(images, rows).split(AT_ONCE)]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        logits = logarithm(logits, self.probabilities[rows]) if self.any_probabilities else logits
        return self.criterion.take(rows).margin(logits).nan_to_num(torch.inf, torch.inf, -torch.inf)

    def evaluate_many(self, make: Callable[[Tensor], Tensor], count: int) -> Tensor:
        """Margins (N, count) of `count` images per row, the best of which is a candidate; `count` queries of a row.

        `make` receives row numbers (n,) and returns their images (n, count, C, H, W).
        """
        self.charge(count)
        margins = torch.full((len(self.x), count), torch.inf, device=self.x.device)
        rows = self.active.nonzero()[:, 0]
        best = self.x.clone()
        # Row by row unless batch shapes may vary, so that a forward pass never depends on the other rows.
        for group in rows.split(max(1, AT_ONCE // count) if self.compact else 1) if len(rows) else ():
            images = make(group)
            flat = self.as_shown_to_model(images.flatten(0, 1), group.repeat_interleave(count))
            logits = self.access.outputs(flat)
            if self.any_probabilities:
                logits = logarithm(logits, self.probabilities[group].repeat_interleave(count))
            values = self.criterion.take(group).repeat(count).margin(logits)
            margins[group] = values.nan_to_num(torch.inf, torch.inf, -torch.inf).view(-1, count)
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
        """Margins (N,) of `x` and the gradient of `loss_fn` (default: the criterion's loss): one pass each way.

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
            logits = self.as_logits(outputs)
            value = self.criterion.loss(logits) if loss_fn is None else loss_fn(logits)
        self.value = value.detach()
        gradient = self.threat.masked(self.access.gradient(leaf, value, keep=first).nan_to_num(0, 0, 0))
        self.gradients += self.active
        self.zero_gradient += self.active & (gradient.flatten(1).abs().amax(1) == 0)
        if first and loss_fn is None:
            self.clean.gradient = gradient
        margin = self.clean_margin if first else self.margin_of(logits.detach())
        if update_best and not first and through is None:
            self.update_best(x, margin)
        return margin, gradient

    def jacobian(self, x: Tensor, surfaces: LossFn, update_best: bool = True) -> tuple[Tensor, Tensor]:
        """Values (N, k) of `surfaces` at `x` and their gradients (N, k, C, H, W): one forward pass, k backward passes.

        The logits are left in `last_logits`.
        """
        first = x is self.x and self.clean.graph is not None and len(x) == len(self.clean.logits)
        if first:
            leaf, outputs = self.clean.leaf, self.clean.graph
        else:
            self.charge()
            leaf, outputs = self.access.outputs_with_graph(self.as_shown_to_model(x))
        with torch.enable_grad():
            logits = self.as_logits(outputs)
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
        """Keep `x` where it is better than the best image so far."""
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

    def stop_successful(self) -> None:
        """Mark rows as done whose best image so far is a success that ends the row."""
        if self.stop_on_success and self.threat.bounded:
            near = self.distance <= self.radius * (1 + SLACK) if self.minimal else True
            self.done = self.done | ((self.margin < 0) & near)

    def measure(self, x: Tensor) -> Tensor:
        """(N,): what a minimum-norm attack minimises: the distance in the norm of the threat."""
        return self.threat.distance(self.x, x)

    def set_result(self, x: Tensor) -> None:
        """Make `x` the result of every active row without a query; the final test evaluates it first."""
        self.best = torch.where(expand_to(self.active, x), x, self.best)

    def as_shown_to_model(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """`x`, rounded if the attack shows 8-bit images only. Images (P, ...) belong to `rows` (P,), else to all."""
        if not self.quantise_inputs or self.threat.levels is None:
            return x
        if rows is None:
            return self.threat.quantise(self.x, x)
        return self.threat.take(rows).quantise(self.x[rows], x)

    def end_step(self) -> bool:
        """Between two steps: count the step, remove finished rows. False when no row is left."""
        self.steps += self.active
        left = int((~self.done).sum())
        if left == 0:
            return False
        if self.compact and left <= COMPACT_BELOW * len(self.done):
            self._store()
            self._select((~self.done).nonzero()[:, 0])
        return True

    def _store(self) -> None:
        """Write the results of the current rows into the archive of all rows, made when rows are first removed."""
        if self.archive is None:
            self.archive = {name: getattr(self, name).clone() for name in RESULTS}
        else:
            for name in RESULTS:
                self.archive[name][self.index] = getattr(self, name)

    @property
    def results(self) -> dict[str, Tensor]:
        """The results of all rows of the run, by the names in RESULTS."""
        if self.archive is None:
            return {name: getattr(self, name) for name in RESULTS}
        self._store()
        return self.archive

    def _select(self, index: Tensor) -> None:
        """Continue with the rows at `index` only."""
        self.criterion, self.threat = self.criterion.take(index), self.threat.take(index)
        for name in (*ROWS, *RESULTS):
            setattr(self, name, getattr(self, name)[index])
        for name, value in vars(self.state).items():
            if isinstance(value, Tensor) and value.ndim:
                setattr(self.state, name, value[index])

    def _outputs(self, x: Tensor) -> Tensor:
        if not self.compact or self.access.level == 2 or bool(self.active.all()):
            return self.access.outputs(x)
        # An oracle may charge for every image it is sent: paused rows are not sent.
        rows = self.active.nonzero()[:, 0]
        outputs = torch.zeros_like(self.clean_logits)
        return outputs.index_copy(0, rows, self.access.outputs(x[rows])) if len(rows) else outputs
