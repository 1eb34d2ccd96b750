"""The autoencoder: a code that keeps what is needed to draw the image again."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from models import losses
from models.coding import Coding, CodingConfig
from models.moment import Moment
from models.types import Batch, Metrics


class AutoencoderConfig(CodingConfig):
    """Losses are summed over the numbers of an image and averaged over the batch."""

    reconstruction: Literal["mse", "bce"] = Field(
        "mse",
        description="mse: squared error. bce: cross-entropy of each pixel, for images that are nearly black or white.",
    )


class Autoencoder(Coding):
    """With a linear body and squared error its optimum is PCA."""

    name = "autoencoder"
    summary = "Compresses images to short codes and draws them again."
    lecture = "Autoencoders: under- and over-complete"
    Config = AutoencoderConfig

    def loss(self, batch: Batch, moment: Moment) -> tuple[Tensor, Metrics]:
        images = batch["images"]
        output = self.decoder(self.encode(images))
        distance = losses.bernoulli if self.config.reconstruction == "bce" else losses.squared_error
        return distance(output, images).mean(), {}

    def pixels(self, output: Tensor) -> Tensor:
        return output.sigmoid() if self.config.reconstruction == "bce" else output.clamp(0, 1)
