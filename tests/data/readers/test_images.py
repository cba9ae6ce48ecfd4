"""Images of more than 8 bits, and images whose EXIF data rotate them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


def test_32_bit_integers_beyond_16_bits_are_refused(tmp_path):
    path = save(tmp_path / "deep.tif", np.array([[0, 70000]], dtype=np.int32))
    with pytest.raises(UserError, match="values from 0 to 70000, expected 0 to 65535"):
        read_image(path)


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
