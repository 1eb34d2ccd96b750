"""Raw bodies that are no JSON, barely JSON, or JSON nobody can carry on: each is a 4xx in plain words, never a 5xx."""

import json

import pytest

from app.api.http.strict import parse
from tests.app.conftest import add_dataset, add_model

pytestmark = pytest.mark.anyio
NUL, HALF = "\\u0000", "\\ud800"


def training(field: str, value: str) -> bytes:
    """A training whose `field` has the JSON text `value`."""
    fields = {"family": '"vae"', "dataset": '"squares"', "name": '"mine"', "config": "{}"} | {field: value}
    return ("{" + ", ".join(f'"{name}": {text}' for name, text in fields.items()) + "}").encode()


NO_JSON = [
    b"",
    b" ",
    b"{",
    b"}",
    b"{]",
    b"nul",
    b"{'a': 1}",
    b'{"a": 1,}',
    b'{"a" 1}',
    b'{"a": 01}',
    b'{"a": +1}',
    b'{"a": .5}',
    b'{"a": 0x10}',
    b'{"a": "\n"}',
    b'{"a": "\\x41"}',
    b'{"a": 1} {"a": 2}',
    b"\x00",
    b"\xff\xfe{\x00}\x00",
    b'{"a": "\xff"}',
    b'{"a": "\xed\xa0\x80"}',
    b"// no\n{}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"[" * 100 + b"]" * 100,
    b'{"a": NaN}',
    b'{"a": Infinity}',
    b'{"a": -Infinity}',
    b'{"a": 1e999}',
    b'{"a": -1e400}',
    b'{"a": ' + b"9" * 5000 + b"}",
    b'{"a": "\\ud800"}',
    b'{"\\udfff": 1}',
    b'{"a": "\\ud800\\ud800"}',
    b'{"a": ["\\udc00\\ud800"]}',
]
NO_TRAINING = [
    b"null",
    b"true",
    b"1",
    b'"text"',
    b"[]",
    b"{}",
    b"[{}]",
    training("family", "null"),
    training("family", '"' + NUL + '"'),
    training("family", f'"{HALF}"'),
    training("family", '"' + "v" * 100_000 + '"'),
    training("dataset", f'"squares{NUL}"'),
    training("dataset", '"../squares"'),
    training("dataset", '["squares"]'),
    training("name", '"\\u202egnp"'),
    training("name", '{"$ne": null}'),
    training("config", "null"),
    training("config", '{"latent_dim": NaN}'),
    training("config", '{"latent_dim": 1e999}'),
    training("config", '{"latent_dim": 1e300}'),
    training("config", '{"latent_dim": -0.0}'),
    training("config", '{"latent_dim": 8.5}'),
    training("config", '{"latent_dim": ' + "9" * 400 + "}"),
    training("config", '{"learning_rate": 5e-400}'),
    training("config", '{"' + NUL + '": 1}'),
    training("config", '{"' + "k" * 100_000 + '": 1}'),
    training("config", '{"latent_dim": {"latent_dim": {}}}'),
    training("config", "{" + ", ".join(f'"k{index}": 0' for index in range(5000)) + "}"),
    training("seed", "9223372036854775808"),
    training("seed", "1.5"),
    training("seed", "true"),
    training("__proto__", "{}"),
    training("init_from", '"a@b"'),
]


@pytest.fixture(autouse=True)
def things(app):
    add_model("v")
    add_dataset("squares")


def short(body: bytes) -> str:
    return repr(body[:40])


def assert_refused(answer, body: bytes) -> None:
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = json.loads(answer.content)
    assert problem["detail"] and problem["code"]
    assert len(answer.content) < 2000 + 400 * len(problem.get("errors", ())), "the input is not echoed"


@pytest.mark.parametrize("body", NO_JSON + NO_TRAINING, ids=short)
async def test_a_training_refuses_hostile_json(client, body):
    answer = await client.post("/v1/trainings", content=body, headers={"Content-Type": "application/json"})
    assert_refused(answer, body)


@pytest.mark.parametrize("body", NO_JSON, ids=short)
@pytest.mark.parametrize("path", ["denoise", "decode", "interpolate"])
async def test_an_operation_refuses_hostile_json(client, lane, path, body):
    answer = await client.post(f"/v1/models/v/{path}", content=body, headers={"Content-Type": "application/json"})
    assert_refused(answer, body)
    assert not lane.seen


@pytest.mark.parametrize("media", ["text/plain", "application/xml", "multipart/form-data", "", "no type at all"])
async def test_json_needs_its_content_type(client, media):
    body = training("seed", "1")
    assert_refused(await client.post("/v1/trainings", content=body, headers={"Content-Type": media}), body)


MULTIPART = [
    (b"", "multipart/form-data"),
    (b"", "multipart/form-data; boundary="),
    (b"--x\r\n", "multipart/form-data; boundary=x"),
    (b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--\r\n", "multipart/form-data; boundary=x"),
    (b"no boundary here", "multipart/form-data; boundary=x"),
    (b"--x\r\n" + b"A: b\r\n" * 10_000, "multipart/form-data; boundary=x"),
    (
        b"".join(b'--x\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n1\r\n' % i for i in range(500)) + b"--x--",
        "multipart/form-data; boundary=x",
    ),
]


@pytest.mark.parametrize("body, media", MULTIPART)
async def test_broken_multipart_is_refused(client, body, media):
    assert_refused(await client.post("/v1/models/v/denoise", content=body, headers={"Content-Type": media}), body)


@pytest.mark.parametrize(
    "query", ["label=%00", "label=%ED%A0%80", "n=١", "n=1e1", "seed=" + "9" * 5000, "=", "&&", "n[]=1"]
)
async def test_odd_queries_never_crash(client, query):
    answer = await client.get(f"/v1/models/v/samples?{query}")
    assert answer.status_code < 500, answer.text
    json.loads(answer.content) if answer.is_error else None


def test_unusual_but_valid_json_is_accepted():
    text = '{"a": [1, 2.5, -3e2, true, null, "é\\ud83d\\ude00\\u0000"], "b": {}}'
    assert parse(text.encode()) == json.loads(text)
    assert parse(b"\xef\xbb\xbf{}") == {}
    assert parse(b"[" * 60 + b"]" * 60)
