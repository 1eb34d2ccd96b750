"""Search for the latents of a face, and measures of face ageing: is it the same person, and of the requested age?"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models.data import Columns
from models.evaluation.latent_search import descend, distance
from models.evaluation.metrics import CHUNK, nearest, spaced_rows
from models.families.face_ageing.identity import identity_distance

Variant = Literal["z0", "pixel", "identity"]
VARIANTS: tuple[Variant, ...] = ("z0", "pixel", "identity")
PIXEL_WEIGHT = 2.0  # of mean |x - G|; with 0.2 images become adversarial examples of the identity network
NORM_WEIGHT = 1e-3  # of the deviation of the latents' norm from that of the prior
STEPS, RATE = 100, 0.1
MOST_FACES, MOST_PIXELS = 32, 1 << 19  # that are measured


def find_latents(
    model, images: Tensor, groups: Tensor, variant: Variant, steps_and_rate: tuple[int, float] = (STEPS, RATE)
) -> Tensor:
    """(b, d): latents that decode to the faces (b, c, h, w) at the ages that they show, `groups` (b,).

    `z0` are the encoder's latents. From there, `pixel` minimises the distance of pixels, and `identity`
    |f(x) - f(G(z, y))|^2 with unit identity features f (Antipov et al. 2017, eq. 4) plus the distance of pixels.
    """
    with torch.no_grad():
        start = model.encode(images)
        identity = F.normalize(model.identity_features(images), dim=1)

    def pixel_loss(latents: Tensor) -> Tensor:
        return distance(model.decode(latents, groups), images)

    def identity_loss(latents: Tensor) -> Tensor:
        decoded = model.decode(latents, groups)
        error = (identity - F.normalize(model.identity_features(decoded), dim=1)).square().sum(1)
        return error + PIXEL_WEIGHT * (decoded - images).abs().flatten(1).mean(1)

    if variant == "z0":
        return start
    return descend(start, pixel_loss if variant == "pixel" else identity_loss, steps_and_rate, NORM_WEIGHT)


def decode_at_ages(model, latents: Tensor, groups: Tensor) -> Tensor:
    """Latents (b, d) and ages `groups` (b, k) -> images (b, k, c, h, w)."""
    repeated = latents.repeat_interleave(groups.shape[1], 0)
    return model.decode(repeated, groups.flatten()).unflatten(0, groups.shape)


def evaluate_ageing(model, train: Columns, validation: Columns) -> dict[str, float]:
    """Unseen faces decoded at every age: identity distance and age agreement, by variant of the search.

    `age_agreement` is the fraction of images of the requested age, as read by the age reader, which was trained on real
    images only; `age_accuracy` is its accuracy on unseen real images. `_same` means at the age of the face. Baselines:
    `_copy` is the face itself, `_nearest` the nearest training image of the requested age, `_mean` the mean of them.
    """
    count = max(2, min(MOST_FACES, MOST_PIXELS // model.data.pixels))
    images = torch.cat(list(spaced_rows(validation, limit=count))).to(model.device)
    truth = torch.cat(list(spaced_rows(validation, "labels", limit=count))).to(model.device)
    ages = torch.arange(len(model.age_groups), device=model.device).expand(len(images), -1)
    metrics: dict[str, float] = {}
    for variant in VARIANTS:
        with torch.enable_grad():
            latents = find_latents(model, images, truth, variant).detach()
        same = model.decode(latents, truth)
        metrics[f"identity_distance_{variant}_same"] = _mean_identity_distance(model, images, same[:, None])
        metrics |= _measures(model, images, decode_at_ages(model, latents, ages), ages, f"_{variant}")
    metrics |= _measures(model, images, images[:, None].expand(-1, ages.shape[1], -1, -1, -1), ages, "_copy")
    for name, faces in _baselines(images, ages.shape[1], train).items():
        metrics |= _measures(model, images, faces, ages, f"_{name}")
    predicted = torch.cat([model.age_logits(part) for part in images.split(CHUNK)]).argmax(1)
    return metrics | {"age_accuracy": float((predicted == truth).double().mean())}


def _measures(model, images: Tensor, faces: Tensor, ages: Tensor, suffix: str) -> dict[str, float]:
    """Of faces (b, k, c, h, w) of the people in images (b, c, h, w), requested at `ages` (b, k)."""
    predicted = torch.cat([model.age_logits(part) for part in faces.flatten(0, 1).split(CHUNK)]).argmax(1)
    return {
        f"identity_distance{suffix}": _mean_identity_distance(model, images, faces),
        f"age_agreement{suffix}": float((predicted == ages.flatten()).double().mean()),
    }


def _mean_identity_distance(model, images: Tensor, faces: Tensor) -> float:
    """Between faces (b, k, c, h, w) and the images (b, c, h, w) of the same people."""
    of_images = model.identity_features(images).repeat_interleave(faces.shape[1], 0)
    of_faces = torch.cat([model.identity_features(part) for part in faces.flatten(0, 1).split(CHUNK)])
    return float(identity_distance(of_images, of_faces).mean())


def _baselines(images: Tensor, groups: int, train: Columns) -> dict[str, Tensor]:
    """(b, k, c, h, w) each: for every image and group the nearest training image of the group, and the group's mean."""
    candidates, labels = torch.cat(list(spaced_rows(train))), torch.cat(list(spaced_rows(train, "labels")))
    near, mean = [], []
    for group in range(groups):
        of_group = candidates[labels == group] if bool((labels == group).any()) else candidates
        index = nearest(images.cpu().flatten(1), of_group.flatten(1))[1][:, 0]
        near.append(of_group[index])
        mean.append(of_group.mean(0, keepdim=True).expand_as(near[-1]))
    return {name: torch.stack(faces, 1).to(images.device) for name, faces in (("nearest", near), ("mean", mean))}
