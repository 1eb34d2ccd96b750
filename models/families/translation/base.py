"""What the adversarial translators share: sizes from the data, one optimiser for each side, the papers' schedule."""

import torch
from torch import Tensor, nn

from models.capabilities import Translates
from models.families.translation.instance_norm import normalised
from models.families.translation.networks import patch_layers
from models.families.translation.tile_statistics import of_whole
from models.family import Config, Family
from models.types import DataSpec


class Translator(Translates, Family):
    """Generators against judges, by name of a direction or a domain. Its Config has `width` and `patch_layers`."""

    generators: nn.ModuleDict
    judges: nn.ModuleDict
    served: nn.ModuleDict

    @classmethod
    def resolve_config(cls, config: Config, data: DataSpec) -> Config:
        smallest = min(data.height, data.width)
        layers = config.patch_layers or patch_layers(data.height, data.width)
        width = config.width or (64 if smallest >= 128 else 32)
        return super().resolve_config(config, data).model_copy(update={"patch_layers": layers, "width": width})

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        rate = self.config.learning_rate
        networks = {"generators": self.generators, "judges": self.judges}
        return {
            name: torch.optim.Adam(net.parameters(), rate, (0.5, 0.999), fused=True) for name, net in networks.items()
        }

    def schedule(self, progress: float) -> float:
        """Constant for the first half, then linearly to 0, as in both papers."""
        return min(1.0, 2 * (1 - progress))

    def translate(self, images: Tensor, direction: str) -> Tensor:
        return self.served[direction](images).clamp(0, 1)

    def statistics(self, image: Tensor, directions: list[str]) -> list[Tensor]:
        return of_whole([self.served[direction] for direction in directions], image)

    def translate_tiles(self, tiles: Tensor, direction: str, statistics: Tensor) -> Tensor:
        with normalised(self.served[direction], statistics):
            return self.served[direction](tiles).clamp(0, 1)
