"""Errors cross processes as problems and come back as themselves."""

import pytest

from app.core import errors
from app.core.errors import CODES, AnamorphError, Internal, from_problem


def test_codes_are_unique_and_statuses_are_errors():
    kinds = AnamorphError.__subclasses__()
    assert len({kind.code for kind in kinds}) == len(kinds) == len(CODES)
    assert all(400 <= kind.status < 600 and kind.title for kind in kinds)


@pytest.mark.parametrize("kind", CODES.values(), ids=CODES.keys())
def test_a_problem_comes_back_as_the_same_error(kind):
    error = kind("What was given.", field="/config/lr", remedy="Do this.", retry_after=3, allowed=["a"])
    problem = error.problem()
    assert problem["type"] == f"/errors/{kind.code}" and problem["status"] == kind.status
    assert problem["errors"] == [{"pointer": "/config/lr", "code": kind.code, "detail": "What was given."}]
    back = from_problem(problem)
    assert type(back) is kind and back.problem() == problem


def test_several_errors_survive_the_way_back():
    listed = [{"pointer": "/a", "code": "x", "detail": "1"}, {"pointer": "/b", "code": "x", "detail": "2"}]
    problem = errors.InvalidConfig("two", errors=listed).problem()
    assert from_problem(problem).problem()["errors"] == listed


def test_an_unknown_code_is_internal():
    assert type(from_problem({"code": "from-a-newer-version", "detail": "x"})) is Internal
    assert type(from_problem({})) is Internal
