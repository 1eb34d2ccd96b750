"""How far an image may be changed before the answer of a model that votes under noise can change."""

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Classifies
from models.defences.randomized_smoothing import ABSTAINED, certify, count_votes, voter_of
from models.family import Family
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.seeds import derive


class CertifyParams(ImageParams):
    """How many noisy copies are asked, and how sure to be."""

    sigma: float | None = Field(
        None, gt=0, le=4, description="Noise. Empty: that of a model defended by noise, else 0.25."
    )
    n: int = Field(1000, ge=1, le=1_000_000, description="Noisy copies that measure the share of the answer.")
    n0: int | None = Field(
        None, ge=1, le=100_000, description="Noisy copies before them that choose the answer. Empty: a tenth of n."
    )
    alpha: float = Field(0.001, gt=0, lt=0.5, description="Chance that the radius of an image is too large.")
    seed: int = Field(0, ge=0, lt=2**63, description="The same seed gives the same answer.")


class Certify(Operation):
    """No perturbation of smaller l2 norm turns the vote, with probability 1 - alpha over the noise (Cohen et al. 2019).

    Without a clear majority it abstains. The certificate is of the vote, not of the model without noise.
    """

    name = "certify"
    summary = "Gives each image's answer under noise, with a radius inside which no attack can change it."
    needs = (Classifies,)
    one_row_per_batch = True
    multiplies = ()
    gives = "facts"
    Params = CertifyParams

    def rows(self, model: Family, inputs: Tensor, params: CertifyParams) -> Rows:
        seeds = [derive(params.seed, "certify", row) for row in range(len(inputs))]
        return {"inputs": inputs, "seeds": torch.tensor(seeds, dtype=torch.int64)}

    def batch_key(self, params: CertifyParams) -> tuple:
        return params.sigma, params.n, params.n0

    def compute(self, model: Family, rows: Rows, params: CertifyParams) -> Rows:
        sigma, voter = voter_of(model, params.sigma)
        counts = {"first": params.n0 or max(1, params.n // 10), "votes": params.n}
        found: dict[str, list[Tensor]] = {name: [] for name in counts}
        for image, seed in zip(rows["inputs"], rows["seeds"], strict=True):
            for name, count in counts.items():
                votes = count_votes(voter, image, sigma, seed, count, len(model.data.classes), name)
                found[name].append(votes)
        return {name: torch.stack(votes) for name, votes in found.items()}

    def result(self, model: Family, rows: Rows, found: Rows, params: CertifyParams) -> Result:
        sigma, _ = voter_of(model, params.sigma)
        guesses, radii, shares = certify(found["first"], found["votes"], sigma, params.alpha)
        items = []
        for guess, radius, share, votes in zip(
            guesses.tolist(), radii.tolist(), shares.tolist(), found["votes"], strict=True
        ):
            certain = guess != ABSTAINED
            item = {"abstained": not certain, "label": model.data.classes[guess] if certain else None}
            item |= {"index": guess if certain else None, "radius_l2": radius if certain else 0.0}
            items.append(item | {"share": float(votes.max() / votes.sum()), "share_at_least": share})
        facts = {"sigma": sigma, "n": params.n, "alpha": params.alpha, "seed": params.seed}
        return Result(facts=facts | {"items": items})
