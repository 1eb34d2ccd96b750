"""Anomaly scores of images, compared with those of reference images."""

from pydantic import Field
from torch import Tensor

from models.capabilities import Decodes, Encodes, reconstruct
from models.evaluation.anomaly import Familiar, Measured, bound, enough_for_pca, heat, measure, pca_basis
from models.evaluation.dataset_view import DatasetView, Split
from models.family import Family
from models.operations.core.base import DatasetParams, ImageParams, Operation, Result, Rows
from models.types import InputError

REFERENCES, ELBO_REFERENCES = 2000, 500
"""Reference images that are reconstructed, and those whose -ELBO is computed (ten decodings each)."""


class AnomalyParams(DatasetParams, ImageParams):
    """The reference images: by default the validation images of the dataset the model was trained on."""

    split: Split | None = Field(
        None, description="Reference images. Default: validation, or all if there are no validation images."
    )
    share: float = Field(
        0.95, gt=0.5, lt=1, description="Fraction of normal images that are to score below the threshold."
    )


class Anomaly(Operation):
    """Scores are in standard deviations from their mean over the reference images.

    `score` is the mean of `model`, the reconstruction error, `knn`, the distance to the nearest codes of training
    images, and `pca`, the error of PCA with as many components as the code has numbers. A vae also has `elbo`, its
    -ELBO over ten draws. `false_alarms` is the 95 % interval of the fraction of normal images above the threshold: it
    narrows with their number. The heat map shows the error of each pixel.
    """

    name = "anomaly"
    summary = "Says how unfamiliar images are to the model, and where."
    needs = (Encodes, Decodes)
    gives = "pictured"
    dataset = True
    price = {
        "forwards": "(inputs + min(dataset, 2000)) * (2 + Conditional) + min(dataset, 2000)"
        " + (inputs + min(dataset, 500)) * 11 * HasPosterior",
        "backwards": "0",
    }
    Params = AnomalyParams

    def rows(self, model: Family, inputs: Tensor, params: AnomalyParams) -> Rows:
        if params.split is not None:
            self.view.select(params.split)
        return {"inputs": inputs}

    def batch_key(self, params: AnomalyParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: AnomalyParams) -> Rows:
        codes, reconstructions = reconstruct(model, rows["inputs"])
        negative_elbo = bound(model)
        bounds = {"bounds": negative_elbo(rows["inputs"])} if negative_elbo else {}
        return {"codes": codes, "reconstructions": reconstructions, **bounds}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: AnomalyParams) -> Result:
        reference, basis = reference_scores(self.view, params.split)
        images, reconstructions = rows["inputs"], outputs["reconstructions"]
        centred = images.flatten(1) - basis[0]
        pca_errors = (centred - centred @ basis[1:].T @ basis[1:]).square().mean(1)
        errors = (reconstructions - images).square().flatten(1).mean(1)
        scores = reference.scores(Measured(outputs["codes"], errors, pca_errors, outputs.get("bounds")))
        threshold = reference.threshold(params.share)
        items = [
            {
                "score": score,
                "threshold": threshold,
                "anomalous": score > threshold,
                "standing": standing,
                "mse": float(errors[row]),
            }
            | {name: float(values[row]) for name, values in scores.items() if name != "score"}
            for row, (score, standing) in enumerate(
                zip(scores["score"].tolist(), reference.standing(scores["score"]).tolist(), strict=True)
            )
        ]
        facts = {"dataset": self.view.name, "familiar_images": len(reference.home.errors), "items": items}
        facts["false_alarms"] = dict(zip(("low", "high"), reference.false_alarms(params.share), strict=True))
        facts["thresholds"] = {name: reference.thresholds(name) for name in scores}
        return Result(
            facts=facts, pictures={"heat_map": heat(images, reconstructions), "reconstruction": reconstructions}
        )


def reference_scores(view: DatasetView, split: Split | None) -> tuple[Familiar, Tensor]:
    """The measures of the reference images, and the PCA basis (1 + D, pixels) they were measured with."""
    split = split or ("validation" if "validation" in view.sides else "all")
    selection = view.select(split, REFERENCES)
    if len(selection) < 2:
        raise InputError(
            "Anomaly scores need at least 2 reference images.", "dataset", "Use a dataset with more images."
        )
    pca_split = "train" if split == "validation" and "train" in view.sides else split
    pca_images = view.select(pca_split, min(REFERENCES, enough_for_pca(view.data.pixels)))
    dimensions = view.model.latent_dim
    key = f"pca-{pca_split}-{len(pca_images)}-{dimensions}"
    basis = view.cache(key, 0, lambda: pca_basis(view.images(pca_images.positions), dimensions))
    rows = view.measure("errors", selection, measure(view.model, basis))
    negative_elbo = bound(view.model)
    bounds = None
    if negative_elbo:
        bounds = view.measure("bounds", view.select(split, ELBO_REFERENCES), negative_elbo)
    known = view.codes(view.select("train", REFERENCES)) if pca_split == "train" and split != "train" else None
    return Familiar(Measured.from_rows(rows, bounds), known), basis
