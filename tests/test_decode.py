"""Decoding: any bytes give the right pixels or one short DataError, and never a warning."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from mmjax.data import decode
from mmjax.data.decode import (
    ImageInfo,
    decode_image,
    decode_images,
    encode_png,
    probe_image,
    scan_images,
    to_rgb,
)
from mmjax.data.decode_sheet import contact_sheet
from mmjax.data.image_bytes import exif_orientation
from mmjax.errors import DataError
from mmjax.schema import ImageSpec
from mmjax.serving import wire

FORMATS = ("JPEG", "PNG", "WebP", "BMP", "GIF")
quick = settings(max_examples=50, deadline=None)


def spec(height_px: int = 8, width_px: int = 8, **how) -> ImageSpec:
    return ImageSpec(height_px=height_px, width_px=width_px, **how)


def pixels(height: int, width: int, channels: int | None = 3, seed: int = 0, dtype: type = np.uint8) -> np.ndarray:
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def saved(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
    """A photograph-like image, so that JPEG and scaling lose little."""
    down, across = np.mgrid[:height, :width] / max(height, width)
    return (np.stack([down, across, (down + across) / 2], -1) * 255).astype(np.uint8)


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Oracle: exact compositing over white, rounded."""
    a = alpha[..., None].astype(float) / 255
    return rgb * a + 255 * (1 - a)


def reason(source) -> str:
    with pytest.raises(DataError) as error:
        decode_image(source, spec())
    return str(error.value)


# ---- formats and sources -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "BMP"])
def test_lossless_formats_give_the_pixels_back(form):
    image = pixels(5, 7)
    assert np.array_equal(decode_image(saved(Image.fromarray(image), form), spec(5, 7)), image)


def test_lossless_webp_gives_the_pixels_back():
    image = pixels(5, 7)
    assert np.array_equal(decode_image(saved(Image.fromarray(image), "WEBP", lossless=True), spec(5, 7)), image)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_decodes_to_about_the_same_image(form):
    image = smooth(24, 32)
    got = decode_image(saved(Image.fromarray(image), form), spec(24, 32)).astype(int)
    assert abs(got - image).mean() < (6 if form == "GIF" else 3)


@pytest.mark.parametrize("form", FORMATS)
def test_the_suffix_does_not_matter(form, tmp_path):
    data = saved(Image.fromarray(smooth(9, 9)), form)
    path = tmp_path / "photo.txt"
    path.write_bytes(data)
    assert np.array_equal(decode_image(path, spec()), decode_image(data, spec()))
    assert np.array_equal(decode_image(str(path), spec()), decode_image(data, spec()))
    assert probe_image(path)[0] == form


def test_first_frame_of_an_animation():
    frames = [Image.fromarray(np.full((6, 6, 3), level, np.uint8)) for level in (10, 200)]
    for form in ("GIF", "PNG", "WEBP"):
        data = saved(
            frames[0], form, save_all=True, append_images=frames[1:], **({} if form != "WEBP" else {"lossless": True})
        )
        assert abs(decode_image(data, spec(6, 6)).astype(int) - 10).max() <= 1, form


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_arrays(channels):
    array = pixels(6, 5, channels)
    got = decode_image(array, spec(6, 5))
    plain = array if channels in (3, 4) else np.repeat(array.reshape(6, 5, 1), 3, axis=2)
    want = over_white(plain[..., :3], plain[..., 3]) if channels == 4 else plain
    assert got.dtype == np.uint8
    assert abs(got - want).max() <= 0.51


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    want = np.rint(values / 257).astype(np.uint8)
    for source in (values, values[:, :, None], saved(Image.fromarray(values), "PNG")):
        got = decode_image(source, spec(256, 256))
        assert np.array_equal(got, np.repeat(want[:, :, None], 3, axis=2))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros(3, np.uint8),
        np.zeros((4, 4, 3), np.uint16),
    ],
)
def test_other_arrays_are_refused(array):
    assert "image array: expected u8[H, W], u8[H, W, 1 or 3 or 4] or u16[H, W] with pixels, got" in reason(array)


# ---- modes ---------------------------------------------------------------------------------------------------------


def test_modes_without_transparency():
    base = Image.fromarray(smooth(16, 16))
    for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBX"):
        image = base.convert(mode)
        got = np.asarray(to_rgb(image)).astype(int)
        assert abs(got - np.asarray(image.convert("RGB")).astype(int)).max() == 0, mode
    grey = np.asarray(to_rgb(base.convert("1")))
    assert set(np.unique(grey)) == {0, 255}


def test_integer_and_float_grey():
    values = np.array([[-5, 0, 128], [257, 65535, 70000]], np.int32)
    assert np.asarray(to_rgb(Image.fromarray(values)))[..., 1].tolist() == [[0, 0, 0], [1, 255, 255]]
    floats = np.array([[-5, 0.4, 0.6], [254.6, 300, np.nan]], np.float32)
    assert np.asarray(to_rgb(Image.fromarray(floats)))[..., 1].tolist() == [[0, 0, 1], [255, 255, 0]]
    big = Image.frombytes("I;16B", (2, 1), b"\x01\x01\xff\xff")
    assert np.asarray(to_rgb(big))[0, :, 0].tolist() == [1, 255]


def test_cmyk_is_the_product_of_the_inks():
    cmyk = pixels(9, 9, 4)
    c, k = cmyk[..., :3].astype(float), cmyk[..., 3:].astype(float)
    got = np.asarray(to_rgb(Image.fromarray(cmyk, "CMYK")))
    assert abs(got - (255 - c) * (255 - k) / 255).max() <= 1


def test_cmyk_jpeg_is_inverted_as_adobe_writes_them():
    cmyk = np.zeros((16, 16, 4), np.uint8)
    cmyk[..., 1] = 200
    data = saved(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=100)
    assert b"Adobe" in data
    assert abs(decode_image(data, spec(16, 16)).astype(int) - [255, 55, 255]).max() <= 3


def test_lab_goes_through_d50_to_srgb():
    colors = np.array([[[119, 119, 119], [255, 255, 255], [200, 120, 90], [90, 120, 200], [100, 180, 100]]], np.uint8)
    lab = ImageCms.profileToProfile(
        Image.fromarray(colors), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    assert lab.getpixel((0, 0)) in ((127, 0, 0), (128, 0, 0), (128, 128, 128))  # L = 50, no colour
    assert abs(np.asarray(to_rgb(lab)).astype(int) - colors).max() <= 3  # a and b are whole numbers


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA", "La", "RGBa"])
def test_alpha_is_composited_over_white(mode):
    rgba = pixels(12, 12, 4, seed=3)
    rgba[..., :3] = rgba[..., :1]  # grey, so that LA and PA hold it
    straight = Image.fromarray(rgba)
    if mode == "PA":
        image = straight.convert("L").convert("PA")
        image.putalpha(straight.getchannel(3))
    elif mode == "La":
        image = straight.convert("LA").convert("La")
    else:
        image = straight.convert(mode)
    got = np.asarray(to_rgb(image)).astype(float)
    loss = 3 if mode in ("La", "RGBa") else 1
    assert abs(got - over_white(rgba[..., :3], rgba[..., 3])).max() <= loss


@pytest.mark.parametrize(
    ("mode", "transparency", "pixel"),
    [
        ("L", 7, 7),
        ("1", 255, 255),
        ("RGB", (7, 8, 9), (7, 8, 9)),
        ("I;16", 700, 700),
        ("P", 3, 3),
        ("P", bytes([0, 9, 255, 0]), 3),
    ],
)
def test_one_transparent_colour_becomes_white(mode, transparency, pixel):
    image = Image.new(mode, (4, 4), 0)
    if mode == "P":
        image.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
        image.putpixel((0, 0), 2)
    image.putpixel((1, 1), pixel)
    got = decode_image(saved(image, "PNG", transparency=transparency), spec(4, 4))
    assert got[1, 1].tolist() == [255, 255, 255]
    if not isinstance(transparency, bytes):
        assert got[3, 3].tolist() == [0, 0, 0]
    if mode == "P":
        assert got[0, 0].tolist() == [2, 2, 2]


def png(depth: int, kind: int, rows: bytes, *extra: tuple[bytes, bytes], size: tuple[int, int] = (2, 1)) -> bytes:
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)), *extra]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    framed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_transparent_colour_of_other_depths():
    four = png(4, 0, b"\0\x5a", (b"tRNS", b"\0\x05"))  # two grey pixels, 5 and 10 of 15
    assert decode_image(four, spec(1, 2))[0, :, 0].tolist() == [255, 170]
    deep = png(16, 2, b"\0" + b"\x12\x34" * 3 + b"\x56\x78" * 3, (b"tRNS", b"\x12\x34" * 3))
    assert decode_image(deep, spec(1, 2))[0, :, 0].tolist() == [255, 0x56]


# ---- orientation and size ------------------------------------------------------------------------------------------


def oriented(image: np.ndarray, orientation: int, form: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(image), form, exif=exif)


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
    9: lambda a: a,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(orientation):
    image = pixels(4, 6)
    want = UPRIGHT[orientation](image)
    data = oriented(image, orientation)
    assert np.array_equal(decode_image(data, spec(*want.shape[:2])), want)
    assert probe_image(data) == ImageInfo("PNG", "RGB", want.shape[1], want.shape[0])


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_exif_orientation_of_lossy_formats(form):
    image = smooth(400, 600)
    want = decode_image(np.ascontiguousarray(np.rot90(image, -1)), spec(60, 40, resize="stretch")).astype(int)
    got = decode_image(oriented(image, 6, form), spec(60, 40, resize="stretch"))
    assert abs(got - want).max() <= 6


def test_damaged_exif_is_upright_and_silent():
    broken = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x1a\x01\x05\0\x01\0\0\0\xff\xff\xff\xff" * 3
    data = saved(Image.fromarray(smooth(8, 8)), "JPEG", exif=broken)
    assert decode_image(data, spec()).shape == (8, 8, 3)
    assert exif_orientation(broken) == exif_orientation(b"") == exif_orientation(b"Exif\0\0II*\0\xff") == 1


@quick
@given(data=st.binary(max_size=80), order=st.sampled_from([b"II*\0", b"MM\0*", b""]))
def test_any_exif_gives_an_orientation(data, order):
    assert 1 <= exif_orientation(b"Exif\0\0" + order + data) <= 8


@pytest.mark.parametrize("how", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("method", ["bilinear", "bicubic", "lanczos", "box"])
def test_the_right_size_passes_untouched(how, method):
    image = pixels(10, 6)
    assert np.array_equal(decode_image(image, spec(10, 6, resize=how, filter=method)), image)


@quick
@given(
    size=st.tuples(*[st.integers(1, 40)] * 2),
    target=st.tuples(*[st.integers(1, 40)] * 2),
    how=st.sampled_from(["stretch", "crop", "pad"]),
    method=st.sampled_from(["bilinear", "bicubic", "lanczos", "box"]),
)
def test_any_size_becomes_the_size_asked_for(size, target, how, method):
    image = np.full((*size, 3), 200, np.uint8)
    got = decode_image(image, spec(*target, resize=how, filter=method))
    assert got.shape == (*target, 3)
    assert set(np.unique(got)) <= ({0, 200} if how == "pad" else {200})


def test_crop_keeps_the_centre():
    image = pixels(4, 10)
    assert np.array_equal(decode_image(image, spec(4, 4)), image[:, 3:7])


def test_pad_is_black_around_the_whole():
    image = np.maximum(pixels(4, 8), 1)
    got = decode_image(image, spec(8, 8, resize="pad"))
    assert np.array_equal(got[2:6], image)
    assert not got[:2].any()
    assert not got[6:].any()


def test_box_filter_halves_by_averaging():
    image = pixels(8, 8)
    want = image.reshape(4, 2, 4, 2, 3).mean((1, 3))
    got = decode_image(image, spec(4, 4, resize="stretch", filter="box"))
    assert abs(got - want).max() <= 1  # two passes, each rounded


@pytest.mark.parametrize("how", ["stretch", "crop", "pad"])
def test_a_large_jpeg_decoded_small_looks_as_decoded_whole(how):
    data = saved(Image.fromarray(smooth(403, 301)), "JPEG", quality=95)
    small = decode_image(data, spec(40, 40, resize=how))
    whole = decode_image(np.asarray(Image.open(io.BytesIO(data))), spec(40, 40, resize=how))
    assert abs(small.astype(int) - whole).max() <= 6
    assert np.array_equal(small, decode_image(data, spec(40, 40, resize=how)))


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"II*\0" + bytes(60), "TIFF"),
        (b"\0\0\0\x1cftypheic" + bytes(20), "HEIC"),
        (b"\0\0\0\x1cftypavif" + bytes(20), "AVIF"),
        (b"\xef\xbb\xbf\n <SVG xmlns=''>", "SVG"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer (run `git lfs pull`)"),
        (b"just text", "no image"),
    ],
)
def test_other_formats_are_refused_by_name(data, name):
    assert reason(data) == f"image of {len(data)} bytes: expected JPEG, PNG, WebP, BMP or GIF, got {name}"


def test_unreadable_files(tmp_path):
    assert reason(tmp_path) == f"{tmp_path}: is a folder, not an image"
    assert reason(tmp_path / "none.png") == f"{tmp_path / 'none.png'}: no such file"
    assert reason("a\0b.png") in ("a\0b.png: no such file", "a\0b.png: cannot be read: embedded null byte")
    (tmp_path / "empty.png").write_bytes(b"")
    assert reason(tmp_path / "empty.png") == f"{tmp_path / 'empty.png'}: is empty"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused(form, share):
    data = saved(Image.fromarray(pixels(40, 40)), form)
    assert reason(data[: int(len(data) * share)]).endswith(f": {form} is truncated")


def test_a_flipped_bit_in_a_png_is_found():
    data = bytearray(saved(Image.fromarray(pixels(40, 40)), "PNG"))
    data[len(data) // 2] ^= 4
    assert reason(bytes(data)).endswith("PNG is damaged (the checksum of IDAT is wrong)")


def test_a_png_that_needs_what_is_not_known_is_refused():
    assert reason(png(8, 2, b"\0", (b"CgBI", b"1234"))).endswith("PNG is damaged (it holds an unknown critical chunk)")
    assert decode_image(png(8, 0, b"\0\7\7", (b"teXt", b"anything")), spec(1, 2)).tolist() == [[[7] * 3] * 2]


def test_extensions_of_a_gif_are_passed_over():
    frames = [Image.new("L", (6, 5), level) for level in (40, 90)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], loop=0, duration=50, comment=b"two")
    assert (decode_image(data, spec(5, 6)) == 40).all()
    assert reason(data[:25]).endswith("GIF is truncated")


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert reason(tmp_path / "pipe.png").endswith("pipe.png: is no regular file")


def test_too_many_pixels_are_refused_before_they_are_decoded():
    with pytest.raises(DataError, match=r"is 5 x 4 = 20 pixels, more than the 19 allowed"):
        decode_image(saved(Image.fromarray(pixels(4, 5)), "PNG"), spec(), max_pixels=19)
    for form in FORMATS:
        with pytest.raises(DataError, match="more than the 19 allowed"):
            probe_image(saved(Image.fromarray(pixels(4, 5)), form), max_pixels=19)
    bomb = png(8, 2, b"\0", size=(100_000, 100_000))
    assert "is 100000 x 100000 = 10000000000 pixels, more than the 178956970 allowed" in reason(bomb)
    assert "more than the 89478485 allowed" in reason(
        b"GIF89a" + struct.pack("<HHBBB", 60000, 60000, 0, 0, 0) + b"," + bytes(8)
    )


def test_no_pixels():
    assert "has no pixels (0 x 3)" in reason(png(8, 2, b"\0", size=(0, 3)))
    assert "has no pixels (0 x 0)" in reason(b"GIF89a" + bytes(7) + b"," + bytes(9) + b"\2\0;")


VALID = {
    **{form: saved(Image.fromarray(smooth(16, 20)), form) for form in FORMATS},
    "palette": saved(Image.fromarray(smooth(16, 20)).convert("P"), "PNG"),
    "alpha": saved(Image.fromarray(pixels(9, 9, 4)), "WEBP"),
    "animated": saved(Image.fromarray(smooth(9, 9)), "PNG", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
    "cmyk": saved(Image.fromarray(pixels(9, 9, 4), "CMYK"), "JPEG"),
    "exif": oriented(smooth(9, 9), 6, "JPEG"),
}


def survives(data: bytes) -> None:
    """Decoding gives an image or a DataError of a few words; one at a time and many at once agree."""
    images, bad = decode_images(spec(), [data], max_pixels=1_000_000)
    assert images.shape == (1, 8, 8, 3)
    if bad:
        [(index, why)] = bad
        assert index == 0
        assert 0 < len(why) < 200
        assert "\n" not in why
        with pytest.raises(DataError, match="image of"):
            decode_image(data, spec(), max_pixels=1_000_000)
    else:
        assert probe_image(data).width_px > 0


@quick
@given(
    data=st.binary(max_size=300), head=st.sampled_from([b"", *[d[:30] for d in VALID.values()], b"BM", b"\xff\xd8\xff"])
)
def test_any_bytes(data, head):
    survives(head + data)


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(sorted(VALID)),
    cut=st.floats(0.05, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), max_size=4),
)
def test_damaged_files(name, cut, flips):
    data = bytearray(VALID[name][: max(1, int(len(VALID[name]) * cut))])
    for where, bit in flips:
        data[int(where * len(data))] ^= 1 << bit
    survives(bytes(data))


@quick
@given(
    name=st.sampled_from(["JPEG", "GIF", "BMP", "WebP", "exif", "alpha"]),
    at=st.integers(0, 60),
    value=st.sampled_from([b"\0", b"\xff", b"\0\0", b"\xff\xff", b"\x7f\xff"]),
)
def test_damaged_headers(name, at, value):
    data = VALID[name]
    changed = data[:at] + value + data[at + len(value) :]
    survives(changed)


# ---- many images ---------------------------------------------------------------------------------------------------


def test_many_images_keep_their_order_and_list_the_bad(tmp_path):
    images = [pixels(8, 8, seed=index) for index in range(150)]
    sources: list = [encode_png(image) for image in images]
    sources[3], sources[77], sources[149] = b"nonsense", b"", tmp_path / "none.png"
    for workers in (None, 1, 3):
        got, bad = decode_images(spec(), sources, workers=workers)
        assert bad == [
            (3, "expected JPEG, PNG, WebP, BMP or GIF, got no image"),
            (77, "is empty"),
            (149, "no such file"),
        ]
        assert not got[[3, 77, 149]].any()
        good = [index for index in range(150) if index not in (3, 77, 149)]
        assert np.array_equal(got[good], np.stack([images[index] for index in good]))
    assert scan_images(sources) == bad
    assert decode_images(spec(), [])[0].shape == (0, 8, 8, 3)


def test_probe_of_arrays_and_modes():
    assert probe_image(pixels(4, 5, None)) == ImageInfo("array", "L", 5, 4)
    assert probe_image(saved(Image.fromarray(pixels(4, 5)).convert("P"), "PNG")) == ImageInfo("PNG", "P", 5, 4)
    with pytest.raises(DataError, match="image of 3 bytes: expected JPEG"):
        probe_image(b"abc")


def test_contact_sheet(tmp_path):
    images = np.stack([np.full((28, 28, 3), level, np.uint8) for level in range(0, 250, 25)])
    path = tmp_path / "sheet.png"
    contact_sheet(
        path, images, [f"a rather long caption {index} that is cut\nx" for index in range(9)] + [""], columns=4
    )
    with Image.open(path) as sheet:
        assert sheet.size == (4 * (112 + 8), 3 * (112 + 24))
        assert sheet.getpixel((120 + 50, 50)) == (25, 25, 25)
        assert (np.asarray(sheet)[117:136, :120] < 128).any()
    with pytest.raises(DataError, match="cannot be written: No such file or directory"):
        contact_sheet(tmp_path / "none" / "x.png", images[:1], ["a"])


def test_encoding_is_undone_by_decoding():
    image = pixels(7, 3)
    assert np.array_equal(decode_image(encode_png(image), spec(7, 3)), image)


# ---- real data -----------------------------------------------------------------------------------------------------


def test_real_photographs(shared_data):
    paths = sorted((shared_data / "images/flowers/rose").glob("*.jpg"))[:12]
    images, bad = decode_images(spec(64, 64), paths)
    assert not bad
    assert 40 < images.mean() < 220
    for path, image in zip(paths, images, strict=True):
        with Image.open(path) as whole:
            side = min(whole.size)
            left, top = (whole.width - side) / 2, (whole.height - side) / 2
            want = whole.resize((64, 64), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        assert np.array_equal(image, np.asarray(want))


def test_real_icons_of_every_mode(shared_data):
    seen: dict[str, list] = {}
    for path in sorted((shared_data / "multimodal/emoji/images").glob("*.png")):
        if len(found := seen.setdefault(probe_image(path).mode, [])) < 5:
            found.append(path)
    assert set(seen) == {"P", "RGBA", "LA", "L"}
    for path in (path for paths in seen.values() for path in paths):
        with Image.open(path) as raw:
            rgba = np.asarray(raw.convert("RGBA"))
        got = decode_image(path, spec(64, 64))
        assert abs(got - over_white(rgba[..., :3], rgba[..., 3])).max() <= 1


def test_the_limit_is_pillows():
    assert Image.MAX_IMAGE_PIXELS is not None
    assert (decode.MAX_PIXELS, decode.MAX_GIF_PIXELS) == (2 * Image.MAX_IMAGE_PIXELS, Image.MAX_IMAGE_PIXELS)
    told = (Path(__file__).resolve().parent.parent / "docs/VISION.md").read_text()
    assert f"up to {decode.MAX_PIXELS:,} (a GIF {decode.MAX_GIF_PIXELS:,})" in told
    assert f"the server takes {wire.MAX_PIXELS:,} an image" in told


@quick
@given(
    st.integers(20, 90),
    st.integers(20, 90),
    st.sampled_from([0.5, 0.875, 0.95]),
    st.sampled_from(["bilinear", "bicubic"]),
)
def test_a_crop_share_is_resize_then_centre_crop(height: int, width: int, share: float, name: str) -> None:
    """As torchvision tests its weights: the shorter side to size / share, then the middle.

    Of a smooth image, as the box that is cut out first begins between pixels."""
    ramp = np.linspace(20, 200, height)[:, None, None] + np.linspace(0, 50, width)[None, :, None]
    image = np.repeat(ramp, 3, axis=2).astype(np.uint8)
    found = decode_image(image, spec(16, 16, filter=name, crop_share=share))
    scale = 16 / share / min(height, width)
    sides = (max(16, round(width * scale)), max(16, round(height * scale)))
    resized = Image.fromarray(image).resize(sides, Image.Resampling[name.upper()])
    left, top = (resized.width - 16) / 2, (resized.height - 16) / 2
    expected = np.asarray(resized.crop((round(left), round(top), round(left) + 16, round(top) + 16)), int)
    steepest = 180 / (sides[1] - 1) + 50 / (sides[0] - 1)
    assert np.abs(found - expected).max() <= 2 + 1.5 * steepest


def test_a_whole_crop_share_is_none() -> None:
    image = pixels(9, 9)
    np.testing.assert_array_equal(decode_image(image, spec(9, 9)), image)
    assert decode_image(pixels(9, 9, None), spec(9, 9, crop_share=0.5)).shape == (9, 9, 3)
    assert not np.array_equal(decode_image(image, spec(9, 9, crop_share=0.5)), image)
