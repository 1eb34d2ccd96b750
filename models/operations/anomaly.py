"""Does the model know such an image? Its reconstruction error, held against images the model is at home with."""

from pydantic import Field
from torch import Tensor

from models.capabilities import Decodes, Encodes
from models.evaluation.anomaly import Familiar, Measured, bound, enough_for_pca, heat, measure, pca_basis
from models.evaluation.dataset_view import DatasetView, Split
from models.evaluation.reconstruct import reconstruct
from models.family import Family
from models.operations.core.base import DatasetParams, ImageParams, Operation, Result, Rows
from models.types import InputError

HOME, BOUNDED = 2000, 500
"""Images at home that are drawn again, and those whose -ELBO is computed, which costs ten decodings each."""


class AnomalyParams(DatasetParams, ImageParams):
    """What is familiar: a dataset, by default the validation images of the one the model learned from."""

    split: Split | None = Field(None, description="Familiar images; empty: validation, or all where there is none.")
    share: float = Field(0.95, gt=0.5, lt=1, description="Share of familiar images below the threshold.")


class Anomaly(Operation):
    """Scores count standard deviations from the usual error. The heat map shows where the model fails.

    `pca` and `knn` are the scores of plain rivals: PCA with as many numbers, and the distance to the nearest codes. A
    vae has `elbo` too, the score of its -ELBO over ten draws: what the code costs counts as well.
    """

    name = "anomaly"
    summary = "Says how unfamiliar images are to the model, and where."
    needs = (Encodes, Decodes)
    gives = "pictured"
    dataset = True
    Params = AnomalyParams

    def rows(self, model: Family, inputs: Tensor, params: AnomalyParams) -> Rows:
        if params.split is not None:
            self.view.select(params.split)
        return {"inputs": inputs}

    def batch_key(self, params: AnomalyParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: AnomalyParams) -> Rows:
        codes, drawn = reconstruct(model, rows["inputs"])
        bounded = bound(model)
        return {"codes": codes, "drawn": drawn} | ({"bounds": bounded(rows["inputs"])} if bounded else {})

    def result(self, model: Family, rows: Rows, found: Rows, params: AnomalyParams) -> Result:
        familiar, basis = at_home(self.view, params.split)
        images, drawn = rows["inputs"], found["drawn"]
        centred = images.flatten(1) - basis[0]
        left = (centred - centred @ basis[1:].T @ basis[1:]).square().mean(1)
        errors = (drawn - images).square().flatten(1).mean(1)
        scores = familiar.scores(Measured(found["codes"], errors, left, found.get("bounds")))
        threshold = float(familiar.normal["model"].quantile(params.share))
        items = [
            {
                "score": score,
                "threshold": threshold,
                "anomalous": score > threshold,
                "standing": standing,
                "mse": float(errors[row]),
            }
            | {name: float(rival[row]) for name, rival in scores.items() if name != "model"}
            for row, (score, standing) in enumerate(
                zip(scores["model"].tolist(), familiar.standing(scores["model"]).tolist(), strict=True)
            )
        ]
        facts = {"dataset": self.view.name, "familiar_images": len(familiar.home.errors), "items": items}
        facts["thresholds"] = {name: familiar.thresholds(name) for name in scores}
        return Result(facts=facts, pictures={"heat_map": heat(images, drawn), "reconstruction": drawn})


def at_home(view: DatasetView, split: Split | None) -> tuple[Familiar, Tensor]:
    """What is usual for the images of a dataset, and the PCA basis it was measured with."""
    split = split or ("validation" if "validation" in view.sides else "all")
    selection = view.select(split, HOME)
    if len(selection) < 2:
        raise InputError("one image does not say what is usual", "dataset", "name a dataset with more images")
    learned = "train" if split == "validation" and "train" in view.sides else split
    few = view.select(learned, min(HOME, enough_for_pca(view.data.pixels)))
    dimensions = view.model.latent_dim
    key = f"pca-{learned}-{len(few)}-{dimensions}"
    basis = view.cache(key, 0, lambda: pca_basis(view.images(few.positions), dimensions))
    rows = view.measure("errors", selection, measure(view.model, basis))
    bounded = bound(view.model)
    bounds = view.measure("bounds", view.select(split, BOUNDED), bounded) if bounded else None
    return Familiar(Measured.from_rows(rows, bounds)), basis
