"""The result of a robustness report from the records of its blocks: curve, tables, gallery and verdict."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.attacks.core.base import Attack
from models.capabilities import UNDECIDED
from models.evaluation.confidence import wilson
from models.operations.attack import on_grid
from models.reports.core import trust
from models.reports.core.base import Curve, ReportResult
from models.reports.core.classification import joined, unpack_hits, unpack_images
from models.types import DataError, DataSpec

STRONG = ("apgd", "apgdt", "autoattack", "pgd", "fab", "ddn", "cw")
ALL, CONTROL = "all attacks", "random signs"


@dataclass(frozen=True)
class RobustnessSummary:
    """The attacks of a report. `index` are rows of the dataset, `eps` (E,) the radii used, `requested` those of the
    request."""

    data: DataSpec
    index: list[int]
    norm: str
    eps: Tensor
    requested: list[float]
    attacks: dict[str, Attack]
    others: list[str]
    """Names of the models whose adversarial examples were shown to this one."""

    def result(self, records: list[tuple[str, dict[str, Any]]]) -> ReportResult:
        """The result from (attack, record) of every block, in order; "" is the attack of blocks of clean images."""
        clean = [record for name, record in records if not name]
        labels, answers = (torch.tensor(joined(clean, key)) for key in ("labels", "answers"))
        right = labels == answers
        count, columns = int((answers != UNDECIDED).sum()), len(self.eps)
        if not count:
            raise DataError(f"the model's output is not finite for any of the {len(labels)} images", "model")
        parts = [*self.attacks, *self.others]
        by = {part: [record for name, record in records if name == part] for part in parts}
        fooled = {part: unpack_hits(joined(by[part], "hits"), columns) & right[:, None] for part in parts}
        control = unpack_hits(joined(clean, "control"), columns) & right[:, None]
        union = torch.stack(list(fooled.values())).any(0)
        hits_by_part = fooled | {ALL: union, CONTROL: control}
        robust = {part: (right.sum() - hits.sum(0)).tolist() for part, hits in hits_by_part.items()}
        flags = [trust.Flag(**flag) for flag in clean[0]["flags"]]
        flags += trust.between(fooled, {part: self.kind(part) for part in parts}, count)
        strong = any(self.is_strong(attack) for attack in self.attacks.values())
        verdict = trust.verdict(flags, strong)
        head = self.headline(robust[ALL], count, verdict)
        table = [
            {"eps": float(eps), "eps_255": round(float(eps) * 255, 3)}
            | {"robust_accuracy": robust[ALL][place] / count, "interval": wilson(robust[ALL][place], count)}
            | {"success_rate": int(union[:, place].sum()) / max(int(right.sum()), 1)}
            | {part: robust[part][place] / count for part in [*parts, CONTROL]}
            for place, eps in enumerate(self.eps)
        ]
        facts = {
            "images": count,
            "clean_accuracy": int(right.sum()) / count,
            "clean_interval": wilson(int(right.sum()), count),
            "norm": self.norm,
            "eps": self.eps.tolist(),
            "robust_accuracy": [row["robust_accuracy"] for row in table],
            "intervals": [row["interval"] for row in table],
            "attacks": {part: self.cost(by[part], fooled[part], right) for part in parts},
            "headline": head,
            "trust": verdict,
        }
        curve = self.curve(robust, count, parts)
        pictures = {"gallery": self.gallery(clean[0], by)}
        tables = {"curve": table, "images": self.table(labels, answers, right, fooled, by), "flags": verdict["flags"]}
        return ReportResult(facts, tables, [curve], pictures, [head, *self.remarks(parts)])

    def kind(self, part: str) -> str:
        """The kind of attack that `trust.between` distinguishes: step, walk (many steps), black or transfer."""
        if part not in self.attacks:
            return "transfer"
        attack = self.attacks[part]
        return "black" if attack.access != "gradients" else "walk" if attack.warm_start or attack.minimal else "step"

    @staticmethod
    def is_strong(attack: Attack) -> bool:
        return attack.name in STRONG and getattr(attack.config, "steps", 0) >= 20

    def headline(self, robust: list[int], count: int, verdict: dict[str, Any]) -> str:
        """Robust accuracy at the largest radius with its interval, and the verdict."""
        low, high = wilson(robust[-1], count)
        size = f"{float(self.eps[-1]) * 255:.4g}/255" if self.norm == "linf" else f"{float(self.eps[-1]):.4g}"
        return (
            f"At {self.norm} eps {size}, {robust[-1] / count:.1%} of {count} images are correct under every attack (95 "
            f"% interval {low:.1%} to {high:.1%}; {verdict['confidence']} confidence). {verdict['says']}"
        )

    def cost(self, records: list[dict[str, Any]], hits: Tensor, right: Tensor) -> dict[str, Any]:
        """Queries and gradients of an attack, images fooled, and the median distance for a minimum-norm attack."""
        queries, gradients = (
            torch.tensor(joined(records, key), dtype=torch.float64) for key in ("queries", "gradients")
        )
        facts = {"fooled": int(hits[:, -1].sum()), "of": int(right.sum())}
        facts |= {"queries_mean": float(queries.mean()), "queries_median": float(queries.median())}
        facts |= {"queries": int(queries.sum()), "gradients": int(gradients.sum())}
        if records and "distance" in records[0]:
            distances = torch.tensor(joined(records, "distance"))
            distances = distances[(distances >= 0) & right]
            facts["distance_median"] = float(distances.median()) if len(distances) else None
        return facts

    def table(self, labels: Tensor, answers: Tensor, right: Tensor, fooled: dict[str, Tensor],
              by: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:  # fmt: skip
        """One row per image: the smallest radius of the curve at which each attack fools the model."""
        class_name = lambda index: self.data.classes[index] if self.data.classes else str(index)  # noqa: E731
        queries = {part: joined(by[part], "queries") for part in by}
        rows = []
        for place, row in enumerate(self.index):
            answer = None if answers[place] == UNDECIDED else class_name(int(answers[place]))
            entry = {"index": row, "label": class_name(int(labels[place])), "answer": answer}
            entry["right"] = bool(right[place])
            for part, hits in fooled.items():
                fooling = hits[place].nonzero()[:, 0]
                entry[part] = float(self.eps[fooling[0]]) if len(fooling) else None
                entry[f"{part} queries"] = queries[part][place]
            rows.append(entry)
        return rows

    def curve(self, robust: dict[str, list[int]], count: int, parts: list[str]) -> Curve:
        linf = self.norm == "linf"
        return Curve(
            title="Robust accuracy",
            x_label="eps in 255ths" if linf else f"eps ({self.norm})",
            y_label="fraction of all images",
            x=[float(eps) * (255 if linf else 1) for eps in self.eps],
            series={part: [value / count for value in robust[part]] for part in [*parts, ALL, CONTROL]},
            intervals={part: [wilson(value, count) for value in robust[part]] for part in (ALL, CONTROL)},
        )

    def gallery(self, clean: dict[str, Any], by: dict[str, list[dict[str, Any]]]) -> Tensor:
        """(n, c, h, w * (attacks + 1)): each image, then its result of each attack at the smallest radius."""
        shape = self.data.shape
        packed = [clean["gallery"], *(by[name][0]["gallery"] for name in self.attacks)]
        return torch.cat([unpack_images(text, shape) for text in packed], 3)

    def remarks(self, parts: list[str]) -> list[str]:
        rounded = [value for value in self.requested if abs(on_grid(self.norm, value) - value) > 1e-6]
        notes = [f"Each row of the gallery shows the image, then its adversarial images: {', '.join(self.attacks)}."]
        if rounded:
            notes.append("8-bit pixels change in steps of 1/255: radii in between were rounded down.")
        return notes
