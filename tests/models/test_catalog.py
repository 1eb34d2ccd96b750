"""The committed catalog equals what the code declares."""

import pytest

from app.core.catalog import load
from models import catalog, registry
from models.capabilities import Decodes, Encodes


def test_committed_entries_are_up_to_date_and_load_in_order():
    assert catalog.main(["--check"]) == 0, "run `python -m models.catalog` and commit app/core/catalog/entries"
    current, loaded = catalog.catalog(), load()
    assert loaded == current and list(loaded) == list(current)
    for kind, entries in loaded.items():
        assert list(entries) == sorted(entries) == list(current[kind])


def test_check_reports_missing_outdated_and_left_over_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(catalog, "ENTRIES", tmp_path)
    assert catalog.main(["--check"]) == 1
    assert "attacks/fgsm.json" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert catalog.main([]) == 0 == catalog.main(["--check"])
    outdated, left_over = tmp_path / "attacks" / "fgsm.json", tmp_path / "attacks" / "gone.json"
    for file in (outdated, left_over):
        file.write_text("{}")
    assert catalog.main(["--check"]) == 1 and "fgsm.json, attacks/gone.json" in capsys.readouterr().err
    assert catalog.main([]) == 0 and outdated.read_text() != "{}" and not left_over.exists()


def test_capabilities_are_those_of_the_class_line():
    found = catalog.catalog()["families"]
    for name, family in registry.families().items():
        assert ("Encodes" in found[name]["capabilities"]) == issubclass(family, Encodes)
        assert ("Decodes" in found[name]["capabilities"]) == issubclass(family, Decodes)
    assert found["vae"]["capabilities"] == ["Encodes", "Decodes", "HasPrior", "HasPosterior"]
    able = {"decode", "denoise", "encode", "interpolate", "reconstruct", "samples"}
    assert able <= set(found["denoising_autoencoder"]["operations"])
    assert "denoise" not in found["autoencoder"]["operations"]


ALIASES = {
    "operations": {"detect": "detect-adversarial", "locate": "detect-objects"},
    "reports": {"fooling": "universal_fooling", "hack_lab": "gan_ablation"},
}


@pytest.mark.parametrize("kind", ALIASES)
def test_deprecated_names_mean_the_same_class_and_say_the_new_name(kind):
    entries, classes = catalog.catalog()[kind], registry.members(kind)
    assert {name: entry["alias_of"] for name, entry in entries.items() if "alias_of" in entry} == ALIASES[kind]
    for old, new in ALIASES[kind].items():
        assert classes[old] is classes[new] and classes[new].name == new
        assert entries[old] == entries[new] | {"alias_of": new}
