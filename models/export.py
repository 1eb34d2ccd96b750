"""The parts of a model that can be exported (to ONNX), each as a module from tensors to one tensor."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.capabilities import (
    Classifies,
    Decodes,
    Denoises,
    DetectsObjects,
    Discriminates,
    Encodes,
    Refines,
    Regresses,
    Segments,
    Translates,
    takes_labels,
)
from models.family import Family
from models.types import InputError

ROWS = 3  # of the example inputs
BY_CAPABILITY = {
    "classifier": (Classifies, "logits", "logits"),
    "segmenter": (Segments, "pixel_logits", "logits"),
    "detector": (DetectsObjects, "detection_maps", "maps"),
    "estimator": (Regresses, "estimate", "estimates"),
    "denoiser": (Denoises, "denoise", "images_out"),
    "refiner": (Refines, "refine", "images_out"),
    "judge": (Discriminates, "real_log_odds", "log_odds"),
}
"""By part: the capability, its method, and the name of the output."""


class Part(nn.Module):
    """A method of a model as a module with the parameters of the model."""

    def __init__(self, model: Family, method: Callable[..., Tensor]):
        super().__init__()
        self.model, self.method = model, method

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.method(*inputs)


@dataclass(frozen=True)
class Graph:
    """A part with example inputs by name and the name of its output. Axis 0 of each is the batch."""

    part: str
    module: Part
    inputs: dict[str, Tensor]
    output: str


def parts(model: Family) -> list[str]:
    """Names of the parts of a model, the default first."""
    names = [name for name, (capability, *_) in BY_CAPABILITY.items() if isinstance(model, capability)]
    if isinstance(model, Translates):
        names += [f"translator_{direction}" for direction in model.directions]
    names += ["encoder"] if isinstance(model, Encodes) else []
    return names + (["decoder"] if isinstance(model, Decodes) else [])


def graph(model: Family, part: str | None = None) -> Graph:
    """The part of that name (default: the first). Raises InputError if the model does not have it."""
    known = parts(model)
    part = part or next(iter(known), None)
    if part not in known:
        raise InputError(
            f"a model of family {model.name} has no part {part}" if part else f"{model.name} has no part to export",
            field="part",
            remedy=f"It has {', '.join(known)}." if known else None,
        )
    if part == "decoder":
        return _decoder(model)
    draws = torch.Generator().manual_seed(0)
    images = {"images": torch.rand((ROWS, *model.data.shape), generator=draws)}
    if part == "encoder":
        return Graph(part, Part(model, model.encode), images, "latents")
    if part.startswith("translator_"):
        direction = part.removeprefix("translator_")
        return Graph(part, Part(model, lambda images: model.translate(images, direction)), images, "images_out")
    if part == "refiner" and model.noise_dim:
        images["noise"] = torch.randn((ROWS, model.noise_dim), generator=draws)
    _, method, output = BY_CAPABILITY[part]
    return Graph(part, Part(model, getattr(model, method)), images, output)


def _decoder(model: Family) -> Graph:
    draws = torch.Generator().manual_seed(0)
    inputs = {"latents": torch.randn((ROWS, model.latent_dim), generator=draws)}
    if takes_labels(model):
        inputs["labels"] = model.example_labels(ROWS)
    return Graph("decoder", Part(model, model.decode), inputs, "images_out")
