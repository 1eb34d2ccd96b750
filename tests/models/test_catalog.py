"""The committed catalog is what the code says, and says it without doubt."""

import json

from models import catalog, registry
from models.capabilities import Decodes, Encodes


def test_the_committed_catalog_is_fresh():
    assert catalog.main(["--check"]) == 0, "run `python -m models.catalog` and commit app/core/catalog/catalog.json"


def test_a_stale_or_missing_file_is_told_and_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(catalog, "FILE", tmp_path / "catalog.json")
    assert catalog.main(["--check"]) == 1
    assert "stale" in capsys.readouterr().err and not catalog.FILE.exists()
    assert catalog.main([]) == 0 == catalog.main(["--check"])


def test_capabilities_are_those_of_the_class_line():
    found = catalog.catalog()["families"]
    for name, family in registry.families().items():
        assert ("Encodes" in found[name]["capabilities"]) == issubclass(family, Encodes)
        assert ("Decodes" in found[name]["capabilities"]) == issubclass(family, Decodes)
    assert found["vae"]["capabilities"] == ["Encodes", "Decodes", "HasPrior", "HasPosterior"]
    able = {"decode", "denoise", "encode", "interpolate", "reconstruct", "samples"}
    assert able <= set(found["denoising_autoencoder"]["operations"])
    assert "denoise" not in found["autoencoder"]["operations"]


def test_writing_twice_gives_the_same_bytes_and_names_in_order():
    assert catalog.text() == catalog.text()
    for section in json.loads(catalog.text()).values():
        assert list(section) == sorted(section)
