"""Images of other depths, of several frames, and rotated by their EXIF data."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from local2global.app.video import open_source
from local2global.data.check.images import ExpectedImage, inspect
from local2global.data.readers.images import read_image, read_sized
from local2global.errors import UserError


def save(path: Path, values: np.ndarray, **options: object) -> Path:
    Image.fromarray(values).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_values_are_divided_by_256(tmp_path, suffix):
    values = np.array([[0, 255, 256], [4095, 32768, 65535]], dtype=np.uint16)
    image = read_image(save(tmp_path / f"deep.{suffix}", values))
    assert image.tolist() == [[[0, 0, 1], [15, 128, 255]]] * 3


def test_floating_point_values_of_0_to_1_are_scaled(tmp_path):
    image = read_image(save(tmp_path / "float.tif", np.array([[0, 0.25, 1]], dtype=np.float32)))
    assert image.tolist() == [[[0, 64, 255]]] * 3


@pytest.mark.parametrize("value", [-0.1, 1.1, 200, float("nan"), float("inf")])
def test_other_floating_point_values_are_refused(tmp_path, value):
    path = save(tmp_path / "float.tif", np.array([[0, value]], dtype=np.float32))
    with pytest.raises(UserError, match=r"float\.tif: not a readable image \(values from"):
        read_image(path)
    assert inspect(ExpectedImage(path, (1, 2), ""), decode=True).kind == "corrupt-image"


def assert_refused(path: Path, problem: str) -> None:
    """`l2g predict`, training and `l2g data check` refuse an image with the same words."""
    with pytest.raises(UserError, match=problem):
        read_image(path)
    with pytest.raises(UserError, match=problem):
        list(open_source(path))
    assert problem in inspect(ExpectedImage(path, None, ""), decode=True).problem


def test_tiffs_whose_white_is_unknown_are_refused(tmp_path):
    signed = save(tmp_path / "signed.tif", np.array([[0, 7]], dtype=np.int32))
    assert_refused(signed, "a TIFF of signed 32-bit integers")
    negative = save(tmp_path / "negative.tif", np.zeros((2, 2), np.uint16), tiffinfo={262: 0})
    assert_refused(negative, "a 16-bit TIFF in which 0 is white")


def test_only_formats_of_pictures_are_opened(tmp_path):
    """Pillow would start Ghostscript for a page of PostScript."""
    path = tmp_path / "page.png"
    Image.new("RGB", (4, 4)).save(path, format="EPS")
    with pytest.raises(UserError, match="cannot identify image file"):
        read_image(path)
    with pytest.raises(UserError, match=r"page\.png: not an image"):
        open_source(path)


@pytest.mark.parametrize("suffix", ["png", "webp", "gif", "tif"])
def test_an_image_of_several_frames_is_no_frame_of_a_dataset(tmp_path, suffix):
    frames = [Image.new("RGB", (6, 4), (shade, 0, 0)) for shade in (0, 99, 200)]
    path = tmp_path / f"several.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="3 frames in one file, expected a still image"):
        read_image(path)
    assert "3 frames" in inspect(ExpectedImage(path, None, ""), decode=False).problem
    assert len(list(open_source(path))) == 3


def test_a_thumbnail_before_the_picture_is_skipped(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    content = BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(content, True) as pages:
        for page, kind in ((picture[::4, ::4], 1), (picture, 0)):
            tags = TiffImagePlugin.ImageFileDirectory_v2()
            tags[254] = kind  # 1 is a reduced copy
            Image.fromarray(np.ascontiguousarray(page)).save(pages, format="TIFF", tiffinfo=tags)
            pages.newFrame()
    path = tmp_path / "camera.tif"
    path.write_bytes(content.getvalue())
    assert_read_everywhere(path, picture)


def assert_read_everywhere(path: Path, pixels: np.ndarray) -> None:
    """`l2g predict` and training read these pixels, and `l2g data check` their size."""
    assert (read_image(path).permute(1, 2, 0).numpy() == pixels).all()
    (frame,) = open_source(path)
    assert (frame.permute(1, 2, 0).numpy() == pixels).all()
    assert inspect(ExpectedImage(path, pixels.shape[:2], ""), decode=False) is None


def chunks(png: bytes) -> list[bytes]:
    """The chunks of a PNG file."""
    found, place = [], 8
    while place < len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        found.append(png[place:end])
        place = end
    return found


@pytest.mark.parametrize("form", ["first", "late", "xmp"])
def test_orientation_is_found_wherever_a_png_stores_it(tmp_path, form):
    """Some programs append the EXIF data after the pixels, others write XMP."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif, text, path = Image.Exif(), PngImagePlugin.PngInfo(), tmp_path / "side.png"
    exif[0x0112] = 6
    text.add_itxt("XML:com.adobe.xmp", '<rdf tiff:Orientation="6"/>')
    save(path, pixels, **({"pnginfo": text} if form == "xmp" else {"exif": exif}))
    if form == "late":
        parts = chunks(path.read_bytes())
        last = [part for part in parts if part[4:8] == b"eXIf"]
        others = [part for part in parts if part[4:8] != b"eXIf"]
        path.write_bytes(path.read_bytes()[:8] + b"".join([*others[:-1], *last, others[-1]]))
    assert_read_everywhere(path, np.rot90(pixels, -1))


def test_colour_images_are_unchanged(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert (read_image(save(tmp_path / "a.png", values)).permute(1, 2, 0).numpy() == values).all()


def test_exif_rotation_is_named_if_it_causes_a_size_mismatch(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "side.jpg", np.zeros((20, 30, 3), dtype=np.uint8), exif=exif)
    assert read_sized(path, (30, 20)).shape == (3, 30, 20)
    with pytest.raises(UserError, match="EXIF data rotate it"):
        read_sized(path, (20, 30))
    assert "EXIF data rotate it" in inspect(ExpectedImage(path, (20, 30), ""), decode=True).fix
    with pytest.raises(UserError, match=r"annotations say 9x9\.$"):
        read_sized(path, (9, 9))
