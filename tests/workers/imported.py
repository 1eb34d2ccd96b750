"""Built-in datasets imported without a job, and loaders made quick: of thousands of drawings every n-th."""

from workers.builtins import emoji, fontdigits, openmoji, scattered
from workers.data.builtin_rows import BuiltinSource
from workers.data.importing import read_source
from workers.data.rows import Options, Report, Size
from workers.data.stored import OpenDataset, open_dataset


def sampled(monkeypatch, step: int = 60) -> None:
    """Every `step`-th emoji with its copies in other tones, some faces and animals, two pictures of each printed digit,
    50 scattered ones.
    """
    found = openmoji.files()
    themes = [file for file in found if emoji.is_animal(file.stem) or emoji.class_of(file.stem) == "face"]
    groups = {openmoji.group_of(file.stem) for file in (*found[::step], *themes[::10])}
    chosen = [file for file in found if openmoji.group_of(file.stem) in groups]
    chosen = [file for file in chosen if sum(file.stem.count(tone) for tone in openmoji.TONES) < 2]  # couples: 25 each
    monkeypatch.setattr(openmoji, "files", lambda: chosen)
    monkeypatch.setattr(fontdigits, "VARIANTS", 2)
    monkeypatch.setattr(scattered, "COUNTS", {"train": 40, "validation": 10})


def imported(name: str, size: Size | None = None) -> tuple[BuiltinSource, OpenDataset, Report]:
    report = Report()
    source = BuiltinSource(name, size)
    published = read_source(source, Options(size=size), report, lambda *_: None, lambda: None)
    return source, open_dataset(published.digest), report
