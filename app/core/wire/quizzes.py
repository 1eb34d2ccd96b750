"""Which of two images is real: questions, answers and the tally."""

from typing import Literal

from pydantic import BaseModel, Field

from app.core.wire.terms import Links, Request


class Tally(BaseModel):
    """Answers given so far about one version of a model, by whoever asks."""

    answered: int
    correct: int
    discriminator_correct: int | None = Field(
        description="How often the model's own discriminator was right on the same pairs; null: it has none."
    )


class Quiz(BaseModel):
    """Two images, of which one is real and one the model's work."""

    id: str
    model: str
    version: str
    images: list[str] = Field(description="Base64 of two PNGs: number 0 and number 1.")
    label: str | None = Field(None, description="The class of both, for a conditional model.")
    tally: Tally
    links: Links


class QuizAnswer(Request):
    id: str = Field(pattern=r"^[0-9a-f]{16}$", description="Id of the question.")
    answer: Literal[0, 1] = Field(description="Number of the image that is taken for real.")


class QuizVerdict(BaseModel):
    """Of a question answered again, the first answer counts."""

    id: str
    answer: int
    real: int = Field(description="Number of the image that is real.")
    correct: bool
    discriminator: int | None = Field(
        description="Number of the image that the model's own discriminator takes for real; null: it has none."
    )
    tally: Tally
