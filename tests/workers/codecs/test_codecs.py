"""Each odd kind of image against pixels that are known, and the fast ways against Pillow."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from app.core.errors import InvalidImage
from tests.workers.pictures import picture, pixels, png, saved
from workers import codecs

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(width: int, height: int, depth: int, colour: int, lines: bytes, extra: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_lossless_formats_give_the_pixels_back(channels, format):
    array = pixels(1, 9, 14, channels)
    data = saved(picture(array), format, lossless=True)
    assert (codecs.decode(data, channels) == array).all()


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))
def test_the_fast_decoder_agrees_with_pillow(seed, height, width, channels):
    data = png(seed, height, width, channels)
    assert codecs.read_header(data).plain_channels == channels
    expected = np.asarray(Image.open(io.BytesIO(data))).reshape(height, width, channels).transpose(2, 0, 1)
    assert (codecs.decode(data) == expected).all()


@pytest.mark.parametrize(
    "extra", [b"", chunk(b"gAMA", struct.pack(">I", 100000)), chunk(b"sBIT", b"\5"), chunk(b"tEXt", b"Title\0x")]
)
def test_chunks_that_take_the_fast_way_change_no_pixel(extra):
    data = raw_png(16, 16, 8, 0, b"".join(b"\0" + bytes(row) for row in RAMP), extra)
    assert codecs.read_header(data).plain_channels == 1
    assert (codecs.decode(data)[0] == RAMP).all()


def test_jpeg_is_what_pillow_makes_of_it():
    smooth = picture(np.stack([RAMP, RAMP.T, RAMP[::-1]]))
    data = saved(smooth, "JPEG", quality=90)
    assert (codecs.decode(data).transpose(1, 2, 0) == np.asarray(Image.open(io.BytesIO(data)))).all()


def test_sixteen_bits_are_scaled_and_not_clipped():
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    assert (codecs.decode(saved(Image.fromarray(deep)))[0] == RAMP).all()


def test_sixteen_bit_colour_and_alpha():
    line = b"\0" + struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0xFFFF, 0, 0x0100)
    assert codecs.decode(raw_png(2, 1, 16, 2, line))[:, 0].T.tolist() == [[0x12, 0x56, 0x9A], [0xFF, 0, 1]]
    gray_alpha = b"\0" + struct.pack(">4H", 0x1234, 0xFFFF, 0x1234, 0)
    assert codecs.decode(raw_png(2, 1, 16, 4, gray_alpha)).tolist() == [[[0x12, 255]]]


def test_transparent_parts_show_the_background_and_not_the_hidden_colour():
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    data = saved(image)
    assert codecs.decode(data)[:, 0].T.tolist() == [[255, 255, 255], [0, 0, 0]]
    assert codecs.decode(data, background=(0, 0, 9))[:, 0].T.tolist() == [[0, 0, 9], [0, 0, 0]]
    half = Image.new("LA", (1, 1), (0, 128))
    assert codecs.decode(saved(half)).tolist() == [[[127]]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_gray_level_is_found_in_every_depth(depth):
    levels = 2**depth
    value = levels // 2
    packed = struct.pack(">H", value) if depth == 16 else bytes([value << (8 - depth)])
    data = raw_png(1, 1, depth, 0, b"\0" + packed, chunk(b"tRNS", struct.pack(">H", value)))
    assert codecs.decode(data).tolist() == [[[255]]]
    other = raw_png(1, 1, depth, 0, b"\0" + packed, chunk(b"tRNS", struct.pack(">H", value - 1)))
    assert codecs.decode(other).item() == (value >> 8 if depth == 16 else value * 255 // (levels - 1))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_found_in_both_depths(depth):
    colour = (10, 20, 30) if depth == 8 else (0x0A00, 0x1400, 0x1E00)
    line = b"\0" + (bytes(colour) if depth == 8 else struct.pack(">3H", *colour))
    data = raw_png(1, 1, depth, 2, line, chunk(b"tRNS", struct.pack(">3H", *colour)))
    assert codecs.decode(data).ravel().tolist() == [255, 255, 255]


@pytest.mark.parametrize("transparency", [0, b"\0\xff\xff\xff"])
def test_palettes(transparency):
    image = Image.new("P", (4, 1))
    image.putpalette([9, 9, 9, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    for index in range(4):
        image.putpixel((index, 0), index)
    assert codecs.decode(saved(image))[:, 0].T.tolist() == [[9, 9, 9], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert codecs.decode(saved(image, transparency=transparency))[:, 0, 0].tolist() == [255, 255, 255]


def test_a_palette_of_grays_is_a_gray_image():
    gray = picture(pixels(3))
    image = gray.convert("P", palette=Image.Palette.ADAPTIVE)
    decoded = codecs.decode(saved(image))
    assert decoded.shape == (1, 12, 12)
    assert (decoded[0] == np.asarray(image.convert("L"))).all()


def test_one_bit_is_black_and_white():
    bits = np.arange(16).reshape(4, 4) % 3 == 0
    assert (codecs.decode(saved(Image.fromarray(bits)))[0] == bits * 255).all()


def test_cmyk_jpeg_becomes_rgb():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = codecs.decode(saved(image, "JPEG", quality=100))[:, 8, 8].astype(int)
    assert red > 200 and green < 60 and blue < 60


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG"])
def test_pictures_stand_upright(orientation, format):
    corner = np.zeros((16, 32), np.uint8)
    corner[:8, :8] = 255  # top left of the upright picture
    turned = {1: corner, 2: corner[:, ::-1], 3: corner[::-1, ::-1], 4: corner[::-1], 5: corner.T,
              6: np.rot90(corner), 7: corner[::-1, ::-1].T, 8: np.rot90(corner, -1)}[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(
        Image.fromarray(np.ascontiguousarray(turned)),
        format,
        exif=exif,
        **({"lossless": True} if format == "WEBP" else {}),
    )
    decoded = codecs.decode(data, 1)[0]
    assert decoded.shape == (16, 32)
    assert decoded[:8, :8].mean() > 240 and decoded[8:].mean() < 15


def test_orientation_in_a_png_keeps_it_off_the_fast_way():
    exif = Image.Exif()
    exif[0x0112] = 3
    assert codecs.read_header(png(1, exif=exif)).plain_channels == 0


def test_a_colour_profile_is_applied_and_a_broken_one_ignored():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = picture(pixels(4, channels=3))
    for useless in (b"not a profile", profile):
        assert (codecs.decode(saved(image, icc_profile=useless)).transpose(1, 2, 0) == np.asarray(image)).all()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (codecs.decode(saved(image, icc_profile=srgb)).transpose(1, 2, 0) == np.asarray(image)).all()


def test_a_linear_light_profile_makes_the_middle_brighter():
    srgb = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    linear = _with_linear_curves(bytes(srgb)).replace(b"s\0R\0G\0B", b"l\0i\0n\0e").replace(b"sRGB", b"line")
    for mode, colour in (("RGB", (64, 64, 64)), ("RGBA", (64, 64, 64, 255))):
        data = saved(Image.new(mode, (4, 4), colour), icc_profile=linear)
        assert codecs.decode(data)[:, 0, 0].tolist() == [137, 137, 137]  # the sRGB curve at 64/255
    hidden = saved(Image.new("RGBA", (4, 4), (64, 64, 64, 0)), icc_profile=linear)
    assert (codecs.decode(hidden) == 255).all()


def _with_linear_curves(profile: bytes) -> bytes:
    """Points the three tone curves at one appended identity curve."""
    curve = b"curv" + bytes(4) + struct.pack(">I", 0)
    data = bytearray(profile + bytes(-len(profile) % 4))
    at = len(data)
    data += curve
    for entry in range(struct.unpack_from(">I", data, 128)[0]):
        position = 132 + 12 * entry
        if data[position : position + 4] in (b"rTRC", b"gTRC", b"bTRC"):
            struct.pack_into(">II", data, position + 4, at, len(curve))
    struct.pack_into(">I", data, 0, len(data))
    return bytes(data)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_animations_are_refused_with_the_remedy(format):
    frames = [picture(pixels(seed)).convert("RGB") for seed in range(3)]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
    with pytest.raises(InvalidImage, match="animation of 3 frames") as caught:
        codecs.decode(data)
    assert "frames=first" in caught.value.remedy
    assert (codecs.decode(data, frames="first").transpose(1, 2, 0) == np.asarray(frames[0])).all()


def test_a_photo_with_previews_is_no_animation():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert codecs.decode(data)[0].min() > 200


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (8193, 8), (8192, 8192), (0, 5), (2**31 - 1, 1)])
def test_sizes_are_judged_before_anything_is_decoded(width, height):
    bombs = [raw_png(width, height, 8, 0, b"")]
    if 0 < width < 2**16:
        frame = struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\1\x11\0"
        bombs += [b"\xff\xd8\xff\xc0" + frame + bytes(20)]
        bombs += [b"RIFF\x99\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + struct.pack("<I", width - 1)[:3]
                  + struct.pack("<I", height - 1)[:3] + bytes(20)]  # fmt: skip
    for data in bombs:
        with pytest.raises(InvalidImage, match="pixels"):
            codecs.decode(data)


def test_a_jpeg_of_endless_scans_is_refused():
    data = saved(picture(pixels(1, 16, 16, 3)), "JPEG")
    with pytest.raises(InvalidImage, match="scans"):
        codecs.decode(data[:-2] + b"\xff\xda\0\2" * 200 + data[-2:])
    progressive = saved(picture(pixels(1, 16, 16, 3)), "JPEG", progressive=True)
    assert codecs.decode(progressive).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "empty"),
        (b"GIF89a" + bytes(20), "a GIF"),
        (b"<svg xmlns=''/>", "an SVG"),
        (bytes(4) + b"ftypavif", "HEIC, AVIF"),
        (b"PK\x03\x04" + bytes(20), "a zip archive"),
        (b"hello", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "ends inside its header"),
        (b"\xff\xd8\xff", "ends inside its header"),
    ],
)
def test_what_is_no_image_is_named(data, sentence):
    with pytest.raises(InvalidImage, match=sentence):
        codecs.decode(data)


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_images_cut_short_are_refused(cut, format):
    data = saved(picture(pixels(5, 40, 40, 3)), format)
    with pytest.raises(InvalidImage):
        codecs.decode(data[: int(len(data) * cut)])


def test_gray_and_colour_convert_into_each_other():
    gray, colour = pixels(6), pixels(7, channels=3)
    assert (codecs.decode(saved(picture(gray)), 3) == gray).all()
    assert (codecs.decode(saved(picture(colour)), 1)[0] == np.asarray(picture(colour).convert("L"))).all()


def test_another_size_is_refused_with_both_sizes_and_resized_on_request():
    facts = {"height": 6, "width": 8, "channels": 1}
    data = png(1, 12, 24)
    with pytest.raises(InvalidImage, match=r"6 x 8 .* 12 x 24") as caught:
        codecs.decode_for(facts, data)
    assert "resize=true" in caught.value.remedy
    assert codecs.decode_for(facts, data, resize=True).shape == (1, 6, 8)


def test_shrinking_averages_and_crops_in_the_middle():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    assert abs(codecs.fit(checks.astype(np.uint8)[None], 8, 8).astype(int) - 127).max() <= 2
    wide = np.zeros((1, 16, 48), np.uint8)
    wide[:, :, 16:32] = 200
    assert (codecs.fit(wide, 16, 16) == 200).all()
    mask = np.array([[1, 7], [7, 1]], np.uint8)
    assert set(np.unique(codecs.fit(mask, 9, 9, nearest=True))) == {1, 7}


def test_a_batch_names_the_image_that_is_wrong():
    facts = {"height": 12, "width": 12, "channels": 3}
    assert (codecs.decode_batch(facts, [png(1), png(2)])[1] == pixels(2)).all()
    with pytest.raises(InvalidImage) as caught:
        codecs.decode_batch(facts, [png(1), b"?", png(2)])
    assert caught.value.field == "images/1"


def test_large_jpegs_are_decoded_smaller_when_that_is_enough():
    smooth = np.kron(pixels(1, 8, 8, 3), np.ones((1, 50, 100), np.uint8))
    data = saved(picture(smooth), "JPEG", quality=95)
    assert codecs.decode(data).shape == (3, 400, 800)
    small = codecs.decode(data, least_side=100)
    assert small.shape == (3, 100, 200)
    exact = codecs.fit(codecs.decode(data), 100, 200)
    assert abs(small.astype(int) - exact).mean() < 4
    assert codecs.decode(data, least_side=300).shape == (3, 400, 800)


def test_masks_are_their_indices():
    indices = pixels(3)[0] % 5
    palette = Image.fromarray(indices)
    palette.putpalette(codecs.class_colours().tobytes())
    for image in (Image.fromarray(indices), palette, Image.fromarray(np.repeat(indices[..., None], 3, 2))):
        assert (codecs.decode_mask(saved(image)) == indices).all()
    assert (codecs.decode_mask(codecs.encode_masks(indices[None])[0]) == indices).all()
    assert (codecs.decode_mask(saved(Image.fromarray(indices > 2))) == (indices > 2)).all()
    for refused in (saved(picture(pixels(1, channels=3))), saved(Image.fromarray(indices), "JPEG")):
        with pytest.raises(InvalidImage, match="mask"):
            codecs.decode_mask(refused)


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (33, 32), (1, 1), (64, 80)])
@pytest.mark.parametrize("channels", [1, 3])
def test_encoded_images_are_exact(size, channels):
    batch = np.stack([pixels(seed, *size, channels) for seed in range(3)])
    for data, image in zip(codecs.encode(batch, "png"), batch, strict=True):
        opened = np.asarray(Image.open(io.BytesIO(data))).reshape(*size, channels).transpose(2, 0, 1)
        assert (opened == image).all()
    for data, image in zip(codecs.encode(batch, "webp"), batch, strict=True):
        assert (codecs.decode(data, channels) == image).all()


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_floats_are_rounded_to_the_nearest_level(kind):
    levels = np.arange(256, dtype=np.float32) / 255
    assert (codecs.to_uint8(kind(levels)) == np.arange(256)).all()
    odd = np.array([-0.1, 0.49 / 255, 0.51 / 255, 254.6 / 255, 1.5, np.nan, np.inf, -np.inf, 3e38], np.float32)
    assert codecs.to_uint8(kind(odd)).tolist() == [0, 0, 1, 255, 255, 0, 255, 0, 255]


def test_tensors_are_floats_between_zero_and_one():
    tensor = codecs.to_tensor(np.array([[0, 51, 255]], np.uint8))
    assert tensor.dtype == torch.float32 and torch.equal(tensor, torch.tensor([[0, 0.2, 1]]))


def test_a_grid_shows_every_image_in_reading_order():
    images = np.stack([np.full((1, 2, 3), value, np.uint8) for value in range(5)])
    sheet = codecs.decode(codecs.grid_png(images, columns=2, gap=1))[0]
    assert sheet.shape == (8, 7)
    assert [sheet[0, 0], sheet[0, 4], sheet[3, 0], sheet[3, 4], sheet[6, 0], sheet[6, 4]] == [0, 1, 2, 3, 4, 255]
    assert codecs.decode(codecs.grid_png(images[:4])).shape == (1, 6, 8)
