"""The mixture over codes."""

import pytest
import torch

from models.families.autoencoders.gaussian_mixture import Mixture
from models.seeds import generator

CENTRES = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]])
FACTORS = torch.tensor([[[1.0, 0.0], [0.5, 0.2]], [[0.3, 0.0], [0.0, 0.3]], [[0.5, 0.0], [-0.4, 0.5]]])
SHARES = torch.tensor([0.5, 0.3, 0.2])


def codes(count: int = 6000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(SHARES, count, replacement=True, generator=draws)
    noise = torch.randn(count, 2, generator=draws)
    return CENTRES[chosen] + (FACTORS[chosen] @ noise[:, :, None])[:, :, 0], chosen


def fitted(rows: torch.Tensor, components: int = 10, seed: int = 0) -> Mixture:
    mixture = Mixture(rows.shape[1], components)
    mixture.fit(rows, generator(seed, "mixture"))
    return mixture


def drawn(mixture: Mixture, count: int, width: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(5)
    return mixture.draw(torch.randn(count, width, generator=draws), torch.rand(count, generator=draws))


def test_a_known_mixture_is_recovered():
    mixture = fitted(codes()[0], components=3)
    centres = mixture.centre + mixture.means @ mixture.axes
    order = torch.cdist(CENTRES, centres).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(centres[order], CENTRES, atol=0.1, rtol=0)
    torch.testing.assert_close(mixture.shares[order], SHARES, atol=0.02, rtol=0)
    factors = mixture.axes.T @ mixture.factors[order]
    torch.testing.assert_close(factors @ factors.mT, FACTORS @ FACTORS.mT, atol=0.08, rtol=0)


def test_draws_have_the_mean_and_the_spread_of_the_codes():
    rows, _ = codes()
    found = drawn(fitted(rows), 6000, 2)
    torch.testing.assert_close(found.mean(0), rows.mean(0), atol=0.2, rtol=0)
    torch.testing.assert_close(found.T.cov(), rows.T.cov(), atol=0.6, rtol=0.05)


def test_the_likelihood_is_no_worse_than_that_of_scikit_learn():
    from sklearn.mixture import GaussianMixture

    rows, _ = codes(2000)
    white = (rows - rows.mean(0)) @ torch.linalg.cholesky(torch.linalg.inv(rows.T.cov(correction=0)))
    mine = Mixture(2, 3).fit(rows, generator(0))
    assert mine > GaussianMixture(3, random_state=0).fit(white.numpy()).score(white.numpy()) - 0.02


def test_the_same_seed_gives_the_same_mixture():
    rows, _ = codes(500)
    first, second = fitted(rows).state_dict(), fitted(rows).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("rows", [
    pytest.param(torch.zeros(20, 4), id="all equal"), pytest.param(torch.full((2, 4), 1e-30), id="two, tiny"),
    pytest.param(torch.eye(3, 4) * 1e6, id="three, huge"), pytest.param(torch.randn(5, 300), id="wider than many"),
    pytest.param(torch.cat([torch.zeros(50, 1), torch.randn(50, 3)], 1), id="one dead unit"),
])  # fmt: skip
def test_few_or_flat_codes_still_give_finite_codes_near_them(rows):
    found = drawn(fitted(rows), 64, rows.shape[1])
    assert torch.isfinite(found).all()
    assert found.abs().max() <= 8 * rows.abs().max() + 1e-20


def test_a_draw_depends_on_its_own_row_alone():
    mixture = fitted(codes(500)[0])
    noise, uniform = torch.randn(6, 2), torch.rand(6)
    torch.testing.assert_close(mixture.draw(noise, uniform)[2:3], mixture.draw(noise[2:3], uniform[2:3]))


def test_every_component_is_drawn_in_its_share():
    mixture = fitted(codes()[0], components=3)
    places = drawn(mixture, 4000, 2)
    nearest = torch.cdist(places, CENTRES).argmin(1)
    torch.testing.assert_close(torch.bincount(nearest) / 4000, SHARES, atol=0.03, rtol=0)


def test_the_ends_of_the_uniform_draw_fall_into_components():
    mixture = fitted(codes(500)[0])
    ends = torch.tensor([0.0, 1 - 2**-24])
    assert torch.isfinite(mixture.draw(torch.zeros(2, 2), ends)).all()
