"""Whether a training could begin: its settings are made complete, as the training will do it, and nothing is built."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from models.registry import families
from models.types import DataSpec
from workers.inference.model_cache import ModelCache
from workers.inference.requests import read_params


class TrainingRequest(BaseModel):
    """The family, its settings, and the facts of the dataset."""

    model_config = ConfigDict(extra="forbid")

    family: str
    config: dict[str, Any]
    facts: dict[str, Any]


def validate_training(call: dict[str, Any], models: ModelCache | None = None) -> dict[str, Any]:
    """An answer with the complete `config` among its facts. Raises ConfigError or DataError."""
    request = read_params(TrainingRequest, call["params"])
    config = families()[request.family].complete_config(request.config, DataSpec.from_facts(request.facts))
    facts = {"config": config.model_dump(mode="json")}
    return {"images": [], "latents": None, "facts": facts, "extra": {}, "sheets": {}, "timings": {}}
