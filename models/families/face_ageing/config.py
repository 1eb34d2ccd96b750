"""What face ageing is asked for: the groups, where identity is learned from, and the share of each stage."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from models.families.face_ageing.age_groups import boundaries_of, check_boundaries, names_of
from models.families.face_ageing.identity import TrunkSpec
from models.families.gans.conditional_gan import ConditionalGANConfig
from models.types import ConfigError, DataError, DataSpec

Age = Annotated[float, Field(ge=0, le=1e6)]


class AgeCGANConfig(ConditionalGANConfig):
    """The fields of `conditional_gan`, the age groups, and how the run is shared among the stages."""

    condition: Literal["ages", "labels"] | None = Field(
        None, description="What the groups are made of: numbers in the column age, or else the classes."
    )
    boundaries: tuple[Age, ...] | None = Field(
        None,
        min_length=1,
        max_length=31,
        description="Ages at which a new group begins. Empty: 19, 30, 40, 50 and 60, as far as the data has such ages.",
    )
    identity: Literal["labels", "images", "model"] | None = Field(
        None,
        description="What the identity network learns from: the dataset's identities; each image against all others, "
        "where there are none; or nothing, because init_from names a classifier of identities.",
    )
    identity_network: TrunkSpec | None = Field(None, description="The body of that classifier; filled in by itself.")
    encoder_share: float = Field(0.15, gt=0, le=0.4, description="Share of the run that trains the encoder.")
    recogniser_share: float = Field(
        0.15, gt=0, le=0.4, description="Share that trains the networks which read age and identity."
    )


def groups_asked(config: AgeCGANConfig, data: DataSpec) -> tuple[str, tuple[float, ...] | None]:
    """The condition, and the boundaries of its groups where it is the age. Raises DataError or ConfigError."""
    columns = data.columns.get("train", {})
    condition = config.condition or ("ages" if "ages" in columns else "labels")
    if (condition == "ages" and "ages" not in columns) or (condition == "labels" and not data.classes):
        raise DataError(
            f"age_cgan needs {config.condition or 'ages or labels'}, which this dataset lacks",
            field="dataset",
            remedy="import images with a labels.csv that has the columns file and age, and perhaps identity",
        )
    boundaries = config.boundaries
    if condition == "ages" and boundaries is None:
        boundaries = boundaries_of(data.ages or USUAL_RANGE)
    if condition == "ages":
        check_boundaries(boundaries, data.ages)
    elif boundaries is not None:
        raise ConfigError("boundaries part ages, and the groups are classes", field="boundaries")
    return condition, boundaries


USUAL_RANGE = (0.0, 19.0, 30.0, 40.0, 50.0, 60.0, *map(float, range(61, 71)))
"""Ages of a dataset imported before its ages were looked at: all of the paper's groups."""


def identity_source(config: AgeCGANConfig, data: DataSpec) -> str:
    """Where identity is learned from. Raises DataError when it is asked of identities that teach nothing."""
    telling = data.identities is not None and 1 < data.identities < data.count
    if config.identity == "labels" and not telling:
        raise DataError(
            "identity=labels needs two identities or more, and one of them with two images or more",
            field="identity",
            remedy="leave identity out, or give labels.csv an identity column in which people come again",
        )
    return config.identity or ("labels" if telling else "images")


def players_config(config: AgeCGANConfig, images: int | None = None) -> ConditionalGANConfig:
    """What the two players are told: groups are their labels, and `images` the length of their stage."""
    fields = {name: getattr(config, name) for name in ConditionalGANConfig.model_fields}
    return ConditionalGANConfig(**{**fields, "condition": "labels", "images": images or config.images})


def grouped(config: AgeCGANConfig, data: DataSpec) -> DataSpec:
    """The dataset as the players see it: the age groups are its classes."""
    classes = data.classes if config.condition == "labels" else names_of(config.boundaries)
    counts = {side: {**columns, "labels": columns.get("images", 0)} for side, columns in data.columns.items()}
    return replace(data, classes=classes, columns=counts)
