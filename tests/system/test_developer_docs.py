"""The pages for developers name files, functions, modules and benchmark rows that exist, and stay short."""

import ast
import re
from pathlib import Path

import pytest

from tests.benchmarks.rows import rows

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DECISIONS = sorted(DOCS.glob("decisions/[0-9]*.md"))
PAGES = [DOCS / "architecture.md", DOCS / "experiments.md", *sorted(DOCS.glob("decisions/*.md"))]
PACKAGES = "app|workers|models|tests|docs"
ABBREVIATIONS = re.compile(r"\b(?:e\.g|i\.e|et al)\.")


def spans(page: Path) -> list[str]:
    """The code spans of a page, outside its code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE))


def names_in(file: Path) -> set[str]:
    """Functions, classes, methods (`Class.method`), constants and attributes that a file defines."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        names |= names_of(node)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{name}" for child in node.body for name in names_of(child)}
    return names


def names_of(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_modules_exist(page):
    for span in spans(page):
        if re.fullmatch(rf"(?:{PACKAGES})/[\w./*<>-]*", span) and not re.search(r"[*<>]", span):
            assert (ROOT / span).exists(), span
        elif match := re.fullmatch(rf"(?:python -m )?((?:{PACKAGES})(?:\.\w+)+)\b.*", span):
            path = ROOT / match[1].replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").exists(), span


def test_each_hop_names_a_function_of_its_file():
    """Rows of a table whose second and third cells are a path and a name in it."""
    hops = re.findall(r"^\| \d+ \| `([^`]+\.py)` \| `([^`]+)` \|", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    assert len(hops) >= 20
    for path, name in hops:
        assert name in names_in(ROOT / path), f"{path} has no {name}"


def test_experiments_name_rows_that_exist():
    text = (DOCS / "experiments.md").read_text()
    cells = [line.split(" | ")[-1] for line in text.splitlines() if line.startswith("| ") and "`" in line]
    named = {name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)}
    assert named and named <= rows().keys(), named - rows().keys()


def test_the_index_lists_every_decision():
    index = (DOCS / "decisions" / "README.md").read_text()
    assert re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", index) == [page.name for page in DECISIONS]
    for number, page in enumerate(DECISIONS, 1):
        title = page.read_text().splitlines()[0].removeprefix(f"# {number}. ")
        assert page.name.startswith(f"{number:04}-") and f"[{number}]({page.name}) | {title} |" in index


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_a_decision_has_five_parts_on_half_a_page(page):
    text = page.read_text()
    assert re.findall(r"^\*\*([A-Z][a-z ]+)\.\*\*", text, re.MULTILINE) == [
        "Context", "Decision", "Consequences", "Not chosen", "Where",
    ]  # fmt: skip
    assert len(text.split()) <= 220


@pytest.mark.parametrize("page", [DOCS / "experiments.md", *DECISIONS], ids=lambda page: page.stem)
def test_a_sentence_has_two_numbers_at_most(page):
    """Of results: sizes of data sets, steps and seeds in parentheses before the colon do not count."""
    prose = re.sub(r"`[^`]*`", "", page.read_text())
    for line in prose.splitlines():
        for cell in line.removeprefix("#").split("|"):
            for sentence in re.split(r"(?<=[.:])\s+", ABBREVIATIONS.sub("", re.sub(r"\([^)]*\)", "", cell))):
                numbers = re.findall(r"(?<![\w.-])\.?\d[\d,.x/]*", sentence)
                assert len(numbers) <= 2, sentence
