"""What docker-compose.yml and the Dockerfiles name must exist in the program: commands, options, variables, files."""

import re
import shlex
import tomllib
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
ORACLES = yaml.safe_load((ROOT / "docker" / "oracles.yml").read_text())
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
            assert volume.startswith("${ANAMORPH_BACKUP") or volume.split(":")[0] in COMPOSE["volumes"], name
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


def test_every_queue_has_a_worker():
    commands = (service["command"] for service in OURS.values())
    served = [words[2].split(",") for words in commands if words[0] == "worker"]
    assert sorted(queue for queues in served for queue in queues) == sorted(QUEUES)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_has_limits_and_no_privileges(name):
    service = COMPOSE["services"][name]
    for limit in ("mem_limit", "cpus", "pids_limit"):
        assert limit in service, limit
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert set(service.get("cap_add", ())) <= {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"}
    assert name not in OURS or ("cap_add" not in service and service["read_only"])


def test_every_image_can_be_pinned_by_digest():
    pinned = (ROOT / "docker" / "pin-images.sh").read_text()
    images = [service["image"] for service in COMPOSE["services"].values() if "image" in service]
    images += [service["build"]["args"]["PYTHON_IMAGE"] for service in OURS.values()]
    for image in images:
        name, default = re.fullmatch(r"\$\{(\w+):-(.+)\}", image).groups()
        assert f"{name}={default}" in pinned
    for dockerfile in DOCKERFILES:
        found = dict(instructions(dockerfile))
        assert f"{found['ARG']}" in pinned and found["FROM"] == "${PYTHON_IMAGE}"


def test_only_workers_that_ask_oracles_reach_outside_and_only_on_request():
    outside = {name for name, service in COMPOSE["services"].items() if set(service["networks"]) - {"inside"}}
    assert outside == {"web"}
    reaching = {name for name, service in ORACLES["services"].items() if "egress" in service.get("networks", ())}
    assert reaching == {"worker-train"} and set(ORACLES["services"]) <= set(OURS)
    assert all("ANAMORPH_ORACLES" in service["environment"] for service in ORACLES["services"].values())
    assert "egress" not in COMPOSE["networks"]


def test_the_backup_runs_on_request_and_writes_outside():
    service = OURS["backup"]
    assert service["profiles"] == ["backup"] and service["command"][1].startswith("/backup/")
    assert any(volume.endswith(":/backup") for volume in service["volumes"])


PACKAGE = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)((?: ; .*?)?)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.M)


@pytest.mark.parametrize("name", ["run", "web"])
def test_packages_of_the_images_have_hashes_and_the_versions_of_the_constraints(name):
    text = (ROOT / f"constraints-{name}.txt").read_text()
    packages = {match[1]: match[2] for match in PACKAGE.finditer(text)}
    assert packages.keys() == set(re.findall(r"^([A-Za-z0-9][\w.-]*)", text, re.M)), "one has no hash"
    pinned = dict(re.findall(r"^([^#=\s]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.M))
    pinned = {normal(package): version for package, version in pinned.items()}
    for package, version in packages.items():
        assert pinned.get(package, version) == version, package
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*wanted["dependencies"]]
    for extra in ("worker", "data", "pretrained") if name == "run" else ():
        needed += wanted["optional-dependencies"][extra]
    names = {normal(re.match(r"[A-Za-z0-9_.-]+", requirement)[0]) for requirement in needed}
    assert names <= packages.keys(), f"make hashes: {names - packages.keys()}"
    assert ("torch" in packages) is (name == "run")


def normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def test_images_install_only_what_has_a_hash():
    for dockerfile in DOCKERFILES:
        installs = [rest for instruction, rest in instructions(dockerfile) if rest.startswith("pip install")]
        first, *others = installs
        assert "--require-hashes" in first and "--no-deps" in first
        assert all("--no-deps" in rest and "--no-build-isolation" in rest for rest in others)


def test_the_web_image_has_no_torch_and_the_worker_image_the_pinned_one():
    web, worker = ((ROOT / "docker" / f"Dockerfile.{name}").read_text() for name in ("web", "worker"))
    assert "torch" not in web.split("\n", 2)[2] and "constraints-web.txt" in web and "constraints-run.txt" in worker
    pinned = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(), re.M).group()
    assert f"\n{pinned} " in (ROOT / "constraints-run.txt").read_text()
    assert not re.search(r"^torch==", (ROOT / "constraints-web.txt").read_text(), re.M)
