"""What an image shows, as far as the model can tell."""

from pydantic import Field

from models.capabilities import Classifies
from models.family import Family
from models.operations.core.base import ImageParams, Operation, Result, Rows


class ClassifyParams(ImageParams):
    """How much of the answer to report."""

    top: int = Field(5, ge=1, le=1000, description="How many classes to list for each image, the most probable first.")


class Classify(Operation):
    """Probabilities are the softmax over the logits of all classes, listed or not."""

    name = "classify"
    summary = "Gives each image's most probable classes."
    needs = (Classifies,)
    gives = "facts"
    Params = ClassifyParams

    def batch_key(self, params: ClassifyParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: ClassifyParams) -> Rows:
        return {"logits": model.logits(rows["inputs"])}

    def result(self, model: Family, rows: Rows, found: Rows, params: ClassifyParams) -> Result:
        probabilities = found["logits"].double().softmax(1)
        best = probabilities.sort(dim=1, descending=True, stable=True)
        items = []
        for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            ranked = list(zip(indices, values, strict=True))[: params.top]
            items.append({"predictions": [self._prediction(model, *found) for found in ranked]})
        return Result(facts={"items": items})

    def _prediction(self, model: Family, index: int, probability: float) -> dict:
        names = model.data.classes
        return {"label": names[index] if names else str(index), "index": index, "probability": probability}
