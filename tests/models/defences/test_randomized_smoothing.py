"""Certificates of randomised smoothing: exact where the truth is known, never too large otherwise."""

import numpy as np
import pytest
import torch

from models.defences.defended import defend
from models.defences.randomized_smoothing import ABSTAINED, certify, count_votes, vote, voter_of
from models.evaluation.confidence import interval, lower_bound
from models.operations.certify import Certify, CertifyParams
from tests.models.defences.test_defences import classifier, smooth


def half_space(x: torch.Tensor) -> torch.Tensor:
    """(b, 2): logits of a linear classifier."""
    normal = torch.linspace(-1, 1, x[0].numel())
    distance = x.flatten(1) @ (normal / normal.norm())
    return torch.stack([distance, -distance], 1)


def votes_of(image: torch.Tensor, sigma: float, n: int, what: str = "votes") -> torch.Tensor:
    return count_votes(half_space, image, sigma, torch.tensor(3), n, 2, what)


@pytest.mark.parametrize("sigma", [0.25, 1.0])
def test_certified_radius_of_half_space_is_the_distance_to_it(sigma):
    """Cohen et al., appendix: for a linear classifier the certificate is exact, up to the finite count of votes."""
    image = torch.full((1, 4, 4), 0.5) + 0.1 * torch.linspace(-1, 1, 16).view(1, 4, 4)
    distance = float(half_space(image[None])[0, 0])
    first, votes = votes_of(image, sigma, 64, "first"), votes_of(image, sigma, 20_000)
    guess, radius, _ = certify(first[None], votes[None], 20_000, sigma, alpha=0.001)
    assert guess.item() == 0
    assert distance - 0.07 * sigma < radius.item() <= distance


def test_certificate_abstains_on_the_boundary():
    votes = votes_of(torch.full((1, 4, 4), 0.5), 0.25, 2000)
    guess, radius, _ = certify(votes[None], votes[None], 2000, 0.25, alpha=0.001)
    assert guess.item() == ABSTAINED and radius.item() == 0
    counts = torch.tensor([[1010, 990], [1900, 100], [10, 0]])
    assert vote(counts, alpha=0.001).tolist() == [ABSTAINED, 0, ABSTAINED]


def test_lower_bound_and_interval_are_clopper_pearson():
    assert lower_bound(np.array([100]), 100, 0.001)[0] == pytest.approx(0.001 ** (1 / 100))
    assert lower_bound(np.array([0]), 100, 0.001)[0] == 0
    assert interval(0, 20) == pytest.approx((0, 1 - 0.025 ** (1 / 20)))
    assert interval(8, 20) == pytest.approx((0.1912, 0.6395), abs=1e-4)  # Clopper & Pearson's own tables


def test_votes_do_not_depend_on_the_number_of_blocks():
    seen = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return half_space(x)

    image = torch.rand(1, 4, 4)
    short, long = (count_votes(counted, image, 0.3, torch.tensor(1), n, 2, "votes") for n in (70, 140))
    assert short.sum() == 70 and long.sum() == 140 and (long >= short).all()
    assert set(seen) == {64}


def test_certify_operation_treats_each_image_separately():
    model, operation = classifier(), Certify()
    images = smooth((3, 1, 12, 12))
    params = CertifyParams(n=60, sigma=0.05)
    rows = operation.rows(model, images, params)
    found = operation.compute(model, rows, params)
    assert found["first"].sum(1).tolist() == [6] * 3 and found["votes"].sum(1).tolist() == [60] * 3
    last = {name: column[2:] for name, column in rows.items()}
    assert torch.equal(operation.compute(model, last, params)["votes"], found["votes"][2:])
    items = operation.result(model, rows, found, params).facts["items"]
    for item in items:
        assert item["abstained"] == (item["share_at_least"] <= 0.5) and item["share_at_least"] < item["share"] <= 1
        assert (item["radius_l2"] > 0) != item["abstained"]


def test_sigma_of_a_first_noise_stage_is_certified():
    base = classifier()
    made = defend(base, "digits", [{"kind": "noise", "sigma": 0.4}, {"kind": "bit_depth"}], lambda reference: base)
    sigma, voter = voter_of(made, None)
    images = smooth((2, 1, 12, 12))
    assert sigma == 0.4 and torch.equal(voter(images), base.logits((images * 7).round() / 7))
    assert voter_of(base, None)[0] == 0.25
    behind = defend(base, "digits", [{"kind": "bit_depth"}, {"kind": "noise"}], lambda reference: base)
    assert behind.sigma is None
