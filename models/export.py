"""What of a model can be written down as a graph of its own: its parts, each a module from tensors to one tensor."""

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

ROWS = 3
"""Images or codes in the inputs that a part is traced and checked with."""
BY_CAPABILITY = {
    "classifier": (Classifies, "logits", "logits"),
    "segmenter": (Segments, "pixel_logits", "logits"),
    "detector": (DetectsObjects, "detection_maps", "maps"),
    "estimator": (Regresses, "estimate", "estimates"),
    "denoiser": (Denoises, "denoise", "images_out"),
    "refiner": (Refines, "refine", "images_out"),
    "judge": (Discriminates, "real_log_odds", "log_odds"),
}
"""Capability, the method that answers, and the name of what comes out."""


class Part(nn.Module):
    """One question to a model as a module; its parameters are the model's."""

    def __init__(self, model: Family, question: Callable[..., Tensor]):
        super().__init__()
        self.model, self.question = model, question

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.question(*inputs)


@dataclass(frozen=True)
class Graph:
    """A part with names for what goes in and comes out, and inputs to trace it with. Axis 0 of each is the batch."""

    part: str
    module: Part
    inputs: dict[str, Tensor]
    output: str


def parts(model: Family) -> list[str]:
    """Names of the parts of a model, the one asked for by default first."""
    found = [name for name, (capability, *_) in BY_CAPABILITY.items() if isinstance(model, capability)]
    if isinstance(model, Translates):
        found += [f"translator_{direction}" for direction in model.directions]
    found += ["encoder"] if isinstance(model, Encodes) else []
    return found + (["decoder"] if isinstance(model, Decodes) else [])


def graph(model: Family, part: str | None = None) -> Graph:
    """The part of that name. Raises InputError when the model has none such."""
    able = parts(model)
    part = part or next(iter(able), None)
    if part not in able:
        raise InputError(
            f"a model of family {model.name} has no part {part}" if part else f"{model.name} has no graph to export",
            field="part",
            remedy=f"It has {', '.join(able)}." if able else None,
        )
    if part == "decoder":
        return _decoder(model)
    draws = torch.Generator().manual_seed(0)
    images = {"images": torch.rand((ROWS, *model.data.shape), generator=draws)}
    if part == "encoder":
        return Graph(part, Part(model, model.encode), images, "latents")
    if part.startswith("translator_"):
        direction = part.removeprefix("translator_")
        return Graph(part, Part(model, lambda shown: model.translate(shown, direction)), images, "images_out")
    if part == "refiner" and model.noise_dim:
        images["noise"] = torch.randn((ROWS, model.noise_dim), generator=draws)
    _, question, output = BY_CAPABILITY[part]
    return Graph(part, Part(model, getattr(model, question)), images, output)


def _decoder(model: Family) -> Graph:
    draws = torch.Generator().manual_seed(0)
    inputs = {"latents": torch.randn((ROWS, model.latent_dim), generator=draws)}
    if takes_labels(model):
        inputs["labels"] = model.example_labels(ROWS)
    return Graph("decoder", Part(model, model.decode), inputs, "images_out")
