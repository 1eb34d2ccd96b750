"""What clients see of the catalog and of HTTP is what it was before the modules moved; additions are allowed."""

import json
import lzma
from pathlib import Path
from typing import Any

from app.main import create_app
from models.catalog import catalog
from tests.app.http.surface import lines, operations

FOLDER = Path(__file__).parent
RENAMED = {
    "Scores": "Classifies", "Detects": "DetectsObjects", "Estimates": "Regresses", "Judges": "Discriminates",
    "JudgesPatches": "Discriminates", "Suspects": "DetectsAdversarial", "Votes": "RandomlySmoothed",
    "Recognises": "Conditional", "HasBound": "HasPosterior", "Truncates": "StyleBased", "MixesStyles": "StyleBased",
    "Appraised": "EvaluatesMidway",
}  # fmt: skip
"""Capabilities renamed or merged since then."""
ATTRIBUTES = {"shows", "counts", "facts_first", "passes_on", "picture_param", "multiplies", "json_first"}
"""Members of entries that no client reads, free to be renamed."""
TEXTS = {"summary", "description", "lecture", "title"}
DEARER = {"adversarial_detection", "defences", "smoothing", "transfer"}
"""Reports that look at their images once more, to leave out those for which the model's output is not finite."""
SETS = {"capabilities", "needs", "victims", "operations"}
DEFAULTS = {"segmenter": ("mirror", True), "sparse_autoencoder": ("sparsity", "top_k")}
"""Families and settings whose default is another since then."""


def test_the_catalog_says_what_it_said_less_texts_and_renamed_capabilities():
    old = json.loads(lzma.decompress((FOLDER / "catalog.json.xz").read_bytes()))
    new = catalog()
    for entries in (old, new):
        for name in DEARER:
            del entries["reports"][name]["price"]["forwards"]
        cluster = entries["reports"]["cluster"]
        cluster["price"] = None  # a method that trains has a price
        cluster["params"]["properties"]["method"]["default"] = None  # spectral, once kmeans
    for family, (setting, value) in DEFAULTS.items():
        old["families"][family]["config"]["properties"][setting]["default"] = value
    assert not list(lost(bare(old), bare(new)))


def test_every_http_operation_is_still_there_with_its_parameters_and_statuses():
    document = create_app().openapi()
    new = dict(operations(document))
    for line in (FOLDER / "http.txt").read_text().splitlines():
        name, *members = line.split(" ")
        assert name in new, f"{name} is gone"
        assert not set(members) - set(new[name]), name
    assert len(lines(document)) == len(new)


def bare(value: Any, definitions: dict[str, Any] | None = None) -> Any:
    """The catalog without texts, with references to definitions resolved and capabilities by their present names."""
    if isinstance(value, dict):
        definitions = value.get("$defs", definitions)
        if "$ref" in value:
            return bare(definitions[value["$ref"].rsplit("/", 1)[1]], definitions)
        left = {key for key, item in value.items() if key == "$defs" or (key in TEXTS and isinstance(item, str))}
        return {
            key: sorted({json.dumps(renamed(name)) for name in item})
            if key in SETS and isinstance(item, list)
            else bare(item, definitions)
            for key, item in value.items()
            if key not in left | ATTRIBUTES and key != "mapping"
        }
    return [bare(item, definitions) for item in value] if isinstance(value, list) else value


def renamed(name: str | list[str]) -> str | list[str]:
    """The present name of a capability; alternatives in alphabetical order."""
    return sorted({RENAMED.get(each, each) for each in name}) if isinstance(name, list) else RENAMED.get(name, name)


def lost(old: Any, new: Any, path: str = ""):
    """Where `new` lacks or changes what `old` has. Options may be added, and a default may be chosen from the data."""
    if isinstance(old, dict) and isinstance(new, dict):
        if "anyOf" in new and "anyOf" not in old:
            kinds = [kind for kind in new["anyOf"] if kind != {"type": "null"}]
            choices = {"enum": [item for kind in kinds for item in kind.get("enum", [kind.get("const")])]}
            old = {key: value for key, value in old.items() if key != "default" or new["default"] is not None}
            new = new | kinds[0] | (choices if "enum" in old else {})
        for key, value in old.items():
            yield from lost(value, new[key], f"{path}/{key}") if key in new else [f"{path}/{key} is gone"]
    elif path.rsplit("/", 1)[-1] in {*SETS, "enum"} and isinstance(old, list):
        yield from (f"{path}: {item} is gone" for item in old if item not in new)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from lost(*pair, f"{path}/{index}")
    elif old != new:
        yield f"{path} was {old}, is {new}"
