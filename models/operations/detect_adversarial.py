"""Detection of adversarial images by the detector of a defended model."""

from models.capabilities import DetectsAdversarial
from models.family import Family
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.types import InputError


class DetectAdversarial(Operation):
    """The threshold is a quantile of the scores of clean validation images.

    The detector is differentiable, so an adaptive attacker can attack it together with the classifier.
    """

    name = "detect-adversarial"
    aliases = ("detect",)
    summary = "Scores how likely each image is adversarial."
    needs = (DetectsAdversarial,)
    gives = "facts"
    Params = ImageParams

    def batch_key(self, params: ImageParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: ImageParams) -> Rows:
        return {"scores": model.adversarial_score(rows["inputs"])}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: ImageParams) -> Result:
        threshold = model.threshold
        if threshold is None:
            raise InputError(
                "The detector of this model has no threshold: it was made without clean images.",
                field="model",
                remedy="Make the defended model again with a dataset of clean images.",
            )
        scores = outputs["scores"].tolist()
        items = [{"score": score, "threshold": threshold, "adversarial": score > threshold} for score in scores]
        return Result(facts={"detector": model.config.detector.kind, "items": items})
