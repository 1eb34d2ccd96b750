"""The base of imported models: images in [0, 1] are normalised as the network was trained, and nothing is trained."""

from typing import ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.context import StepContext
from models.family import Family
from models.types import Batch, ConfigError, DataSpec, Metrics, ModelError


class ImportedConfig(BaseModel):
    """How images come to the network: (pixels - mean) / std, for each channel or for all alike."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mean: tuple[float, ...] = Field((0.0,), max_length=4, description="Per channel, of pixels in [0, 1].")
    std: tuple[float, ...] = Field((1.0,), max_length=4, description="Per channel, of pixels in [0, 1].")


class Imported(Family):
    """A network with frozen weights."""

    layouts: ClassVar[tuple[str, ...]] = ()
    Config = ImportedConfig

    def __init__(self, config: ImportedConfig, data: DataSpec):
        super().__init__(config, data)
        for name in ("mean", "std"):
            values = getattr(config, name)
            if len(values) not in (1, data.channels):
                raise ConfigError(f"{name} has {len(values)} numbers for {data.channels} channels", field=name)
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        if min(config.std) <= 0:
            raise ConfigError("std must be above zero", field="std", remedy="give it for pixels in [0, 1]")

    @classmethod
    def resolve_config(cls, config: ImportedConfig, data: DataSpec) -> ImportedConfig:
        return config

    def normalised(self, images: Tensor) -> Tensor:
        """(b, c, h, w) in [0, 1] -> what the network takes."""
        return (images - self.mean) / self.std

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def load_for_serving(self, state: dict[str, Tensor]) -> Self:
        wanted = self.state_dict()
        if missing := sorted(wanted.keys() - state.keys()):
            raise ModelError(f"the weights lack {missing[0]}", field="file")
        if extra := sorted(state.keys() - wanted.keys()):
            raise ModelError(f"the weights have {extra[0]}, which this network does not", field="file")
        for name, tensor in state.items():
            if tensor.shape != wanted[name].shape:
                given, expected = ("x".join(map(str, shape)) for shape in (tensor.shape, wanted[name].shape))
                raise ModelError(f"{name} is {given} and should be {expected}", field="file")
        self.load_state_dict(state)
        return self.eval().requires_grad_(False)

    def optimisers(self) -> dict:
        raise ConfigError("imported models are not trained", field="family")

    def step(self, batch: Batch, optimisers: dict, context: StepContext) -> Metrics:
        raise ConfigError("imported models are not trained", field="family")
