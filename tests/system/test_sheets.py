"""The command that writes contact sheets can draw every family."""

import runpy
from pathlib import Path

import pytest
from PIL import Image

from models.registry import families
from models.training.loop import Training
from tests.models.data import for_family

SCRIPT = Path(__file__).parents[2] / "docs" / "sheets.py"


@pytest.fixture(scope="module")
def sheets() -> dict:
    """What docs/sheets.py defines."""
    return runpy.run_path(str(SCRIPT))


def test_the_guide_shows_every_sheet(sheets):
    page = sheets["GUIDE"].read_text()
    assert sheets["with_gallery"](page) == page, "run `python docs/sheets.py FAMILY` and commit the page"
    for file in sheets["FOLDER"].glob("*.png"):
        assert file.stat().st_size <= sheets["MOST_BYTES"]


@pytest.mark.parametrize("name", families())
def test_every_family_has_a_contact_sheet(name, sheets, tmp_path):
    spec, train, validation = for_family(families()[name], (1, 16, 16), 48)
    training = Training(families()[name].create({"images": 8, "batch_size": 4}, spec), train, validation)
    for _ in training.run():
        pass
    training.complete() if hasattr(training, "complete") else training.finish()
    training.family.eval().requires_grad_(False)
    trained = sheets["Trained"](training, {"fd": 1.5}, 2.0, "somewhere")
    size = sheets["write"](tmp_path / "sheet.png", sheets["sheet"](trained))
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.mode == "P" and picture.width > 100 and picture.height > 60
    assert size <= sheets["MOST_BYTES"]
    assert "8 images" in sheets["caption"](trained) and "fd 1.5" in sheets["caption"](trained)
