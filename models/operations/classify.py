"""Classification: the most probable classes of each image."""

from pydantic import Field

from models.capabilities import Classifies
from models.family import Family
from models.operations.core.base import ImageParams, Operation, Result, Rows


class ClassifyParams(ImageParams):
    """How many classes to list."""

    top: int = Field(5, ge=1, le=1000, description="Number of classes to list for each image, most probable first.")


class Classify(Operation):
    """Probabilities are the softmax over the logits of all classes, not only of those listed."""

    name = "classify"
    summary = "Gives each image's most probable classes."
    needs = (Classifies,)
    gives = "facts"
    Params = ClassifyParams

    def batch_key(self, params: ClassifyParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: ClassifyParams) -> Rows:
        return {"logits": model.logits(rows["inputs"])}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: ClassifyParams) -> Result:
        probabilities = outputs["logits"].double().softmax(1)
        best = probabilities.sort(dim=1, descending=True, stable=True)
        items = []
        for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            ranked = list(zip(indices, values, strict=True))[: params.top]
            items.append(
                {"predictions": [self._prediction(model, index, probability) for index, probability in ranked]}
            )
        return Result(facts={"items": items})

    def _prediction(self, model: Family, index: int, probability: float) -> dict:
        names = model.data.classes
        return {"label": names[index] if names else str(index), "index": index, "probability": probability}
