"""/v1/models/{m}/quiz: which of two images is real? Answers of a person and of the model's discriminator."""

import base64
import time
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.http.auth import Reader, Writer, submit
from app.api.http.openapi import problems
from app.api.http.paths import ModelPath
from app.api.http.strict import StrictRoute
from app.core import catalog, wire
from app.core.calls.client import Answer, Call
from app.core.errors import Conflict, NotFound, UnsupportedOperation
from app.core.settings import settings
from app.core.store import models as model_rows
from app.core.store import quizzes
from app.core.store.database import reading, transaction
from app.core.store.keys import LOCAL, Principal
from app.core.store.quizzes import Question

router = APIRouter(prefix="/v1/models", tags=["operations"], route_class=StrictRoute)


@router.get(
    "/{m}/quiz",
    response_model=wire.Quiz,
    operation_id="get_quiz",
    summary="A real and a generated image: which is which?",
    openapi_extra=problems(404, 409, 504),
)
async def ask(request: Request, m: ModelPath, principal: Reader, response: Response) -> wire.Quiz:
    """The real image is from the validation split. POST the answer with the id to the same path."""
    response.headers["Cache-Control"] = "no-store"
    row = await run_sync(_model, request, principal, m)
    question = quizzes.question(row["digest"], quizzes.new_ident(), quizzes.validation_rows(row["card"]))
    images, label = await _pair(request, row, question)
    tally = await run_sync(_tally, _person(principal, row))
    return wire.Quiz(
        id=question.id,
        model=row["name"],
        version=row["digest"],
        images=[base64.b64encode(image).decode() for image in images],
        label=label,
        tally=tally,
        links={"answer": f"/v1/models/{row['name']}@{row['digest'][:16]}/quiz"},
    )


@router.post(
    "/{m}/quiz",
    response_model=wire.QuizVerdict,
    operation_id="answer_quiz",
    summary="Answer a question of the quiz",
    openapi_extra=problems(404, 409, 504),
)
async def answer(request: Request, m: ModelPath, body: wire.QuizAnswer, principal: Writer) -> wire.QuizVerdict:
    """A question follows from the version of the model and the id, so it can be answered at any later time."""
    row = await run_sync(_model, request, principal, m)
    question = quizzes.question(row["digest"], body.id, quizzes.validation_rows(row["card"]))
    choice = await _verdict(request, row, question)
    person, right = _person(principal, row), None if choice is None else choice == question.real
    facts = {"answer": body.answer, "correct": body.answer == question.real, "discriminator": right}
    counted = await run_sync(_record, person, question.id, facts)
    return wire.QuizVerdict(
        id=question.id,
        answer=counted["answer"],
        real=question.real,
        correct=counted["correct"],
        discriminator=choice,
        tally=await run_sync(_tally, person),
    )


def _model(request: Request, principal: Principal, reference: str) -> dict[str, Any]:
    """The row of the model. Raises UnsupportedOperation without samples, Conflict without validation images."""
    with reading() as conn:
        row = model_rows.get(conn, principal.tenant, reference)
    supported = catalog.operations_of(request.app.state.catalog, row["capabilities"])
    if "samples" not in supported:
        raise UnsupportedOperation(
            f"{row['name']} is a model of family {row['family']}, which does not support samples.",
            operations=supported,
        )
    if not quizzes.possible(supported, row["card"]):
        raise Conflict(
            f"{row['name']} has no dataset with validation images.",
            remedy="Use a model that was trained here on a dataset with validation images.",
        )
    return row


def _person(principal: Principal, row: dict[str, Any]) -> dict[str, str]:
    return {"tenant": principal.tenant, "person": principal.key_id or LOCAL, "model": row["digest"]}


def _record(person: dict[str, str], ident: str, facts: dict[str, Any]) -> dict[str, Any]:
    with transaction() as conn:
        return quizzes.record(conn, person, ident, facts)


def _tally(person: dict[str, str]) -> wire.Tally:
    with reading() as conn:
        return wire.Tally(**quizzes.tally(conn, person))


async def _pair(request: Request, row: dict[str, Any], question: Question) -> tuple[list[bytes], str | None]:
    """The two PNGs in their order, and the class of both for a conditional model."""
    card = row["card"]
    where = {"dataset": card["dataset_digest"], "split": "validation", "column": "images", "start": question.row}
    try:
        real = await _call(request, card["dataset_digest"], "dataset_images", where | {"count": 1})
    except NotFound:
        real = Answer()
    if not real.images:
        raise Conflict("The dataset of this model was deleted.", remedy="Import it again and train the model again.")
    params: dict[str, Any] = {"n": 1, "seed": question.seed}
    classes, labels, label = card["data"].get("classes"), real.facts.get("labels"), None
    if labels and classes and "Conditional" in row["capabilities"] and row["config"].get("condition") != "targets":
        params["label"], label = labels[0], classes[labels[0]]
    sample = await _call(request, row["digest"], "samples", params)
    pair = [real.images[0], sample.images[0]]
    return (pair if question.real == 0 else pair[::-1]), label


async def _verdict(request: Request, row: dict[str, Any], question: Question) -> int | None:
    """The image that the discriminator of the model takes for real; None for a model without one."""
    if "score" not in catalog.operations_of(request.app.state.catalog, row["capabilities"]):
        return None
    images, _ = await _pair(request, row, question)
    scores = (await _call(request, row["digest"], "score", {}, images)).facts["items"]
    return int(scores[1]["log_odds"] > scores[0]["log_odds"])


async def _call(
    request: Request, model: str, operation: str, params: dict[str, Any], images: list[bytes] | None = None
) -> Answer:
    deadline = time.monotonic() + settings().call_timeout_seconds
    return await submit(request, Call(model, operation, params, images=images, deadline=deadline))
