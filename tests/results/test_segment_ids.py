"""Panoptic PNGs: ids are read as written, and damaged or unsuitable files are refused."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from local2global.errors import UserError
from local2global.results.segment_ids import read_ids, write_ids


def ids_of(colours):
    plain = colours.astype(np.int64)
    return plain[..., 0] + 256 * plain[..., 1] + 65536 * plain[..., 2]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.fixture
def png(tmp_path):
    """The path and the colours of a valid map."""
    colours = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "map.png")
    return tmp_path / "map.png", colours


def test_ids_are_read_as_they_were_written(tmp_path):
    ids = np.array([[0, 255, 256], [65536, 0xABCDEF, (1 << 24) - 1]], np.uint32)
    write_ids(ids, tmp_path / "map.png")
    assert np.array_equal(read_ids(tmp_path / "map.png"), ids)
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


@pytest.mark.parametrize("channels", [3, 4])
def test_rgb_and_rgba_are_read(tmp_path, channels):
    colours = np.random.default_rng(channels).integers(0, 256, (40, 17, channels)).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "map.png")
    assert np.array_equal(read_ids(tmp_path / "map.png"), ids_of(colours))


def refused(path, colours):
    """Whether a damaged file is refused; a file whose end mark alone is damaged may be read, with all ids right."""
    try:
        ids = read_ids(path)
    except UserError:
        return True
    assert np.array_equal(ids, ids_of(colours))
    return False


def test_a_truncated_file_is_never_read_as_another_map(png):
    path, colours = png
    data = path.read_bytes()
    count = 0
    for length in range(len(data)):
        path.write_bytes(data[:length])
        count += refused(path, colours)
    assert count >= len(data) - 12  # the end mark has 12 bytes


def test_a_changed_byte_is_never_read_as_another_map(png):
    path, colours = png
    data = path.read_bytes()
    count = 0
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        count += refused(path, colours)
    assert count >= len(data) - 12


def test_sixteen_bits_per_channel_are_refused(png):
    """Pillow would read them with 8 bits."""
    path, colours = png
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours.astype(np.uint16) * 257)
    header = struct.pack(">IIBBBBB", colours.shape[1], colours.shape[0], 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(UserError, match=r"map\.png: a panoptic PNG holds ids as RGB of 8 bits, .* 16-bit"):
        read_ids(path)


@pytest.mark.parametrize("mode", ["P", "L", "I;16", "1"])
def test_images_without_three_channels_are_refused(png, mode):
    path, _ = png
    Image.new(mode, (7, 9)).save(path)
    with pytest.raises(UserError, match=r"map\.png: a panoptic PNG holds ids as RGB"):
        read_ids(path)


def test_a_bmp_is_refused_and_not_taken_for_a_16_bit_image(tmp_path):
    """A row of a BMP of 53 pixels has 160 bytes, which Pillow lists in its tile."""
    Image.new("RGB", (53, 5)).save(tmp_path / "map.png", format="BMP")
    with pytest.raises(UserError, match=r"map\.png: .* this image is a BMP"):
        read_ids(tmp_path / "map.png")


def test_a_missing_map_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png: no such panoptic PNG"):
        read_ids(tmp_path / "gone.png")
