"""Certified radius of randomized smoothing: no smaller l2 perturbation changes the vote (Cohen et al. 2019)."""

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Classifies
from models.defences.randomized_smoothing import ABSTAINED, certify, count_votes, voter_of
from models.family import Family
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.seeds import derive


class CertifyParams(ImageParams):
    """Numbers of noisy copies, and the confidence of the certificate."""

    sigma: float | None = Field(
        None,
        gt=0,
        le=4,
        description="Standard deviation of the noise. Default: that of a model defended by noise, else 0.25.",
    )
    n: int = Field(
        1000, ge=1, le=1_000_000, description="Noisy copies that estimate the probability of the predicted class."
    )
    n0: int | None = Field(
        None, ge=1, le=100_000, description="Noisy copies that choose the predicted class first. Default: a tenth of n."
    )
    alpha: float = Field(
        0.001, gt=0, lt=0.5, description="Probability that the certified radius of an image is too large."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="The same seed gives the same result.")


class Certify(Operation):
    """With probability 1 - alpha, no perturbation of smaller l2 norm changes the vote (Cohen et al. 2019).

    Without a clear majority it abstains. A copy for which the output is not finite votes for no class; `not_finite` is
    their number. The certificate holds for the vote, not for the model without noise.
    """

    name = "certify"
    summary = "Gives each image's class by vote under noise, with the l2 radius inside which no attack can change it."
    needs = (Classifies,)
    one_row_per_batch = True
    multiplies = ()
    gives = "facts"
    price = {
        "forwards": "inputs * (n + n0 + (1 - min(n0, 1)) * max(n / 10, 1) + 126)",
        "backwards": "0",
        "at_once": "64",
    }
    Params = CertifyParams

    def rows(self, model: Family, inputs: Tensor, params: CertifyParams) -> Rows:
        seeds = [derive(params.seed, "certify", row) for row in range(len(inputs))]
        return {"inputs": inputs, "seeds": torch.tensor(seeds, dtype=torch.int64)}

    def batch_key(self, params: CertifyParams) -> tuple:
        return params.sigma, params.n, params.n0

    def compute(self, model: Family, rows: Rows, params: CertifyParams) -> Rows:
        sigma, voter = voter_of(model, params.sigma)
        counts = {"first": params.n0 or max(1, params.n // 10), "votes": params.n}
        votes: dict[str, list[Tensor]] = {name: [] for name in counts}
        for image, seed in zip(rows["inputs"], rows["seeds"], strict=True):
            for name, count in counts.items():
                votes[name].append(count_votes(voter, image, sigma, seed, count, len(model.data.classes), name))
        return {name: torch.stack(column) for name, column in votes.items()}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: CertifyParams) -> Result:
        sigma, _ = voter_of(model, params.sigma)
        classes, radii, bounds = certify(outputs["first"], outputs["votes"], params.n, sigma, params.alpha)
        items = []
        for index, radius, bound, votes in zip(
            classes.tolist(), radii.tolist(), bounds.tolist(), outputs["votes"], strict=True
        ):
            certain = index != ABSTAINED
            item = {"abstained": not certain, "label": model.data.classes[index] if certain else None}
            item |= {"index": index if certain else None, "radius_l2": radius if certain else 0.0}
            item |= {"share": float(votes.max() / params.n), "share_at_least": bound}
            items.append(item | {"not_finite": params.n - int(votes.sum())})
        facts = {"sigma": sigma, "n": params.n, "alpha": params.alpha, "seed": params.seed}
        return Result(facts=facts | {"items": items})
