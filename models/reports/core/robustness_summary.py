"""What a report on robustness tells, from the records of its blocks: curves, tables, a gallery, a verdict."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.attacks.core.base import Attack
from models.evaluation.confidence import wilson
from models.operations.attack import on_grid
from models.reports.core import trust
from models.reports.core.base import Curve, Findings
from models.reports.core.packing import joined, restored, unpacked
from models.types import DataSpec

STRONG = ("apgd", "apgdt", "autoattack", "pgd", "fab", "ddn", "cw")
ALL, CONTROL = "all attacks", "random signs"


@dataclass(frozen=True)
class Account:
    """What was tried: `index` are rows of the dataset, `eps` (E,) the radii used, `asked` those asked for."""

    data: DataSpec
    index: list[int]
    norm: str
    eps: Tensor
    asked: list[float]
    attacks: dict[str, Attack]
    others: list[str]
    """Names of further models, with examples from which the model was tried."""

    def findings(self, records: list[tuple[str, dict[str, Any]]]) -> Findings:
        """Everything that is told. `records` of all blocks, in order, by the attack; those of none have no name."""
        plain = [record for name, record in records if not name]
        labels, answers = (torch.tensor(joined(plain, what)) for what in ("labels", "answers"))
        right = (labels == answers) & ~torch.tensor(joined(plain, "broken"))
        count, columns = len(labels), len(self.eps)
        parts = [*self.attacks, *self.others]
        by = {part: [record for name, record in records if name == part] for part in parts}
        fooled = {part: unpacked(joined(by[part], "hits"), columns) & right[:, None] for part in parts}
        control = unpacked(joined(plain, "control"), columns) & right[:, None]
        union = torch.stack(list(fooled.values())).any(0)
        holding = fooled | {ALL: union, CONTROL: control}
        kept = {part: (right.sum() - hits.sum(0)).tolist() for part, hits in holding.items()}
        flags = [trust.Flag(**flag) for flag in plain[0]["flags"]]
        flags += trust.between(fooled, {part: self.kind(part) for part in parts}, count)
        strong = any(self.is_strong(attack) for attack in self.attacks.values())
        verdict = trust.verdict(flags, strong)
        head = self.headline(kept[ALL], count, verdict)
        table = [
            {"eps": float(eps), "eps_255": round(float(eps) * 255, 3)}
            | {"robust_accuracy": kept[ALL][place] / count, "interval": wilson(kept[ALL][place], count)}
            | {"success_rate": int(union[:, place].sum()) / max(int(right.sum()), 1)}
            | {part: kept[part][place] / count for part in [*parts, CONTROL]}
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
            "attacks": {part: self.spent(by[part], fooled[part], right) for part in parts},
            "headline": head,
            "trust": verdict,
        }
        curve = self.curve(kept, count, parts)
        pictures = {"gallery": self.gallery(plain[0], by)}
        tables = {"curve": table, "images": self.table(labels, answers, right, fooled, by), "flags": verdict["flags"]}
        return Findings(facts, tables, [curve], pictures, [head, *self.remarks(parts)])

    def kind(self, part: str) -> str:
        """What an attack is to the verdict."""
        if part not in self.attacks:
            return "transfer"
        attack = self.attacks[part]
        return "black" if attack.access != "gradients" else "walk" if attack.warm_start or attack.minimal else "step"

    @staticmethod
    def is_strong(attack: Attack) -> bool:
        return attack.name in STRONG and getattr(attack.config, "steps", 0) >= 20

    def headline(self, kept: list[int], count: int, verdict: dict[str, Any]) -> str:
        """The number at the largest radius, its interval and what to make of it."""
        low, high = wilson(kept[-1], count)
        size = f"{float(self.eps[-1]) * 255:.4g}/255" if self.norm == "linf" else f"{float(self.eps[-1]):.4g}"
        return (
            f"At {self.norm} eps {size} {kept[-1] / count:.1%} of {count} images hold out (95 % interval"
            f" {low:.1%} to {high:.1%}; {verdict['confidence']} confidence). {verdict['says']}"
        )

    def spent(self, records: list[dict[str, Any]], hits: Tensor, right: Tensor) -> dict[str, Any]:
        """What an attack cost, and how near the nearest examples are where it says so."""
        queries, gradients = (
            torch.tensor(joined(records, what), dtype=torch.float64) for what in ("queries", "gradients")
        )
        facts = {"fooled": int(hits[:, -1].sum()), "of": int(right.sum())}
        facts |= {"queries_mean": float(queries.mean()), "queries_median": float(queries.median())}
        facts |= {"queries": int(queries.sum()), "gradients": int(gradients.sum())}
        if records and "distance" in records[0]:
            found = torch.tensor(joined(records, "distance"))
            found = found[(found >= 0) & right]
            facts["distance_median"] = float(found.median()) if len(found) else None
        return facts

    def table(self, labels: Tensor, answers: Tensor, right: Tensor, fooled: dict[str, Tensor],
              by: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:  # fmt: skip
        """One row per image: the smallest radius of this curve at which each attack turns it."""
        names = self.data.classes
        named = lambda index: names[index] if names else str(index)  # noqa: E731
        queries = {part: joined(by[part], "queries") for part in by}
        rows = []
        for place, row in enumerate(self.index):
            entry = {"index": row, "label": named(int(labels[place])), "answer": named(int(answers[place]))}
            entry["right"] = bool(right[place])
            for part, hits in fooled.items():
                found = hits[place].nonzero()[:, 0]
                entry[part] = float(self.eps[found[0]]) if len(found) else None
                entry[f"{part} queries"] = queries[part][place]
            rows.append(entry)
        return rows

    def curve(self, kept: dict[str, list[int]], count: int, parts: list[str]) -> Curve:
        linf = self.norm == "linf"
        return Curve(
            title="Robust accuracy",
            x_label="eps in 255ths" if linf else f"eps ({self.norm})",
            y_label="share of all images",
            x=[float(eps) * (255 if linf else 1) for eps in self.eps],
            series={part: [value / count for value in kept[part]] for part in [*parts, ALL, CONTROL]},
            intervals={part: [wilson(value, count) for value in kept[part]] for part in (ALL, CONTROL)},
        )

    def gallery(self, plain: dict[str, Any], by: dict[str, list[dict[str, Any]]]) -> Tensor:
        """One wide picture per image: clean, then what each attack made of it at the smallest radius that turned it."""
        shape = self.data.shape
        made = [plain["gallery"], *(by[name][0]["gallery"] for name in self.attacks)]
        return torch.cat([restored(text, shape) for text in made], 3)

    def remarks(self, parts: list[str]) -> list[str]:
        moved = [value for value in self.asked if abs(on_grid(self.norm, value) - value) > 1e-6]
        notes = [f"The gallery shows in a row: the image, then {', '.join(self.attacks)}."]
        if moved:
            notes.append("8-bit pixels move in whole 255ths: radii between were rounded down.")
        return notes
