"""What docker-compose.yml and the Dockerfiles name must exist in the program: commands, options, variables, files."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main
import yaml

from app.cli.doctor import CHECKS
from app.cli.main import cli
from app.cli.processes import QUEUES
from app.core.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
GPU = yaml.safe_load((ROOT / "docker" / "gpu.yml").read_text())
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
# read by the object store's client and by the container runtime, not by us
FOREIGN = re.compile(r"AWS_(ENDPOINT_URL|ALLOW_HTTP|REGION|ACCESS_KEY_ID|SECRET_ACCESS_KEY)|NVIDIA_\w+")


def variables() -> set[str]:
    """The environment variables that the program reads."""
    return {str(field.validation_alias or f"ANAMORPH_{name.upper()}") for name, field in Settings.model_fields.items()}


def check_command(words: list[str]) -> None:
    """Parses the words as the `anamorph` command would, without running it."""
    command, name, words = typer.main.get_command(cli), "anamorph", list(words)
    while hasattr(command, "commands"):
        name = words.pop(0)
        command = command.commands[name]
    options = command.make_context(name, words).params
    if name == "worker":
        assert set(options["queues"].split(",")) <= set(QUEUES)
    if name == "doctor":
        assert set(options["only"] or ()) <= set(CHECKS)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) of each line, continued lines joined."""
    text = re.sub(r"\\\n", " ", dockerfile.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def words_of(rest: str) -> list[str]:
    return yaml.safe_load(rest)


@pytest.mark.parametrize("name", OURS)
def test_our_services_run_commands_that_exist(name):
    assert (ROOT / OURS[name]["build"]["dockerfile"]).is_file()
    check_command(OURS[name]["command"])


@pytest.mark.parametrize("name", OURS)
def test_our_services_set_variables_that_are_read(name):
    for variable in OURS[name]["environment"]:
        assert variable in variables() or FOREIGN.fullmatch(variable), variable


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_is_watched_and_waits_for_what_it_needs(name):
    service = COMPOSE["services"][name]
    image_watches = name in OURS and "HEALTHCHECK" in (ROOT / service["build"]["dockerfile"]).read_text()
    assert image_watches or "healthcheck" in service
    for needed, how in service.get("depends_on", {}).items():
        assert needed in COMPOSE["services"]
        assert how["condition"] == "service_healthy"


def test_only_the_web_front_is_published():
    assert [name for name, service in COMPOSE["services"].items() if "ports" in service] == ["web"]
    assert COMPOSE["networks"]["inside"]["internal"]


def test_secrets_come_from_the_environment_and_must_be_set():
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY", name):
                assert re.fullmatch(r"\$\{\w+:\?.+\}", value), name
        assert not re.search(r"requirepass \w", str(service))


def test_everything_referred_to_is_declared():
    for name, service in COMPOSE["services"].items():
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"], name
        assert set(service["networks"]) <= set(COMPOSE["networks"])
    assert set(GPU["services"]) <= set(OURS)


def test_the_urls_name_services_and_the_bucket_exists():
    for service in OURS.values():
        settings = service["environment"]
        assert re.search(r"@postgres:5432/anamorph$", settings["DATABASE_URL"])
        assert re.search(r"@valkey:6379/", settings["BROKER_URL"])
        assert settings["AWS_ENDPOINT_URL"] == "http://s3:8333"
        assert f"-bucket={settings['BLOBS_URL'].removeprefix('s3://')}" in COMPOSE["services"]["s3"]["command"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.name)
def test_images_copy_files_that_exist_and_are_sent(dockerfile):
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    for instruction, rest in instructions(dockerfile):
        if instruction == "COPY":
            for name in shlex.split(rest)[:-1]:
                assert (ROOT / name).exists(), name
                assert name in sent, f"{name} is kept out by .dockerignore"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.name)
def test_images_run_as_nobody_special_and_are_watched(dockerfile):
    found = dict(instructions(dockerfile))
    assert found["USER"] not in ("root", "0")
    assert found["ENTRYPOINT"] == '["anamorph"]'
    check_command(words_of(found["CMD"]))
    check_command(words_of(found["HEALTHCHECK"].partition("CMD ")[2])[1:])
    for assignment in found["ENV"].split():
        name = assignment.partition("=")[0]
        assert name in variables() or FOREIGN.fullmatch(name), name


def test_the_web_image_has_no_torch_and_the_worker_image_the_pinned_one():
    web, worker = ((ROOT / "docker" / f"Dockerfile.{name}").read_text() for name in ("web", "worker"))
    assert "torch==" not in web and "[worker" not in web
    pinned = re.search(r"torch==\S+", (ROOT / "constraints.txt").read_text()).group()
    assert pinned in worker
