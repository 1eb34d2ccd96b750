"""Augmentations: translation, colour and cutout by hand, the use of the generator, gradients."""

import torch

from models.families.gans.augment import AdaptiveAugment, brighten, contrast, cutout, diff_augment, saturate, shift

IMAGES = torch.rand(4, 3, 9, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_shift_translates_each_image_by_its_own_offset_and_fills_grey():
    moved = shift(IMAGES, torch.tensor([0, 2, -1, 0]), torch.tensor([0, 0, 3, -6]))
    assert torch.equal(moved[0], IMAGES[0])
    assert torch.equal(moved[1, :, 2:], IMAGES[1, :, :-2]) and moved[1, :, :2].abs().max() == 0
    assert torch.equal(moved[2, :, :-1, 3:], IMAGES[2, :, 1:, :-3])
    assert moved[3].abs().max() == 0


def test_cutout_covers_only_its_box():
    covered = cutout(IMAGES, torch.tensor([0, -1, 7, 2]), torch.tensor([0, 4, 0, 1]), (3, 2))
    assert torch.equal(covered == 0, expected_mask())


def expected_mask():
    mask = torch.zeros(4, 3, 9, 6, dtype=torch.bool)
    mask[0, :, 0:3, 0:2] = mask[1, :, 0:2, 4:6] = mask[2, :, 7:9, 0:2] = mask[3, :, 2:5, 1:3] = True
    return mask


def test_saturate_scales_around_grey_and_contrast_around_the_mean():
    half, one = torch.full((4, 1), 0.5), torch.ones(4, 1)
    torch.testing.assert_close(brighten(IMAGES, half), IMAGES + 0.5)
    torch.testing.assert_close(saturate(IMAGES, 0 * one), IMAGES.mean(1, keepdim=True).expand_as(IMAGES))
    torch.testing.assert_close(contrast(IMAGES, half).mean((1, 2, 3)), IMAGES.mean((1, 2, 3)))
    torch.testing.assert_close(contrast(IMAGES, half).std((1, 2, 3)), IMAGES.std((1, 2, 3)) / 2)
    for change in (saturate, contrast):
        torch.testing.assert_close(change(IMAGES, one), IMAGES)


def test_augmentations_use_the_given_generator_and_are_differentiable():
    adaptive = AdaptiveAugment(100)
    adaptive.p.fill_(0.7)
    for augment in (diff_augment, adaptive):
        images = IMAGES.clone().requires_grad_()
        first, again = (augment(images, torch.Generator().manual_seed(4)) for _ in range(2))
        other = augment(images, torch.Generator().manual_seed(5))
        assert torch.equal(first, again) and not torch.equal(first, other) and first.shape == IMAGES.shape
        first.square().sum().backward()
        assert images.grad.abs().sum() > 0
