"""Layer-wise pre-training of a deep MLP autoencoder (Vincent et al. 2008, section 3).

Each layer is trained as a denoising autoencoder of the output of the layers below it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.encoders import MLPDecoder, MLPEncoder


def layer_pairs(encoder: MLPEncoder, decoder: MLPDecoder) -> list[tuple[nn.Linear, nn.Linear]]:
    """Each layer of the encoder, from the image up, with its counterpart in the decoder."""
    up = [layer for layer in encoder.layers if isinstance(layer, nn.Linear)]
    down = [layer for layer in decoder.layers if isinstance(layer, nn.Linear)]
    return list(zip(up, reversed(down), strict=True))


def layer_at(progress: float, share: float, layers: int) -> int | None:
    """The layer to train at `progress`, if the first `share` of the training is divided equally among the layers.

    None: all layers are trained together.
    """
    return min(layers - 1, int(progress / share * layers)) if progress < share else None


def layer_output(
    pairs: list[tuple[nn.Linear, nn.Linear]],
    index: int,
    images: Tensor,
    corrupt: Callable[[Tensor], Tensor],
    code: nn.Module,
) -> tuple[Tensor, Tensor]:
    """The reconstruction by layer `index` of its corrupted input, and the clean input: both (b, f).

    Only this layer and its counterpart get gradients. The output of layer 0 has no final activation.
    """
    clean = images.flatten(1)
    with torch.no_grad():
        for up, _ in pairs[:index]:
            clean = F.silu(up(clean))
    up, down = pairs[index]
    activation = code if index == len(pairs) - 1 else F.silu
    output = down(activation(up(corrupt(clean))))
    return (output if index == 0 else F.silu(output)), clean
