"""The latents of a face, found in three ways, and how well it stays the same person when its age is changed."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models.data import Columns
from models.evaluation.latent_search import descend, distance
from models.evaluation.metrics import CHUNK, nearest, spread
from models.families.face_ageing.identity import identity_distance

Variant = Literal["z0", "pixel", "identity"]
VARIANTS: tuple[Variant, ...] = ("z0", "pixel", "identity")
PIXELS, PULL = 2.0, 1e-3
"""Weight of mean |x - G| beside identity; with a tenth of a pixel's, pictures drift to what only the network likes."""
STEPS, RATE = 100, 0.1
PEOPLE, NUMBERS = 32, 1 << 19  # faces that are measured, and the numbers in all of their images


def latents_of_faces(
    model, images: Tensor, groups: Tensor, variant: Variant, pace: tuple[int, float] = (STEPS, RATE)
) -> Tensor:
    """(b, d): latents whose picture at the age shown, `groups` (b,), is the face; the age itself is never changed.

    `z0` is the encoder's guess. `pixel` descends from it on the distance of pixels, `identity` on
    |f(x) - f(G(z, y))|^2 of unit identity features (eq. 4 of Antipov et al. 2017) and on pixels.
    """
    with torch.no_grad():
        start = model.encode(images)
        person = F.normalize(model.identity_features(images), dim=1)

    def by_pixels(latents: Tensor) -> Tensor:
        return distance(model.decode(latents, groups), images)

    def by_identity(latents: Tensor) -> Tensor:
        made = model.decode(latents, groups)
        apart = (person - F.normalize(model.identity_features(made), dim=1)).square().sum(1)
        return apart + PIXELS * (made - images).abs().flatten(1).mean(1)

    if variant == "z0":
        return start
    return descend(start, by_pixels if variant == "pixel" else by_identity, pace, PULL)


def at_ages(model, latents: Tensor, groups: Tensor) -> Tensor:
    """Latents (b, d) at the ages `groups` (b, k) -> pictures (b, k, c, h, w)."""
    each = latents.repeat_interleave(groups.shape[1], 0)
    return model.decode(each, groups.flatten()).unflatten(0, groups.shape)


def ageing_report(model, train: Columns, validation: Columns) -> dict[str, float]:
    """Of unseen faces at every age: distances of identity by each way to find latents, and whether the age is right.

    The age is read by the model's own reader, which learned from real images after the generator was finished, so no
    picture was made to please it; `age_accuracy` is its share of right answers on unseen real ones. `_same` is at the
    age the face has. Baselines: the face itself, the nearest training image of the wanted age, the mean of that age.
    """
    count = max(2, min(PEOPLE, NUMBERS // model.data.pixels))
    images = torch.cat(list(spread(validation, limit=count))).to(model.device)
    truth = torch.cat(list(spread(validation, "labels", limit=count))).to(model.device)
    wanted = torch.arange(len(model.age_groups), device=model.device).expand(len(images), -1)
    found: dict[str, float] = {}
    for variant in VARIANTS:
        with torch.enable_grad():
            latents = latents_of_faces(model, images, truth, variant).detach()
        same = model.decode(latents, truth)
        found[f"identity_distance_{variant}_same"] = _apart(model, images, same[:, None])
        found |= _judged(model, images, at_ages(model, latents, wanted), wanted, f"_{variant}")
    found |= _judged(model, images, images[:, None].expand(-1, wanted.shape[1], -1, -1, -1), wanted, "_copy")
    for name, faces in _baselines(images, wanted.shape[1], train).items():
        found |= _judged(model, images, faces, wanted, f"_{name}")
    read = torch.cat([model.age_logits(part) for part in images.split(CHUNK)]).argmax(1)
    return found | {"age_accuracy": float((read == truth).double().mean())}


def _judged(model, images: Tensor, faces: Tensor, wanted: Tensor, ending: str) -> dict[str, float]:
    read = torch.cat([model.age_logits(part) for part in faces.flatten(0, 1).split(CHUNK)]).argmax(1)
    return {
        f"identity_distance{ending}": _apart(model, images, faces),
        f"age_agreement{ending}": float((read == wanted.flatten()).double().mean()),
    }


def _apart(model, images: Tensor, faces: Tensor) -> float:
    """Mean identity distance of faces (b, k, c, h, w) from images (b, c, h, w)."""
    mine = model.identity_features(images).repeat_interleave(faces.shape[1], 0)
    theirs = torch.cat([model.identity_features(part) for part in faces.flatten(0, 1).split(CHUNK)])
    return float(identity_distance(mine, theirs).mean())


def _baselines(images: Tensor, groups: int, train: Columns) -> dict[str, Tensor]:
    """For each image and group (b, k, c, h, w): the nearest training image of the group, and the group's mean."""
    known, labels = torch.cat(list(spread(train))), torch.cat(list(spread(train, "labels")))
    near, mean = [], []
    for group in range(groups):
        mine = known[labels == group] if bool((labels == group).any()) else known
        index = nearest(images.cpu().flatten(1), mine.flatten(1))[1][:, 0]
        near.append(mine[index])
        mean.append(mine.mean(0, keepdim=True).expand_as(near[-1]))
    return {name: torch.stack(each, 1).to(images.device) for name, each in (("nearest", near), ("mean", mean))}
