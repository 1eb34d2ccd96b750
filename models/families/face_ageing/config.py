"""Settings of age_cgan: the age groups, what the identity network learns from, and the length of each stage."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from models.families.face_ageing.age_groups import boundaries_of, check_boundaries, names_of
from models.families.face_ageing.identity import TrunkSpec
from models.families.gans.conditional_gan import ConditionalGANConfig
from models.types import ConfigError, DataError, DataSpec

Age = Annotated[float, Field(ge=0, le=1e6)]


class AgeCGANConfig(ConditionalGANConfig):
    """The settings of `conditional_gan`, the age groups, and the share of each stage of the training."""

    condition: Literal["ages", "labels"] | None = Field(
        None,
        description="Column that the groups come from: ages (numbers) or labels (each class is a group). Default: "
        "chosen from the dataset (ages, if it has them).",
    )
    boundaries: tuple[Age, ...] | None = Field(
        None,
        min_length=1,
        max_length=31,
        description="Ages at which a new group begins, increasing. Default: chosen from the dataset (19, 30, 40, 50, "
        "60, less those that leave a group empty).",
    )
    identity: Literal["labels", "images", "model"] | None = Field(
        None,
        description="What the identity network learns from. labels: the dataset's identities; images: each image "
        "against all others; model: nothing, it is taken from the classifier of identities that init_from names. "
        "Default: chosen from the dataset (labels, if identities occur repeatedly, else images).",
    )
    identity_network: TrunkSpec | None = Field(
        None, description="Architecture of that classifier. Set by the training; leave it out."
    )
    encoder_share: float = Field(0.15, gt=0, le=0.4, description="Fraction of the training spent on the encoder.")
    recogniser_share: float = Field(
        0.15, gt=0, le=0.4, description="Fraction of the training spent on the networks that read age and identity."
    )


def condition_and_boundaries(config: AgeCGANConfig, data: DataSpec) -> tuple[str, tuple[float, ...] | None]:
    """The column of the groups, and with ages their boundaries. Raises DataError or ConfigError."""
    columns = data.columns.get("train", {})
    condition = config.condition or ("ages" if "ages" in columns else "labels")
    if (condition == "ages" and "ages" not in columns) or (condition == "labels" and not data.classes):
        raise DataError(
            f"age_cgan needs the column {config.condition or 'ages or labels'}, which this dataset lacks",
            field="dataset",
            remedy="import images with a labels.csv that has the columns file and age, and perhaps identity",
        )
    boundaries = config.boundaries
    if condition == "ages" and boundaries is None:
        boundaries = boundaries_of(data.ages or PAPER_AGES)
    if condition == "ages":
        check_boundaries(boundaries, data.ages)
    elif boundaries is not None:
        raise ConfigError(
            "boundaries cannot be used with condition=labels, where each class is a group", field="boundaries"
        )
    return condition, boundaries


PAPER_AGES = (0.0, 19.0, 30.0, 40.0, 50.0, 60.0, *map(float, range(61, 71)))
"""Ages assumed for a dataset whose facts have none: they occupy all groups of the paper."""


def identity_source(config: AgeCGANConfig, data: DataSpec) -> str:
    """What the identity network learns from. Raises DataError for identity=labels without repeated identities."""
    repeated = data.identities is not None and 1 < data.identities < data.count
    if config.identity == "labels" and not repeated:
        raise DataError(
            "identity=labels needs at least two identities, one of which has at least two images",
            field="identity",
            remedy="leave identity out, or add a column identity to labels.csv in which identities occur repeatedly",
        )
    return config.identity or ("labels" if repeated else "images")


def gan_config(config: AgeCGANConfig, images: int | None = None) -> ConditionalGANConfig:
    """The config of the conditional GAN: the groups are its classes, `images` is the length of its stage."""
    fields = {name: getattr(config, name) for name in ConditionalGANConfig.model_fields}
    return ConditionalGANConfig(**{**fields, "condition": "labels", "images": images or config.images})


def with_groups_as_classes(config: AgeCGANConfig, data: DataSpec) -> DataSpec:
    """The facts of the dataset for the conditional GAN: the age groups are its classes."""
    classes = data.classes if config.condition == "labels" else names_of(config.boundaries)
    counts = {side: {**columns, "labels": columns.get("images", 0)} for side, columns in data.columns.items()}
    return replace(data, classes=classes, columns=counts)
