"""Ids straight from a PNG's rows: every filter, every kind of colours, every kind of damage."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from local2global.errors import UserError
from local2global.evaluation.png import read_map
from local2global.results.segment_ids import read_ids


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def filtered(colours, filters):
    """Rows of an (H, W, C) picture, each filtered as the standard says."""
    rows, above = [], np.zeros(colours[0].size, np.int64)
    for row, kind in zip(colours.reshape(len(colours), -1).astype(np.int64), filters, strict=True):
        channels = colours.shape[2]
        left, corner = (np.concatenate([np.zeros(channels, np.int64), r[:-channels]]) for r in (row, above))
        far = np.abs(left + above - corner - np.stack([left, above, corner]))
        paeth = np.choose(far.argmin(0), [left, above, corner])
        foreseen = [0 * row, left, above, (left + above) // 2, paeth][kind]
        rows.append(bytes([kind]) + ((row - foreseen) & 255).astype(np.uint8).tobytes())
        above = row
    return b"".join(rows)


def png(colours, rows, depth=8, **more):
    """A file, its pixels in two chunks."""
    height, width, channels = colours.shape
    packed = zlib.compress(rows)
    header = struct.pack(">IIBBBBB", width, height, depth, {3: 2, 4: 6}[channels], 0, 0, 0)
    halves = packed[: len(packed) // 2], packed[len(packed) // 2 :]
    parts = [chunk(b"IHDR", header), chunk(b"tEXt", b"a\0b"), *(chunk(b"IDAT", half) for half in halves)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def ids_of(colours):
    plain = colours.astype(np.int64)
    return plain[..., 0] + 256 * plain[..., 1] + 65536 * plain[..., 2]


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("values", [2, 256])
def test_every_filter_is_undone(tmp_path, channels, values):
    """Pillow, which reads the same files, is the judge of the files too."""
    draw = np.random.default_rng(values + channels)
    colours = (draw.integers(0, values, (40, 17, channels)) * 255 // (values - 1)).astype(np.uint8)
    path = tmp_path / "map.png"
    path.write_bytes(png(colours, filtered(colours, draw.permutation(np.arange(40) % 5))))
    assert np.array_equal(read_map(path), ids_of(colours))
    assert np.array_equal(read_ids(path), ids_of(colours))


@pytest.fixture
def whole(tmp_path):
    """A sound map's path and colours."""
    colours = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "map.png")
    return tmp_path / "map.png", colours


def test_a_file_cut_anywhere_is_refused(whole):
    path, _ = whole
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"map\.png: not a readable image"):
            read_map(path)


def test_a_byte_that_changes_is_never_another_map(whole):
    path, _ = whole
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(UserError, match=r"map\.png: (not a readable image|a panoptic PNG)"):
            read_map(path)


@pytest.mark.parametrize(
    "change", [lambda rows: rows[:-1], lambda rows: rows + b"\0", lambda rows: b"\7" + rows[1:]]
)
def test_rows_that_are_not_those_of_the_picture_are_refused(whole, change):
    path, colours = whole
    path.write_bytes(png(colours, change(filtered(colours, [0] * len(colours)))))
    with pytest.raises(UserError, match="not a readable image"):
        read_map(path)


def test_sixteen_bits_are_refused_and_not_halved(whole):
    path, colours = whole
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours.astype(np.uint16) * 257)
    path.write_bytes(png(colours, rows, depth=16))
    with pytest.raises(UserError, match=r"map\.png: a panoptic PNG holds ids as RGB of 8 bits, .* 16-bit"):
        read_map(path)


@pytest.mark.parametrize("mode", ["P", "L", "I;16", "1"])
def test_pictures_without_three_colours_are_refused(whole, mode):
    path, _ = whole
    Image.new(mode, (7, 9)).save(path)
    with pytest.raises(UserError, match=r"map\.png: a panoptic PNG holds ids as RGB"):
        read_map(path)


def test_sixteen_elsewhere_is_no_depth_of_colours(tmp_path):
    """A row of a BMP of 53 pixels has 160 bytes, of which Pillow tells."""
    colours = np.arange(53 * 5 * 3, dtype=np.uint8).reshape(5, 53, 3)
    Image.fromarray(colours).save(tmp_path / "map.png", format="BMP")
    assert np.array_equal(read_map(tmp_path / "map.png"), ids_of(colours))


def test_a_missing_map_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png: no such panoptic PNG"):
        read_map(tmp_path / "gone.png")
