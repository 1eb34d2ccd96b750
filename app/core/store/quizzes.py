"""Real or generated? What a question is, from its id alone, and the tally of the answers given."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, case, func, insert, select
from sqlalchemy.exc import IntegrityError

from app.core.store.database import clock
from app.core.store.tables import quiz_answers

IDENT = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Question:
    """`row` of the validation images beside the sample of `seed`; `real` (0 or 1) is where the first of them stands."""

    id: str
    row: int
    seed: int
    real: int


def possible(operations: list[str], card: dict[str, Any]) -> bool:
    """Whether a model with these operations can be asked about: it draws images like those of a dataset it names."""
    return "samples" in operations and bool(card.get("dataset_digest")) and validation_rows(card) > 0


def validation_rows(card: dict[str, Any]) -> int:
    """Images of the model's dataset that it was not trained on."""
    return card.get("data", {}).get("columns", {}).get("validation", {}).get("images", 0)


def new_ident() -> str:
    return secrets.token_hex(8)


def question(digest: str, ident: str, rows: int) -> Question:
    """The question `ident` about the model `digest`, whose dataset has so many validation images."""
    drawn = hashlib.sha256(f"quiz {digest} {ident}".encode()).digest()
    row, seed = (int.from_bytes(drawn[start : start + 8], "big") for start in (0, 8))
    return Question(ident, row % rows, seed >> 33, drawn[16] & 1)


def record(conn: Connection, person: dict[str, str], ident: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes an answer ({"answer", "correct", "discriminator"}) unless the question was answered before.

    Returns the answer that counts: the first.
    """
    where = [quiz_answers.c[name] == value for name, value in (person | {"quiz": ident}).items()]
    known = select(*(quiz_answers.c[name] for name in facts)).where(*where)
    found = conn.execute(known).mappings().one_or_none()
    if found is None:
        try:
            with conn.begin_nested():
                conn.execute(insert(quiz_answers).values(**person, quiz=ident, **facts, created_at=clock()))
            return facts
        except IntegrityError:  # the same answer came twice at once
            found = conn.execute(known).mappings().one()
    return dict(found)


def tally(conn: Connection, person: dict[str, str]) -> dict[str, Any]:
    """How many questions about a model a person has answered, and who was right how often on the same ones."""
    mine = [quiz_answers.c[name] == value for name, value in person.items()]
    verdict = quiz_answers.c.discriminator
    counts = select(
        func.count(),
        func.coalesce(func.sum(case((quiz_answers.c.correct, 1), else_=0)), 0),
        func.count(verdict),
        func.coalesce(func.sum(case((verdict, 1), else_=0)), 0),
    )
    answered, correct, judged, right = conn.execute(counts.where(*mine)).one()
    return {"answered": answered, "correct": correct, "discriminator_correct": right if judged else None}
