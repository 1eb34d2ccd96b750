"""How real an image looks to the discriminator of a trained game, as a whole or patch by patch."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.capabilities import Discriminates
from models.family import Family
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.types import InputError


class ScoreParams(ImageParams):
    """A model that judges pairs takes two images for each score: the input, then what was made of it."""

    map: bool = Field(False, description="Answer with a picture: white where a patch looks real, black where made.")
    domain: Literal["a", "b"] | None = Field(None, description="Whose discriminator, where there is one for each.")


class Score(Operation):
    """The score is the probability that an image is from the data, where half of all images were the model's own."""

    name = "score"
    summary = "Gives the probability that each image is real and not the model's own work."
    needs = (Discriminates,)
    gives = "facts"
    picture_param = "map"
    Params = ScoreParams

    def rows(self, model: Family, inputs: Tensor | None, params: ScoreParams) -> Rows:
        if not model.patch_domains:
            for name, given in (("map", params.map), ("domain", params.domain)):
                if given:
                    raise InputError("this model judges whole images of one kind", field=name, remedy="leave it away")
            return {"inputs": inputs}
        if params.domain not in (None, *model.patch_domains):
            raise InputError(f"this model judges {' and '.join(model.patch_domains)} only", field="domain")
        if not model.scores_pairs:
            return {"inputs": inputs}
        if len(inputs) % 2:
            raise InputError(
                f"this model judges pairs, and {len(inputs)} images are no pairs",
                field="image",
                remedy="send the input and then what was made of it, as two image fields",
            )
        return {"inputs": inputs[0::2], "made": inputs[1::2]}

    def batch_key(self, params: ScoreParams) -> tuple:
        return (params.domain,)

    def compute(self, model: Family, rows: Rows, params: ScoreParams) -> Rows:
        if not model.patch_domains:
            return {"log_odds": model.real_log_odds(rows["inputs"])}
        pair = (rows["made"],) if "made" in rows else ()
        patches = model.patches(rows["inputs"], *pair, domain=params.domain or model.patch_domains[0])
        return {"log_odds": patches.flatten(1).mean(1), "patches": patches}

    def result(self, model: Family, rows: Rows, found: Rows, params: ScoreParams) -> Result:
        odds = found["log_odds"].double()
        items = [
            {"score": share, "threshold": 0.5, "real": share >= 0.5, "log_odds": log_odds}
            for log_odds, share in zip(odds.tolist(), odds.sigmoid().tolist(), strict=True)
        ]
        if not params.map:
            return Result(facts={"items": items})
        shares = found["patches"].sigmoid()[:, None]
        facts = {"items": items, "patches": list(shares.shape[2:])}
        return Result(images=F.interpolate(shares, rows["inputs"].shape[2:]), facts=facts)
