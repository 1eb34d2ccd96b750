"""Layer-wise pre-training of a deep MLP autoencoder (Vincent et al. 2008, section 3): each layer learns to undo noise
on what the layers below it give.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.encoders import FlatDecoder, FlatEncoder


def layer_pairs(encoder: FlatEncoder, decoder: FlatDecoder) -> list[tuple[nn.Linear, nn.Linear]]:
    """Each encoder layer, from the image up, with the decoder layer that undoes it."""
    up = [layer for layer in encoder.layers if isinstance(layer, nn.Linear)]
    down = [layer for layer in decoder.layers if isinstance(layer, nn.Linear)]
    return list(zip(up, reversed(down), strict=True))


def layer_at(progress: float, share: float, layers: int) -> int | None:
    """The layer that learns at `progress`, when the first `share` of a run goes to the layers in equal parts.

    None: all layers learn together.
    """
    return min(layers - 1, int(progress / share * layers)) if progress < share else None


def layer_output(
    pairs: list[tuple[nn.Linear, nn.Linear]],
    index: int,
    images: Tensor,
    corrupt: Callable[[Tensor], Tensor],
    code: nn.Module,
) -> tuple[Tensor, Tensor]:
    """What layer `index` makes of its corrupted input, and the clean input: both (b, f).

    Only its own pair is differentiated. The lowest layer gives an output before any final activation.
    """
    clean = images.flatten(1)
    with torch.no_grad():
        for up, _ in pairs[:index]:
            clean = F.silu(up(clean))
    up, down = pairs[index]
    activation = code if index == len(pairs) - 1 else F.silu
    back = down(activation(up(corrupt(clean))))
    return (back if index == 0 else F.silu(back)), clean
