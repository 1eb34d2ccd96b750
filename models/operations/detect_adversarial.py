"""Detection of adversarial images by the detector of a defended model."""

from models.capabilities import DetectsAdversarial
from models.family import Family
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.types import InputError


class DetectAdversarial(Operation):
    """The threshold is a quantile of the scores of clean validation images.

    The detector is differentiable: an attacker who knows it can attack it together with the classifier.
    """

    name = "detect-adversarial"
    aliases = ("detect",)
    summary = "Scores each image: is it adversarial?"
    needs = (DetectsAdversarial,)
    gives = "facts"
    Params = ImageParams

    def batch_key(self, params: ImageParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: ImageParams) -> Rows:
        return {"suspicion": model.adversarial_score(rows["inputs"])}

    def result(self, model: Family, rows: Rows, found: Rows, params: ImageParams) -> Result:
        level = model.threshold
        if level is None:
            raise InputError(
                "the detector of this model has no threshold, for want of clean images when it was made",
                field="model",
                remedy="make it again, naming a dataset of clean images",
            )
        scores = found["suspicion"].tolist()
        items = [{"score": score, "threshold": level, "adversarial": score > level} for score in scores]
        return Result(facts={"detector": model.config.detector.kind, "items": items})
