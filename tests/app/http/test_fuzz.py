"""Every operation of the API against what schemathesis makes up: no 5xx, nothing that the description leaves out.

The suite makes up the same requests each time, so that what fails here failed before too; `FUZZ=200` makes up that many
for each operation, new ones each time.
"""

import os
import re

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis.specs.openapi.checks import positive_data_acceptance

from app.core.jobs.workers import beat
from app.core.store.database import transaction
from app.main import create_app
from tests.app.conftest import Lane, add_dataset, add_model
from tests.app.small_catalog import CATALOG

EXAMPLES = int(os.environ.get("FUZZ", 0))
WELL_FORMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEY = "the-key-of-the-fuzzer"
front = {}
schemathesis.serializer.alias(["application/zip", "application/x-npz", "application/x-npy"], "application/octet-stream")


async def app(scope, receive, send):
    """The front of the running test, without its life cycle."""
    if scope["type"] == "http":
        return await front["app"](scope, receive, send)
    for phase in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{phase}.complete"})


schema = schemathesis.openapi.from_dict(create_app(CATALOG).openapi())
schema.app = app


@schema.auth()
class Key:
    def get(self, case, context):
        return KEY

    def set(self, case, data, context):
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {data}"}


@pytest.fixture
def service(home):
    """A front that needs keys, and things that the made-up requests may find."""
    home(require_keys="true", bootstrap_key=KEY, rate_limit="1000000/second", call_timeout_seconds=0.3)
    add_model("v")
    add_model("c", "classifier")
    add_dataset("squares")
    with transaction() as conn:
        beat(conn, "worker:1", ["infer"])
    front["app"] = create_app(CATALOG, Lane())


@schema.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES or 10, derandomize=not EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck)
)
def test_generated_requests_get_documented_answers(case, service):
    known = {"m": "v", "d": "squares"}
    for name in known.keys() & case.path_parameters.keys():
        given = str(case.path_parameters[name])
        if WELL_FORMED.fullmatch(given) and len(given) % 2:
            case.path_parameters[name] = known[name]
    case.call_and_validate(base_url="http://127.0.0.1", excluded_checks=[positive_data_acceptance])
