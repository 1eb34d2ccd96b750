"""The quiz "real or generated?": questions, which follow from their id, answers and their tally."""

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
    """Validation image number `row` and the sample of `seed`; `real` (0 or 1) is the position of the former."""

    id: str
    row: int
    seed: int
    real: int


def possible(operations: list[str], card: dict[str, Any]) -> bool:
    """Whether a quiz can be made of a model: it samples, and its dataset has validation images."""
    return "samples" in operations and bool(card.get("dataset_digest")) and validation_rows(card) > 0


def validation_rows(card: dict[str, Any]) -> int:
    """Number of validation images of the model's dataset."""
    return card.get("data", {}).get("columns", {}).get("validation", {}).get("images", 0)


def new_ident() -> str:
    return secrets.token_hex(8)


def question(digest: str, ident: str, rows: int) -> Question:
    """The question `ident` about the model `digest`, whose dataset has `rows` validation images."""
    random_bytes = hashlib.sha256(f"quiz {digest} {ident}".encode()).digest()
    row, seed = (int.from_bytes(random_bytes[start : start + 8], "big") for start in (0, 8))
    return Question(ident, row % rows, seed >> 33, random_bytes[16] & 1)


def record(conn: Connection, person: dict[str, str], ident: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes an answer ({"answer", "correct", "discriminator"}) unless the question was answered before.

    Returns the answer that counts: the first.
    """
    where = [quiz_answers.c[name] == value for name, value in (person | {"quiz": ident}).items()]
    first = select(*(quiz_answers.c[name] for name in facts)).where(*where)
    row = conn.execute(first).mappings().one_or_none()
    if row is None:
        try:
            with conn.begin_nested():
                conn.execute(insert(quiz_answers).values(**person, quiz=ident, **facts, created_at=clock()))
            return facts
        except IntegrityError:  # answered twice at the same time
            row = conn.execute(first).mappings().one()
    return dict(row)


def tally(conn: Connection, person: dict[str, str]) -> dict[str, Any]:
    """How many questions about a model a person answered, and how many the person and the discriminator got right."""
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
