"""The base of imported models: normalises images in [0, 1] as in the network's training; weights stay fixed."""

from typing import ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.context import StepContext
from models.family import Family
from models.types import Batch, ConfigError, DataSpec, Metrics, ModelError

LISTED = 5


class ImportedConfig(BaseModel):
    """The normalisation of images: (pixels - mean) / std, per channel or with one number for all."""

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
                raise ConfigError(
                    f"{name} must have 1 or {data.channels} numbers, one per channel; you sent {len(values)}",
                    field=name,
                )
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        if min(config.std) <= 0:
            raise ConfigError(
                f"std must be above 0; you sent {min(config.std):g}", field="std", remedy="give it for pixels in [0, 1]"
            )

    @classmethod
    def resolve_config(cls, config: ImportedConfig, data: DataSpec) -> ImportedConfig:
        return config

    def normalised(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) in [0, 1] -> the input of the network."""
        return (images - self.mean) / self.std

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def load_for_serving(self, state: dict[str, Tensor]) -> Self:
        own = self.state_dict()
        if missing := sorted(own.keys() - state.keys()):
            raise ModelError(f"the weights lack {', '.join(missing[:LISTED])}", field="file")
        if extra := sorted(state.keys() - own.keys()):
            raise ModelError(
                f"the weights have tensors that this network does not: {', '.join(extra[:LISTED])}", field="file"
            )
        for name, tensor in state.items():
            if tensor.shape != own[name].shape:
                shape, expected = ("x".join(map(str, each)) for each in (tensor.shape, own[name].shape))
                raise ModelError(f"{name} must have the shape {expected}; the weights have {shape}", field="file")
        self.load_state_dict(state)
        return self.eval().requires_grad_(False)

    def optimisers(self) -> dict:
        raise ConfigError("imported models are not trained", field="family")

    def step(self, batch: Batch, optimisers: dict, context: StepContext) -> Metrics:
        raise ConfigError("imported models are not trained", field="family")
