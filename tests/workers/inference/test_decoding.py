"""Costly images are decoded in a room, between deadlines; small ones here; the pixels are the same."""

import base64

import numpy as np
import pytest
from PIL import Image

from app.core.errors import InvalidImage, TooLarge
from app.core.images import IN_PROCESS_PIXELS
from models import deadline
from models.families.autoencoders.vae import VAE
from models.operations.denoise import Denoise
from models.types import DataSpec
from tests import tiny
from tests.workers.pictures import pixels, png, saved
from workers import codecs
from workers.inference import tensors
from workers.inference.tensors import decode_images, decode_sealed, read_inputs, read_plane
from workers.sandbox.room import Broken

SIZE = {"height": 8, "width": 8, "channels": 1}


@pytest.fixture(scope="module")
def photo() -> bytes:
    return saved(Image.effect_noise((1300, 1200), 40).convert("RGB"), "PNG", compress_level=1)


@pytest.fixture
def sealed(monkeypatch) -> list[str]:
    """The functions that were called in the room."""
    calls, room = [], tensors.decoders()

    class Noting:
        def call(self, name, function, *arguments):
            calls.append(function)
            return room.call(name, function, *arguments)

    monkeypatch.setattr(tensors, "decoders", Noting)
    return calls


def test_a_costly_image_is_decoded_in_a_room_to_the_same_pixels(photo, sealed):
    assert codecs.read_header(photo).cost > IN_PROCESS_PIXELS
    there = decode_images(SIZE, [photo, photo], resize=True)
    assert sealed == ["decode_for"] * 2
    assert (there == codecs.decode_batch(SIZE, [photo, photo], resize=True)).all()
    header = codecs.read_header(photo)
    assert (decode_sealed("decode", photo, 3, header=header) == codecs.decode(photo, 3)).all()


def test_small_images_never_leave_the_process(monkeypatch):
    monkeypatch.setattr(tensors, "decoders", None)
    assert decode_images(SIZE, [png(1, 8, 8)] * 256).shape == (256, 1, 8, 8)
    assert decode_images(SIZE, [saved(Image.new("L", (400, 400)), "JPEG")], resize=True).shape == (1, 1, 8, 8)


def test_many_small_ones_that_cost_much_together_do(sealed):
    decode_images(SIZE, [png(1, 300, 300)] * 40, resize=True)
    assert len(sealed) == 40


def test_a_problem_in_the_room_is_the_problem_of_the_image(photo):
    with pytest.raises(InvalidImage, match="cut short") as caught:
        decode_images(SIZE, [photo, photo[: len(photo) // 2]], resize=True)
    assert caught.value.field == "images/1" and "PNG" in caught.value.remedy
    with pytest.raises(InvalidImage, match=r"8 x 8 .* 1200 x 1300"):
        decode_images(SIZE, [photo])


def test_an_image_that_breaks_the_decoder_is_refused(photo, monkeypatch):
    class Breaking:
        def call(self, *arguments):
            raise Broken("The process that ran the computation was killed by signal 11.")

    monkeypatch.setattr(tensors, "decoders", Breaking)
    with pytest.raises(InvalidImage, match="signal 11"):
        decode_images(SIZE, [photo], resize=True)


def test_the_deadline_is_looked_at_between_images(photo, sealed):
    class Enough(Exception):
        pass

    def check():
        if len(sealed) == 3:
            raise Enough

    with deadline.checking(check), pytest.raises(Enough):
        decode_images(SIZE, [photo] * 20, resize=True)
    assert len(sealed) == 3


def test_a_batch_that_is_resized_has_the_same_limit_as_one_that_is_not(photo, sealed):
    model = VAE.create({"latent_dim": 2, "body": "mlp"}, DataSpec.from_facts(tiny.facts()))
    resizing = Denoise.Params(resize=True)
    with pytest.raises(TooLarge, match="count as"):
        read_inputs(model, Denoise(), resizing, [photo] * 200, None, 256)
    assert not sealed
    assert read_inputs(model, Denoise(), resizing, [photo], None, 256, 10_000_000).shape[0] == 1
    with pytest.raises(TooLarge):
        read_inputs(model, Denoise(), resizing, [photo], None, 256, 1_000_000)


def test_a_large_mask_is_decoded_in_a_room(sealed):
    mask = np.kron(pixels(1, 100, 100)[0] % 7, np.ones((30, 30), np.uint8))
    text = base64.b64encode(codecs.encode_masks(mask[None])[0]).decode()
    assert (read_plane(text, "mask").numpy() == mask).all()
    assert sealed == ["decode_mask"]
