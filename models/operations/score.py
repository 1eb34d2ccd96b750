"""How real an image looks to the discriminator of a trained game."""

from models.family import Family, Judges
from models.operations.core import Operation, Params, Result, Rows


class Score(Operation):
    """The score is the probability that an image is from the data, where half of all images were the model's own."""

    name = "score"
    summary = "Gives the probability that each image is real and not the model's own work."
    needs = (Judges,)
    gives = "facts"

    def agreement(self, params: Params) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: Params) -> Rows:
        return {"log_odds": model.realness(rows["inputs"])}

    def result(self, model: Family, rows: Rows, found: Rows, params: Params) -> Result:
        odds = found["log_odds"].double()
        items = [
            {"score": share, "threshold": 0.5, "real": share >= 0.5, "log_odds": log_odds}
            for log_odds, share in zip(odds.tolist(), odds.sigmoid().tolist(), strict=True)
        ]
        return Result(facts={"items": items})
