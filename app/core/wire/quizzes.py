"""The quiz "which of two images is real?": questions, answers and the tally."""

from typing import Literal

from pydantic import BaseModel, Field

from app.core.wire.terms import Links, Request


class Tally(BaseModel):
    """The answers of this client about one version of a model."""

    answered: int
    correct: int
    discriminator_correct: int | None = Field(
        description="Correct answers of the model's discriminator on the same pairs; null without one."
    )


class Quiz(BaseModel):
    """Two images: one is real, one is a sample of the model."""

    id: str
    model: str
    version: str
    images: list[str] = Field(description="Base64 of two PNGs: number 0 and number 1.")
    label: str | None = Field(None, description="The class of both, for a conditional model.")
    tally: Tally
    links: Links


class QuizAnswer(Request):
    id: str = Field(pattern=r"^[0-9a-f]{16}$", description="Id of the question.")
    answer: Literal[0, 1] = Field(description="Index of the image that the client takes for real.")


class QuizVerdict(BaseModel):
    """The result of an answer. If a question is answered again, the first answer counts."""

    id: str
    answer: int
    real: int = Field(description="Index of the real image.")
    correct: bool
    discriminator: int | None = Field(
        description="Index of the image that the model's discriminator takes for real; null without one."
    )
    tally: Tally
