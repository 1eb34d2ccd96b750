"""One number for each pixel, in and out: masks as answers, and parameters that are pictures."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from app.core.errors import InvalidImage, InvalidRequest
from models.operations.attack import AttackParams
from models.operations.core.base import Result
from workers import codecs
from workers.inference.tensors import encode_answers, read_params

MASKS = torch.arange(2 * 5 * 7).reshape(2, 5, 7).remainder(9).byte()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def text(array: np.ndarray, **options) -> str:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", **options)
    return base64.b64encode(file.getvalue()).decode()


def test_class_indices_become_palette_pngs_whose_values_are_the_indices():
    (answer,) = encode_answers([(Result(images=MASKS), "png", False)])
    for data, mask in zip(answer["images"], MASKS, strict=True):
        assert opened(data).mode == "P"
        assert np.array_equal(np.asarray(opened(data)), mask)
        assert np.array_equal(codecs.decode_mask(data), mask)  # and can be uploaded again


@pytest.mark.parametrize("encoding", ["webp", "png"])
def test_where_there_is_no_palette_masks_are_shown_in_its_colours(encoding):
    (answer,) = encode_answers([(Result(images=MASKS[:1]), encoding, encoding == "png")])
    (data,) = answer["images"]
    shown = np.asarray(opened(data).convert("RGB"))
    assert np.array_equal(shown, codecs.class_colours()[MASKS[0].numpy()])


def test_masks_beside_pictures_are_masks_too():
    (answer,) = encode_answers([(Result(images=torch.zeros(2, 3, 5, 7), pictures={"mask": MASKS}), "png", False)])
    assert [opened(data).mode for data in answer["extra"]["mask"]] == ["P", "P"]


def test_plane_parameter_accepts_base64_and_data_urls():
    mask = MASKS[0].numpy()
    for given in (text(mask), "data:image/png;base64," + text(mask)):
        params = read_params(AttackParams, {"mask": given, "truth": None})
        assert np.array_equal(params.mask, mask) and params.truth is None
    assert "mask" not in params.model_dump()  # it is no setting that requests of a batch must share


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("no base64!", InvalidRequest),
        (base64.b64encode(b"no picture").decode(), InvalidImage),
        (text(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)), InvalidImage),
    ],
)
def test_a_parameter_that_is_no_mask_is_named(given, error):
    with pytest.raises(error) as caught:
        read_params(AttackParams, {"aim": given})
    assert caught.value.field == "aim"
