"""What a call may cost: refused at once with its price, made a job, or answered with a longer deadline."""

import httpx
import pytest

from app.core import catalog
from app.core.settings import settings
from app.main import create_app
from tests.app.conftest import add_model, png

pytestmark = pytest.mark.anyio
RAW = {"content-type": "image/png", "accept": "application/json"}


@pytest.fixture
async def client(home, lane):
    """With the catalog of the release: its attacks and their prices."""
    app = create_app(catalog.load(), lane)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as it,
    ):
        app.state.calls.has_workers = True
        add_model("numb", "classifier")
        yield it


async def attack(client, query: str, **headers):
    return await client.post(f"/v1/models/numb/attack?{query}", content=png(), headers=RAW | headers)


async def test_a_call_that_cannot_end_before_its_deadline_is_refused_with_its_price(client, lane):
    answer = await attack(client, "method=zoo&steps=100000&searches=30")
    problem = answer.json()
    assert answer.status_code == 422 and problem["code"] == "too-long" and not lane.seen
    assert problem["price"]["passes"] == 30 * 100_000 * 257 + 4
    assert problem["price"]["deadline"] == settings().slow_call_timeout_seconds
    assert "respond-async" in problem["remedy"]


async def test_it_becomes_a_job_when_the_client_prefers_that(client):
    answer = await attack(client, "method=boundary&steps=100000", prefer="respond-async")
    assert answer.status_code == 202 and answer.headers["preference-applied"] == "respond-async"
    assert answer.json()["request"]["price"] > 100


async def test_a_job_above_the_limit_of_passes_is_refused_with_its_price(client):
    answer = await attack(client, "method=zoo&steps=100000&searches=30", prefer="respond-async")
    assert answer.status_code == 429 and answer.json()["price"]["passes"] > 10**8


@pytest.mark.parametrize(("query", "status"), [("method=fgsm", 200), ("method=cw", 202)])
async def test_with_a_wait_short_calls_are_answered_and_long_ones_become_jobs(client, query, status):
    answer = await attack(client, query, prefer="respond-async, wait=2")
    assert answer.status_code == status
    assert answer.headers["preference-applied"] == ("wait=2" if status == 200 else "respond-async")


async def test_a_slow_call_says_so_and_has_a_longer_deadline(client, lane):
    assert (await attack(client, "method=cw")).status_code == 200
    assert (await attack(client, "method=fgsm")).status_code == 200
    slow, fast = lane.seen
    assert slow.slow and not fast.slow
    assert 60 < slow.deadline - fast.deadline < 120 and slow.tenant == fast.tenant != "local"


async def test_an_answer_says_what_was_predicted(client):
    answer = await attack(client, "method=fgsm")
    assert "predicted;dur=" in answer.headers["server-timing"]


async def test_predictions_are_learned_from_answers(client, lane):
    """A model that is slow is known to be slow after one long call."""
    lane.compute_ms = 60_000.0
    assert (await attack(client, "method=pgd&stop_early=false")).status_code == 200
    assert (await attack(client, "method=pgd&stop_early=false&steps=400")).status_code == 422
