"""Prints the measures of the source tree: `python -m tests.system.house` (`--vague` lists the vague names by file).

Files are the non-empty `.py` files of `app`, `models` and `workers`; lines are all lines of a file. Short files are
counted without `__init__.py`, which is there for the folder.
The share of vague names: of all names bound in a function, a module or a class (`=`, `:=`, annotations, `for`, `with`,
comprehensions; neither parameters nor attributes), those that are one of VAGUE, which say that something happened to
the thing and not what it is. A paragraph of the README is text between blank lines or one item of a list, outside code
blocks and tables.
"""

import ast
import re
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "models", "workers")
SHORT = 35
VAGUE = frozenset(
    {
        "asked",
        "chosen",
        "done",
        "drawn",
        "found",
        "given",
        "got",
        "held",
        "kept",
        "known",
        "made",
        "moved",
        "named",
        "said",
        "seen",
        "shown",
        "taken",
        "told",
        "tried",
        "wanted",
    }
)


def files(package: str) -> list[Path]:
    return [file for file in sorted((ROOT / package).rglob("*.py")) if file.stat().st_size]


def length(file: Path) -> int:
    return len(file.read_text().splitlines())


def bound_names(file: Path) -> Iterator[tuple[str, int]]:
    """Every name that the file binds, with its line."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno


def vague_share(package: str) -> tuple[int, int]:
    """Vague names of a package, and all names."""
    names = [name for file in files(package) for name, _ in bound_names(file)]
    return sum(name in VAGUE for name in names), len(names)


def paragraphs(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    blocks = (block.strip() for block in re.split(r"\n\n|\n(?=- |\d+\. )", prose))
    return [block for block in blocks if block and not block.startswith(("|", "#", "!["))]


def folders() -> dict[str, list[int]]:
    """The lengths of the files of each folder."""
    lengths = defaultdict(list)
    for file in (file for package in PACKAGES for file in files(package)):
        lengths[str(file.parent.relative_to(ROOT))].append(length(file))
    return dict(lengths)


def vague_by_file() -> Iterator[str]:
    """`path: name line line, name line` for each file with vague names."""
    for file in (file for package in PACKAGES for file in files(package)):
        lines = defaultdict(list)
        for name, line in bound_names(file):
            if name in VAGUE:
                lines[name].append(str(line))
        if lines:
            count = sum(map(len, lines.values()))
            where = ", ".join(f"{name} {' '.join(numbers)}" for name, numbers in sorted(lines.items()))
            yield f"{count:3} {file.relative_to(ROOT)}: {where}"


def table() -> Iterator[str]:
    lengths = folders()
    yield "| folder | files | lines | median | longest |"
    yield "|---|---|---|---|---|"
    for folder, counts in sorted(lengths.items()):
        yield f"| {folder} | {len(counts)} | {sum(counts)} | {statistics.median(counts):g} | {max(counts)} |"
    short = [file for package in PACKAGES for file in files(package) if length(file) <= SHORT]
    everything = [count for counts in lengths.values() for count in counts]
    median = statistics.median(everything)
    yield f"| all | {len(everything)} | {sum(everything)} | {median:g} | {max(everything)} |"
    yield ""
    yield "| measure | value |"
    yield "|---|---|"
    yield f"| files of {SHORT} lines or fewer | {sum(file.name != '__init__.py' for file in short)} |"
    totals = Counter()
    for package in PACKAGES:
        vague, names = vague_share(package)
        totals.update(vague=vague, names=names)
        yield f"| vague names in {package} | {vague} of {names}, {vague / names:.2%} |"
    yield f"| vague names | {totals['vague']} of {totals['names']}, {totals['vague'] / totals['names']:.2%} |"
    readme = (ROOT / "README.md").read_text()
    yield f"| lines of README | {len(readme.splitlines())} |"
    yield f"| words in its longest paragraph | {max(len(text.split()) for text in paragraphs(readme))} |"


def main() -> None:
    print(*(vague_by_file() if "--vague" in sys.argv else table()), sep="\n")


if __name__ == "__main__":
    main()
