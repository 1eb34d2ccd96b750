"""The documentation is true: the reference is what the program says, the README's commands name things that exist."""

import json
import re
import runpy
import shlex
import time
import zipfile
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest

from app.cli.demo_steps import png
from app.core import catalog
from app.core.catalog.builtin_datasets import BUILTINS
from app.core.settings import Settings
from app.main import create_app
from tests.benchmarks.rows import rows
from tests.system.test_compose import check_command

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
OF_READERS = re.compile(r'/my-|"model": "my-')
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines() if line.strip()]


def test_the_reference_is_up_to_date():
    written = runpy.run_path(str(ROOT / "docs" / "reference.py"))
    assert written["main"]() == REFERENCE, "run `make catalog` and commit docs/reference.md"


def test_the_quality_page_says_what_was_measured():
    written = runpy.run_path(str(ROOT / "docs" / "quality.py"))
    page = (ROOT / "docs" / "quality.md").read_text()
    assert written["main"]() == page, "run `python docs/quality.py` and commit docs/quality.md"
    measured = {json.loads(file.read_text())["row"] for file in (ROOT / "docs" / "quality").glob("*.json")}
    assert measured <= rows().keys(), "a measurement of a row that is no more"


def test_every_setting_has_a_sentence():
    described = runpy.run_path(str(ROOT / "docs" / "reference.py"))["SETTINGS"]
    assert set(described) == set(Settings.model_fields)


def test_every_built_in_dataset_is_in_the_reference_with_its_licence():
    for name, about in BUILTINS.items():
        assert re.search(rf"^\| `{name}` .*{re.escape(about.licence)} \|$", REFERENCE, re.M), name


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("make ")])
def test_make_targets_exist(line):
    target = shlex.split(line, comments=True)[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("anamorph ")])
def test_commands_parse(line, tmp_path, monkeypatch):
    words = shlex.split(line, comments=True)[1:]
    monkeypatch.chdir(tmp_path)
    for word in words:
        if word.startswith("demo-output/"):
            (tmp_path / "demo-output").mkdir(exist_ok=True)
            (tmp_path / word).touch()
    check_command(words)


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("curl ")])
def test_curl_lines_name_routes_that_exist(line):
    request = curl(line)
    paths = create_app().openapi()["paths"]
    fitting = [path for path in paths if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", path), request["path"])]
    path = request["path"] if request["path"] in fitting else fitting[0]
    methods = paths[path]
    assert request["method"].lower() in methods, path
    if request["path"] == "/v1/trainings":
        body = json.loads(request["data"])
        schema = catalog.family(catalog.load(), body["family"])["config"]
        catalog.complete(schema, body["config"], "/config")
    if operation := catalog.load()["operations"].get(request["path"].rsplit("/", 1)[1]):
        known = operation["params"].get("properties")
        assert known is None or set(request["query"]) <= set(known) | {"n"}


@pytest.fixture
def example(digit, tmp_path, monkeypatch) -> Path:
    """A folder with the files that the README's lines name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-output").mkdir()
    for name in ("noisy.png", "digit.png"):
        (tmp_path / "demo-output" / name).write_bytes(digit)
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for number in range(8):
            archive.writestr(f"{'cats' if number % 2 else 'dogs'}/{number}.png", png(np.full((9, 9), number, np.uint8)))
    return tmp_path


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("curl ") and not OF_READERS.search(line)])
def test_curl_lines_work(line, service, example):
    """All but those about a model that the reader has trained."""
    request = curl(line)
    body = Path(request["file"]).read_bytes() if request["file"] else request["data"]
    with service.client() as client:
        options = {"params": request["query"], "headers": request["headers"], "content": body}
        answer = client.request(request["method"], request["path"], **options)
        while answer.status_code == 409 and answer.json()["code"] == "model-not-ready":  # it is being written
            time.sleep(1)
            answer = client.request(request["method"], request["path"], **options)
        assert answer.is_success, answer.text
        if answer.status_code == 202:
            client.post(answer.headers["Location"] + "/cancel")


def curl(line: str) -> dict:
    """What a curl line asks for. Only the options that the README uses are known here."""
    words, found = shlex.split(line)[1:], {"method": "GET", "headers": {}, "data": None, "file": None}
    while words:
        word = words.pop(0)
        if word == "-H":
            name, value = words.pop(0).split(": ", 1)
            found["headers"][name] = value
        elif word in ("-d", "--data-binary"):
            value = words.pop(0)
            found |= {"method": "POST", "file" if value.startswith("@") else "data": value.removeprefix("@")}
        elif word == "-X":
            found["method"] = words.pop(0)
        elif word == "-o":
            words.pop(0)
        else:
            url = urlsplit(word)
            found |= {"path": url.path, "query": dict(parse_qsl(url.query))}
    return found


def test_every_command_and_route_named_in_prose_exists():
    for words in re.findall(r"`anamorph ([a-z][^`]*)`", README):
        check_command(shlex.split(words))
    for folder in re.findall(r"`((?:app|workers|models|tests|docs|docker)/[\w./]+)`", README):
        assert (ROOT / folder).exists(), folder
