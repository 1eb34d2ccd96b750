"""The documentation is true: what it names exists, its commands work after the demo, the reference is complete."""

import json
import re
import runpy
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
import yaml

from app.cli import demo
from app.cli.client import Client
from app.core import catalog
from app.core.catalog.builtins import BUILTIN_MODELS, BUILTINS
from app.core.errors import CODES
from app.core.settings import Settings
from app.main import create_app
from tests.benchmarks.rows import rows
from tests.system.test_compose import check_command

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATED = DOCS / "reference.md"
PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")))
    if page != GENERATED
}
README = PAGES["README.md"]
GUIDES = [name for name in PAGES if name == "README.md" or name.startswith("docs/guides/")]
COMMAND = re.compile(r"^(?:[A-Z_]+='[^']*' )?\.venv/bin/anamorph ")


def shell(page: str) -> list[str]:
    """The commands of a page, comments left out."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGES[page], re.S)
    lines = [line.split("   #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


COMMANDS = [line for page in PAGES for line in shell(page)]
CURLS = [line for line in COMMANDS if line.startswith("curl ")]


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """What docs/reference.py defines."""
    return runpy.run_path(str(DOCS / "reference.py"))


# ---- the reference and the pages


def test_the_reference_names_all_there_is(reference):
    text, entries = reference["main"](), catalog.load()
    assert set(reference["SETTINGS"]) == set(Settings.model_fields)
    for kind in ("families", "attacks", "operations", "defences", "detectors", "reports"):
        for name, entry in entries[kind].items():
            assert re.search(rf"^### .*\b{name}`?$", text, re.M), name
            for setting in entry.get("config", entry.get("params")).get("properties", {}):
                assert f"`{setting}`" in text, (name, setting)
    for path, methods in create_app().openapi()["paths"].items():
        for method in methods:
            assert f"`{method.upper()} {path}`" in text
    for name, about in {**BUILTINS, **BUILTIN_MODELS}.items():
        assert re.search(rf"^\| `{name}` .*{re.escape(about.licence)} \|$", text, re.M), name
    assert all(f"| `{code}` |" in text for code in CODES)


def test_links_inside_the_reference_lead_to_its_headings(reference):
    text = reference["main"]()
    headings = [reference["anchor"](title) for title in re.findall(r"^##+ (.*)$", text, re.M)]
    assert len(set(headings)) == len(headings)
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= set(headings)


def test_the_quality_page_says_what_was_measured():
    written = runpy.run_path(str(DOCS / "quality.py"))
    assert written["main"]() == PAGES["docs/quality.md"], "run `python docs/quality.py` and commit docs/quality.md"
    measured = {json.loads(file.read_text())["row"] for file in (DOCS / "quality").glob("*.json")}
    assert measured <= rows().keys(), "a measurement of a row that is no more"


def test_the_notice_names_all_data_and_weights():
    notice = (ROOT / "NOTICE").read_text()
    for name in {**BUILTINS, **BUILTIN_MODELS}:
        assert re.search(rf"\b{re.escape(name)}\b(?!-)", notice), name
    for picture in (DOCS / "pictures").iterdir():
        assert picture.name in notice


def test_the_site_has_every_page():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = set(pages_of(config["nav"]))
    hidden = [*config["not_in_nav"].split(), *config["exclude_docs"].split()]
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} | {GENERATED.name}
    assert named == {page for page in there if not any(fnmatch(page, pattern) for pattern in hidden)}
    assert config["theme"]["font"] is False and config["plugins"] == ["search"]


def pages_of(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(part)]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 900
    prose = re.sub(r"```.*?```", "", README, flags=re.S)
    for paragraph in re.split(r"\n\n|\n(?=- )", prose):
        assert paragraph.lstrip().startswith("|") or len(paragraph.split()) <= 60, paragraph
    assert len(PAGES["CONTRIBUTING.md"].splitlines()) <= 60


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", PAGES[page]):
        assert target.startswith("http") or (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_path_named_in_prose_exists(page):
    for words in re.findall(r"`anamorph ([a-z][^`]*)`", PAGES[page]):
        check_command(shlex.split(words))
    yours = {"docs/reference.md", *re.findall(r"Save this as\s+`([^`]+)`", PAGES[page])}
    for path in set(re.findall(r"`((?:app|workers|models|tests|docs|docker)/[\w./-]+)`", PAGES[page])) - yours:
        assert (ROOT / path).exists(), path


# ---- commands, as far as they can be checked without running them


@pytest.mark.parametrize("page", GUIDES)
def test_commands_are_of_a_kind_that_is_checked(page):
    for line in shell(page):
        assert COMMAND.match(line) or line.startswith(("curl -f ", "make ", "docker compose ", "python3 -m zipfile"))


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_make_targets_exist(line):
    assert re.search(rf"^{shlex.split(line)[1]}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("line", [line for line in COMMANDS if COMMAND.match(line)])
def test_commands_parse(line, tmp_path, monkeypatch):
    words = shlex.split(COMMAND.sub("", line))
    monkeypatch.chdir(tmp_path)
    for word in words:
        if word.startswith("demo-output/"):
            (tmp_path / "demo-output").mkdir(exist_ok=True)
            (tmp_path / word).touch()
    check_command(words)


@pytest.mark.parametrize("line", CURLS)
def test_curl_lines_name_routes_that_exist(line):
    request = Curl.parse(line)
    paths = create_app().openapi()["paths"]
    fitting = [path for path in paths if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", path), request.path)]
    path = request.path if request.path in fitting else fitting[0]
    assert request.method.lower() in paths[path], path
    if request.path == "/v1/trainings":
        body = json.loads(request.data)
        if "family" in body:
            schema = catalog.family(catalog.load(), body["family"])["config"]
            catalog.complete(schema, body.get("config", {}), "/config")
    if operation := catalog.load()["operations"].get(request.path.rsplit("/", 1)[1]):
        known = operation["params"].get("properties")
        assert known is None or set(request.query) <= set(known)


# ---- commands, run in the order of their page


@dataclass
class Curl:
    """What a curl line asks for. Only the options that the pages use are known here."""

    path: str = ""
    query: dict[str, str] = field(default_factory=dict)
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    data: str | None = None
    file: str | None = None
    parts: list[str] = field(default_factory=list)
    output: str | None = None
    retries: bool = False

    @classmethod
    def parse(cls, line: str) -> "Curl":
        words, found = shlex.split(line.split(" | ")[0])[1:], cls()
        while words:
            match words.pop(0):
                case "-H":
                    name, value = words.pop(0).split(": ", 1)
                    found.headers[name] = value
                case "-d" | "--data-binary":
                    value = words.pop(0)
                    found.method = "POST"
                    if value.startswith("@"):
                        found.file = value[1:]
                    else:
                        found.data = value
                case "-F":
                    found.method = "POST"
                    found.parts.append(words.pop(0).removeprefix("image=@"))
                case "-X":
                    found.method = words.pop(0)
                case "-o":
                    found.output = words.pop(0)
                case "--retry" | "--retry-delay":
                    words.pop(0)
                case "--retry-all-errors":
                    found.retries = True
                case "-f" | "-N":
                    pass
                case address:
                    url = urlsplit(address)
                    found.path, found.query = url.path, dict(parse_qsl(url.query, keep_blank_values=True))
        return found

    def send(self, client: httpx.Client, folder: Path) -> httpx.Response:
        options: dict[str, Any] = {"params": self.query, "headers": self.headers}
        if self.parts:
            options["files"] = [("image", (name, (folder / name).read_bytes(), "image/png")) for name in self.parts]
        elif self.file:
            options["content"] = (folder / self.file).read_bytes()
        elif self.data is not None:
            options["content"] = self.data
        answer = client.request(self.method, self.path, **options)
        while self.retries and answer.status_code == 409:
            time.sleep(0.5)
            answer = client.request(self.method, self.path, **options)
        return answer


class Visit:
    """A reader of one page: runs its lines in one folder, and waits where the page waits: at the events of a job.

    Trainings are made short, and each page has models and datasets of its own.
    """

    def __init__(self, page: str, client: httpx.Client, folder: Path):
        self.own, self.client, self.folder = f"{Path(page).stem.lower()}-", client, folder
        self.jobs: list[str] = []

    def run(self, line: str) -> None:
        mine = line.replace("JOB", self.jobs[-1]) if "JOB" in line else line
        request = Curl.parse(mine.replace("my-", self.own))
        request.headers.pop("Authorization", None)
        if request.path in ("/v1/trainings", "/v1/perturbations", "/v1/reports"):
            request.data = json.dumps(shortened(request.path, json.loads(request.data)))
        answer = request.send(self.client, self.folder)
        assert answer.is_success, (line, answer.text)
        if request.output:
            (self.folder / request.output).write_bytes(answer.content)
        if "/events" in line:
            state = self.client.get(f"/v1/jobs/{self.jobs[-1]}").json()
            assert state["status"] == "succeeded", state["error"]
        if "method=fgsm" in line and "json" in line:
            assert answer.json()["success"], line
        if answer.status_code == 202 and "/cancel" not in line:
            self.jobs.append(answer.json()["id"])

    def leave(self) -> None:
        for job in self.jobs:
            self.client.post(f"/v1/jobs/{job}/cancel")


def shortened(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The same request with less to compute."""
    if path == "/v1/trainings":
        config = {name: value for name, value in body.get("config", {}).items() if name != "epochs"}
        return body | {"config": config | {"images": 256 if "fork_from" in body else 128}}
    if path == "/v1/perturbations":
        return body | {"images": 200, "held_out": 200, "steps": 10}
    return body | {"params": body.get("params", {}) | {"images": 20}}


@pytest.fixture(scope="module")
def left_by_the_demo() -> dict[str, bytes]:
    """The files of demo-output, once the first test has had them made."""
    return {}


WITH_CURL = [
    pytest.param(page, marks=[] if page == "README.md" else [pytest.mark.long])
    for page in PAGES
    if any(line.startswith("curl ") for line in shell(page))
]
"""Pages whose commands are run: the README always, the guides by `make check-long`."""


@pytest.mark.parametrize("page", WITH_CURL)
def test_the_curl_lines_of_a_page_work_one_after_another(page, service, demo_models, tmp_path, left_by_the_demo):
    folder = tmp_path / "demo-output"
    if not left_by_the_demo:
        with Client(service.url) as client:
            demo.show(client, demo_models, folder)
        left_by_the_demo |= {file.name: file.read_bytes() for file in folder.iterdir()}
    folder.mkdir(exist_ok=True)
    for name, content in left_by_the_demo.items():
        (folder / name).write_bytes(content)
    with service.client() as client:
        visit = Visit(page, client, tmp_path)
        try:
            for line in shell(page):
                if line.startswith("python3 "):
                    subprocess.run([sys.executable, *shlex.split(line)[1:]], cwd=tmp_path, check=True)
                elif line.startswith("curl ") and "/v1/oracles/" not in line:  # an oracle is named by the operator
                    visit.run(line)
        finally:
            visit.leave()
