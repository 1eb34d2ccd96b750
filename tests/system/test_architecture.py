"""The house: imports go one way, the front end is light, bytes become tensors in one place, files stay small."""

import ast
import re
import statistics
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

from models import registry

ROOT = Path(__file__).parents[2]
ROOMS = ("app", "workers", "models")
HEAVY = {"torch", "onnxruntime", "sklearn", "models", "workers"}


def sources(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py")) if file.stat().st_size]


def imported(file: Path) -> set[str]:
    """Top names of every module that the file imports, at its head or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_the_import_contracts_hold():
    linter = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_no_circle_of_imports():
    """Not even a deferred one, or one for types alone."""
    graph = grimp.build_graph(*ROOMS, cache_dir=None)
    TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()


@pytest.mark.parametrize("module", ["app.main", "app.cli.main", "workers.main"])
def test_loads_nothing_heavy(module):
    question = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", question], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = HEAVY - {module.split(".")[0]}
    assert not heavy & set(loaded.stdout.split())


def test_bytes_become_tensors_in_one_place():
    """In the workers only the codecs open images; the built-in sets draw theirs from packages."""
    drawing = {"codecs", "builtins"}
    elsewhere = [file for file in sources("workers") if not drawing & {*file.parts} and "PIL" in imported(file)]
    assert not elsewhere
    assert not [file for file in sources("app/core", "app/api") if "PIL" in imported(file)]


def test_options_are_read_in_settings_alone():
    """A worker's own process also takes what its parent tells it; nobody else looks into the environment."""
    readers = {
        str(file.relative_to(ROOT))
        for file in sources("app/api", "app/core", "models")
        if "os.environ" in file.read_text() or "os.getenv" in file.read_text()
    }
    assert readers <= {"app/core/settings.py"}


def test_files_are_small():
    lengths = {file: len(file.read_text().splitlines()) for file in sources(*ROOMS)}
    assert statistics.median(lengths.values()) <= 145
    assert not {str(file): length for file, length in lengths.items() if length > 400}


def test_few_files_are_short():
    """A file of 35 lines or fewer usually belongs beside its only user; a migration has to be a file of its own."""
    short = [file for file in sources(*ROOMS) if len(file.read_text().splitlines()) <= 35]
    assert len([file for file in short if file.name != "__init__.py" and file.parent.name != "versions"]) < 22


def test_a_request_passes_few_files():
    """Files whose functions run for one request, once models are loaded: see tests/system/hops.py."""
    answer = subprocess.run(
        [sys.executable, "-m", "tests.system.hops"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    counts = dict(re.findall(r"^(POST .*, third): (\d+) files$", answer.stdout, re.M))
    assert len(counts) == 2
    assert int(counts["POST /v1/models/{m}/denoise, third"]) <= 25
    assert int(counts["POST /v1/trainings, third"]) <= 22


def test_folders_are_small():
    """The root of models is the engine, the root of workers its entry points; a package's `__init__.py` is no file."""
    counts = Counter(str(file.parent.relative_to(ROOT)) for file in sources(*ROOMS) if file.name != "__init__.py")
    assert counts["models"] <= 12 and counts["workers"] <= 3
    assert not {folder: count for folder, count in counts.items() if folder.startswith("app") and count > 25}


@pytest.mark.parametrize("kind", ["attacks", "operations", "reports", "defences", "detectors"])
def test_a_registry_folder_holds_only_what_it_registers(kind):
    """Families and imported models have their networks beside them; these have what they share in `core`."""
    package, _ = registry.KINDS[kind]
    folder = ROOT / package.replace(".", "/")
    files = {f"{package}.{file.stem}" for file in folder.glob("*.py") if file.name != "__init__.py"}
    assert files == {member.__module__ for member in registry.members(kind).values()}
