"""The sets drawn from OpenMoji: what an emoji is called, what its near copies are, layers, lines and twins."""

import xml.etree.ElementTree as ET
from collections import Counter, defaultdict

import numpy as np
import pytest

from app.core.catalog.builtins import EMOJI, LAYERS
from tests.workers.imported import imported, sampled
from workers.builtins import TRAIN, VALIDATION, emoji, openmoji

NAMED = {
    "1F476-1F3FD": "baby",
    "1F9D2": "child",
    "1F467-1F3FF": "child",
    "1F469-1F3FB-200D-1F4BB": "adult",
    "1F468": "adult",
    "1F475-1F3FC": "older adult",
    "1F468-200D-1F469-200D-1F466": "person",
    "1F46E": "person",
    "270B-1F3FB": "body",
    "1F600": "face",
    "1F415-200D-1F9BA": "nature",
    "1F34E": "food",
    "1F697": "place",
    "26BD": "activity",
    "1F4BB": "object",
    "2764-FE0F": "symbol",
    "0031-FE0F-20E3": "symbol",
    "1F1E9-1F1EA": "flag",
    "1F3F4-200D-2620-FE0F": "flag",
    "E040": "extra",
}


@pytest.mark.parametrize("name, kind", NAMED.items())
def test_the_class_is_read_from_the_code_points(name, kind):
    assert emoji.class_of(name) == kind


def test_every_class_has_emoji_and_no_class_has_most():
    counts = Counter(emoji.class_of(file.stem) for file in openmoji.files())
    assert counts.keys() == set(EMOJI) and counts.total() == 4495
    assert counts["baby"] == 6 and counts["child"] == counts["older adult"] == 18  # all six tones of each
    assert max(counts.values()) < 0.4 * counts.total()


@pytest.mark.parametrize(
    "one, other",
    [
        ("1F44B", "1F44B-1F3FD"),
        ("1F3C3-1F3FB-200D-2640-FE0F", "1F3C3-200D-2642-FE0F"),
        ("1F468-1F3FB-200D-1F33E", "1F9D1-200D-1F33E"),
        ("1F48F", "1F469-1F3FB-200D-2764-FE0F-200D-1F48B-200D-1F468-1F3FC"),
        ("1F46A", "1F468-200D-1F469-200D-1F467"),
        ("1F46B", "1F469-200D-1F91D-200D-1F468"),
        ("1F91D", "1FAF1-1F3FB-200D-1FAF2-1F3FE"),
    ],
)
def test_near_copies_share_a_group(one, other):
    assert emoji.group_of(one) == emoji.group_of(other)


def test_what_is_drawn_alike_shares_a_group_but_for_signs_without_variants(monkeypatch):
    """Flags of states that share one, mostly: leaving out the second copy leaves nothing of its group behind."""
    sampled(monkeypatch, step=80)
    owners = defaultdict(set)
    for file in openmoji.files():
        owners[openmoji.flat(file.read_text(), 32).tobytes()].add(emoji.group_of(file.stem))
    groups = Counter(emoji.group_of(file.stem) for file in openmoji.files())
    for shared in (found for found in owners.values() if len(found) > 1):
        assert all(groups[group] == 1 for group in shared), shared


def test_one_group_in_five_of_every_class_is_held_out_at_every_size(monkeypatch):
    out = openmoji._validation(openmoji.files())
    counts, held = Counter(), Counter()
    for group, kind in {(emoji.group_of(file.stem), emoji.class_of(file.stem)) for file in openmoji.files()}:
        counts[kind] += 1
        held[kind] += group in out
    assert all(abs(held[kind] - counts[kind] / 5) <= 1 for kind in counts)
    assert not held["baby"]  # there is one group, to be learned from
    sampled(monkeypatch, step=200)
    sides = {}
    for load, size in ((openmoji.openmoji, 16), (openmoji.openmoji, 32), (openmoji.line2color, 16), (openmoji.seg, 16)):
        for example in filter(None, load(size).each):
            assert sides.setdefault(example.name, example.split) == example.split
    assert set(sides.values()) == {TRAIN, VALIDATION}


SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">
<g id="color"><rect width="6" height="8" fill="#ff0000"/></g>
<g id="hair"><rect x="1" width="1" height="8" fill="#552200"/></g>
<g id="skin"><rect x="2" width="3" height="8" fill="#fadcbc"/></g>
<g id="skin-shadow"><rect x="4" width="1" height="8" fill="#debb90"/></g>
<g id="line"><rect x="5" width="2" height="4" fill="#000000"/></g>
<g id="color-foreground"><rect x="6" y="2" width="1" height="2" fill="#00ff00"/></g>
</svg>"""


def test_a_mask_names_the_layer_on_top():
    upper = [LAYERS.index(layer) for layer in ("fill", "hair", "skin", "skin", "skin", "line", "line", "background")]
    middle = [*upper[:6], LAYERS.index("fill"), upper[7]]
    lower = [*upper[:5], LAYERS.index("fill"), LAYERS.index("background"), upper[7]]
    expected = [upper] * 2 + [middle] * 2 + [lower] * 4
    assert openmoji.layers(ET.fromstring(SVG), 8).tolist() == expected
    assert openmoji.layers(ET.fromstring(SVG), 64)[::8, ::8].tolist() == expected


def test_lines_are_the_layer_of_lines_alone():
    root = ET.fromstring(SVG)
    lines = openmoji.flat(openmoji._part(root, lambda kind: kind == "line"), 8)
    expected = np.full((8, 8), 255)
    expected[:4, 5:7] = 0
    assert (lines == expected).all()


def test_masks_have_the_known_shares(monkeypatch):
    some = openmoji.files()[::50]
    monkeypatch.setattr(openmoji, "files", lambda: some)
    masks = np.stack([example.mask for example in openmoji.seg(64).each if example])
    shares = np.bincount(masks.ravel(), minlength=5) / masks.size
    assert len(shares) == 5
    assert np.abs(shares - [0.689, 0.146, 0.044, 0.012, 0.109]).max() < 0.03


def test_the_colour_picture_has_its_lines_where_the_drawing_has_them(monkeypatch):
    sampled(monkeypatch, step=150)
    outlines, covered = defaultdict(set), []
    for example in filter(None, openmoji.line2color(32).each):
        lines, colour = example.images["input"], example.images["target"]
        assert lines.min() < 255 and (lines != colour).any()
        black = (lines < 40).all(0)
        covered += [(colour[:, black] < 80).all(0)]
        outlines[lines.tobytes()].add(example.group)
    assert np.concatenate(covered).mean() > 0.97  # a few drawings put something in front of lines
    assert all(len(groups) == 1 for groups in outlines.values())  # one drawing never means two things


def test_validation_images_of_two_tones_are_twins_in_order(storage, monkeypatch):
    sampled(monkeypatch, step=40)
    _, data, _ = imported("openmoji-tone")
    light, dark = data.validation["a"], data.validation["b"]
    assert data.facts["twins"] is True and len(light) == len(dark) > 10
    pairs = {}
    for a, b in openmoji._twins(openmoji.files()):
        body = openmoji._part(ET.fromstring(a.read_text()), lambda kind: kind in ("skin", "hair"))
        covered = openmoji._draw(body, 32)[:, :, 3] > 0
        pairs[openmoji.flat(a.read_text(), 32).tobytes()] = (openmoji.flat(b.read_text(), 32), covered)
    where = []
    for one, other in zip(light, dark, strict=True):
        twin, skin = pairs[one.tobytes()]
        assert (other == twin).all()
        changed = (one != other).any(0)
        assert changed.any()
        where.append(skin[changed])
    assert np.concatenate(where).mean() > 0.85  # some drawings have skin among their other colours
    away = np.abs(light.astype(int) - np.roll(dark, 1, 0)).mean()
    assert np.abs(light.astype(int) - dark).mean() < 0.7 * away


def test_a_flat_drawing_has_no_outlines_and_its_twin_has(storage, monkeypatch):
    sampled(monkeypatch, step=20)
    _, data, _ = imported("openmoji-flat")
    outlined, flat = data.validation["a"], data.validation["b"]
    assert data.facts["twins"] is True and len(outlined) == len(flat) > 2
    same = (np.abs(outlined.astype(int) - flat) < 8).all(1)
    black = [(images.max(1) < 60).mean() for images in (outlined, flat)]
    assert same.mean() > 0.5 and black[0] > 0.03 > 2 * black[1]


@pytest.mark.parametrize("draw", [openmoji.tone, openmoji.flat_style])
def test_no_emoji_is_trained_on_in_both_styles(draw, monkeypatch):
    sampled(monkeypatch, step=15)
    seen = defaultdict(lambda: defaultdict(set))
    for example in filter(None, draw(16).each):
        seen[example.split][next(iter(example.images))].add(example.group)
    train, validation = seen[TRAIN], seen[VALIDATION]
    assert train["a"] and train["b"] and not train["a"] & train["b"]
    assert validation["a"] == validation["b"]
    assert not validation["a"] & (train["a"] | train["b"])
