"""Building blocks at every size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.families.autoencoders.corruption import corrupt, median_filter
from models.nn.augment import flip, shift
from models.nn.ema import Ema
from models.nn.encoders import ConvDecoder, ConvEncoder, FiLMDecoder, MLPDecoder, MLPEncoder, pyramid
from models.nn.resnet import ResNetTrunk
from models.nn.unet import UNet

sides = st.integers(5, 70)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pyramid_halves_sides_longer_than_four():
    assert pyramid(28, 28) == [(28, 28), (14, 14), (7, 7), (4, 4)]
    assert pyramid(17, 33) == [(17, 33), (9, 17), (5, 9), (3, 5), (3, 3)]
    assert pyramid(256, 8)[-1] == (4, 4) and pyramid(3, 4) == [(3, 4)]


@settings(max_examples=25, deadline=None)
@given(height=sides, width=sides, channels=st.sampled_from([1, 3]))
def test_bodies_take_and_give_any_size(height, width, channels):
    shape, images = (channels, height, width), torch.rand(2, channels, height, width)
    assert ConvEncoder(shape, 5, width=4)(images).shape == (2, 5)
    assert ConvDecoder(5, shape, width=4)(torch.rand(2, 5)).shape == images.shape
    assert MLPDecoder(5, shape, (6,))(MLPEncoder(shape, 5, (6,))(images)).shape == images.shape
    assert UNet(channels, channels, 4, 2)(images).shape == images.shape
    trunk = ResNetTrunk(shape, 4)
    assert trunk(images).shape == (2, trunk.features)


def test_a_body_without_hidden_layers_is_linear():
    encoder = MLPEncoder((1, 4, 4), 3)
    a, b = torch.rand(2, 1, 1, 4, 4)
    torch.testing.assert_close(encoder(a) + encoder(b), encoder(a + b) + encoder(torch.zeros_like(a)))


def test_the_average_covers_half_the_way_in_a_half_life():
    source = nn.Linear(1, 1, bias=False)
    average = Ema(source, half_life=64, ramp=None)
    nn.init.constant_(average.module.weight, 0.0)
    nn.init.constant_(source.weight, 1.0)
    for step in range(1, 9):
        average.update(source, batch=8, images=8 * step)
    assert average.module.weight.item() == pytest.approx(0.5, rel=1e-5)


def test_the_average_starts_fast():
    source = nn.Linear(1, 1, bias=False)
    average = Ema(source, half_life=10_000)
    nn.init.constant_(source.weight, 3.0)
    average.update(source, batch=8, images=8)  # half-life 0.4 images
    assert average.module.weight.item() == pytest.approx(3.0, rel=1e-4)


GREY = torch.full((64, 1, 32, 32), 0.5)


def test_masking_hits_its_share_and_leaves_the_rest():
    found = corrupt(GREY, "masking", p=0.3, sigma=0, generator=draws(), vary=False)
    assert set(found.unique().tolist()) == {0.0, 0.5}
    assert (found == 0).float().mean() == pytest.approx(0.3, abs=0.01)


def test_salt_and_pepper_come_in_equal_parts():
    found = corrupt(GREY, "salt_and_pepper", p=0.4, sigma=0, generator=draws(), vary=False)
    assert (found == 0).float().mean() == pytest.approx(0.2, abs=0.01)
    assert (found == 1).float().mean() == pytest.approx(0.2, abs=0.01)


def test_gaussian_noise_has_its_spread_and_stays_an_image():
    found = corrupt(GREY, "gaussian", p=0, sigma=0.1, generator=draws(), vary=False)
    assert (found - GREY).std() == pytest.approx(0.1, abs=0.003)
    strong = corrupt(GREY, "gaussian", p=0, sigma=2, generator=draws(), vary=False)
    assert strong.min() == 0 and strong.max() == 1


def test_a_mix_draws_kind_and_strength_for_each_image():
    found = corrupt(GREY, "mix", p=0.5, sigma=0.3, generator=draws(), vary=True)
    kinds = {(bool((image == 0).any()), bool((image == 1).any()), image.unique().numel() > 4) for image in found}
    assert len(kinds) >= 3
    shares = (found != GREY).flatten(1).float().mean(1)
    assert shares.std() > 0.1


def test_no_strength_is_no_noise():
    for kind in ("masking", "salt_and_pepper", "gaussian", "mix"):
        assert torch.equal(corrupt(GREY, kind, p=0, sigma=0, generator=draws(), vary=False), GREY)


def test_the_median_filter_removes_a_lone_pixel_and_keeps_an_edge():
    image = torch.zeros(1, 1, 7, 7)
    image[..., 4:] = 1
    lonely = image.clone()
    lonely[0, 0, 2, 1] = 1
    assert torch.equal(median_filter(lonely), image)


def test_shifts_move_whole_images_and_keep_their_size():
    image = torch.zeros(40, 3, 9, 7)
    image[:, :, 4, 3] = 1
    found = shift(image, 2, draws())
    places = found.flatten(2).argmax(2)
    assert found.shape == image.shape and (places == places[:, :1]).all() and len(places[:, 0].unique()) > 10
    assert torch.equal(found.sum((1, 2, 3)), image.sum((1, 2, 3)))
    assert torch.equal(shift(image, 0, draws()), image)


def test_flips_mirror_about_half_of_the_images():
    images = torch.arange(4.0).expand(200, 1, 2, 4)
    mirrored = (flip(images, draws()) == images.flip(3)).flatten(1).all(1)
    assert 60 < mirrored.sum() < 140


@pytest.mark.parametrize("decoder", [ConvDecoder(3, (2, 13, 9), width=4), MLPDecoder(3, (2, 13, 9), (6, 5))])
def test_film_decoder_without_class_effect_equals_plain_decoder(decoder):
    film, codes, labels = FiLMDecoder(decoder, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    assert not torch.allclose(film(codes, labels), film(codes, labels.roll(1)), atol=1e-3)
    assert torch.allclose(film(codes, labels)[1:2], film(codes[1:2], labels[1:2]), atol=1e-6)
    for table in film.classes:
        torch.nn.init.zeros_(table.weight)
    assert torch.allclose(film(codes, labels), decoder(codes), atol=1e-6)
