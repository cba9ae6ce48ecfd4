"""Small files that would unpack to gigabytes are refused in one line within seconds, in little memory.

The worker's memory is limited, so that an input that unpacks ends in a MemoryError or a crash.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))

import seeds
from watched import Worker

SECONDS = 10.0


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("bombs")
    seeds.write_static(scratch / "static")
    process = Worker(scratch, limit=SECONDS)
    yield process
    process.close()


def deflated(byte: bytes, count: int, wrap: int = -15) -> bytes:
    """A deflate stream of `count` equal bytes, made by repeating the stream of one block."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wrap)
    head = packer.flush(zlib.Z_FULL_FLUSH)
    block = 1 << 20
    repeated = packer.compress(byte * block) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(byte * (count % block)) + packer.flush()
    return head + repeated * (count // block) + rest


def png(width: int, height: int) -> bytes:
    """A black PNG, compressed a thousandfold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = deflated(b"\0", height * (1 + (width + 7) // 8), 15)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zipped(files: dict[str, tuple[bytes, int]]) -> bytes:
    """A zip file of deflate streams and their unpacked sizes; the checksums are wrong."""
    body, directory = b"", b""
    for name, (data, size) in files.items():
        common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(data), size, len(name), 0)
        directory += b"PK\1\2" + struct.pack("<H", 20) + common
        directory += struct.pack("<HHHII", 0, 0, 0, 0, len(body)) + name.encode()
        body += b"PK\3\4" + common + name.encode() + data
    end = struct.pack("<HHHHIIH", 0, 0, len(files), len(files), len(directory), len(body), 0)
    return body + directory + b"PK\5\6" + end


def zeros(name: str, size: int) -> bytes:
    """A zip file of one entry of zeros."""
    return zipped({name: (deflated(b"\0", size), size)})


def tiff(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "TIFF", compression="tiff_deflate")
    return buffer.getvalue()


def npz(shape: tuple[int, ...]) -> bytes:
    """An .npz whose header states a shape, and no data."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<i4", "fortran_order": False, "shape": shape})
    return seeds.zipped("pred/1_val.npy", head.getvalue())


def large_frame(width: int, height: int) -> bytes:
    """A video whose header states a small size, with one large black frame."""
    picture = io.BytesIO()
    Image.new("L", (width, height)).save(picture, "JPEG", quality=1)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
        stream.codec_context.open()
        packet = av.Packet(picture.getvalue())
        packet.stream, packet.pts, packet.dts = stream, 0, 0
        container.mux(packet)
    return buffer.getvalue()


def checkpoint(name: str, data: bytes, size: int) -> bytes:
    """A checkpoint with compressed entries, one of them replaced by a deflate stream of `size` bytes."""
    files = {}
    with zipfile.ZipFile(io.BytesIO(seeds.saved(seeds.state()))) as plain:
        for entry in plain.namelist():
            content = plain.read(entry)
            packer = zlib.compressobj(wbits=-15)
            files[entry] = packer.compress(content) + packer.flush(), len(content)
            if entry.endswith(name):
                files[entry] = data, size
    return zipped(files)


def with_pickle(data: bytes) -> bytes:
    """A checkpoint with another pickle."""
    packer = zlib.compressobj(wbits=-15)
    return checkpoint("data.pkl", packer.compress(data) + packer.flush(), len(data))


def many_values(count: int) -> bytes:
    """A pickle of a list of `count` Nones, in `count` steps."""
    return b"\x80\x02](" + b"N" * count + b"e."


def shared(depth: int) -> list[object]:
    """A list of 2^depth values in memory for `depth`: every level refers to the next one twice."""
    value: list[object] = []
    for _ in range(depth):
        value = [value, value]
    return value


def nested(depth: int) -> bytes:
    """A pickle of lists inside lists."""
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def legacy(numel: int) -> bytes:
    """A checkpoint of before torch 1.6 whose storage states `numel` numbers."""
    plain = seeds.saved({"model": {"x": torch.zeros(7)}}, _use_new_zipfile_serialization=False)
    assert b"K\x07" in plain
    return plain.replace(b"K\x07", b"J" + struct.pack("<i", numel))


def aliases(levels: int) -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return ("\n".join(lines) + "\nmodel: *a1\n").encode()


BOMBS = {
    "png, 2 gigapixels": ("image", lambda: {"a.png": png(50_000, 40_000)}),
    "png, 170 megapixels": ("image", lambda: {"a.png": png(17_000, 10_000)}),
    "tiff, 400 megapixels": ("image", lambda: {"a.tif": tiff(20_000, 20_000)}),
    "video, 260 megapixels": ("video", lambda: {"a.mkv": large_frame(16_000, 16_000)}),
    "results zip, 3 GB": ("tracks_results", lambda: {"r.zip": zeros("results.json", 3 << 30)}),
    "npz, 3 GB of zeros": ("panoptic_results", lambda: {"maps.npz": zeros("pred/1_val.npy", 3 << 30)}),
    "npz, header of 4 TB": ("panoptic_results", lambda: {"maps.npz": npz((1000, 32768, 32768))}),
    "pickle, 30 million values": ("checkpoint", lambda: {"a.pkl": many_values(30_000_000)}),
    "checkpoint, 300 million values": (
        "checkpoint", lambda: {"a.pth": checkpoint("data.pkl", deflated(b"N", 300_000_000), 300_000_000)}
    ),
    "checkpoint, storage of 2 GB": (
        "checkpoint", lambda: {"a.pth": checkpoint("data/0", deflated(b"\0", 2 << 30), 2 << 30)}
    ),
    "checkpoint of before 1.6, 2 billion numbers": ("checkpoint", lambda: {"a.pth": legacy(2_000_000_000)}),
    "pickle, shared lists": ("checkpoint", lambda: {"a.pkl": pickle.dumps({"x": shared(60)}, 2)}),
    "checkpoint, shared lists": ("checkpoint", lambda: {"a.pth": seeds.saved({"x": shared(60)})}),
    "pickle, nested lists": ("checkpoint", lambda: {"a.pkl": nested(1_000_000)}),
    "checkpoint, nested lists": ("checkpoint", lambda: {"a.pth": with_pickle(nested(100_000))}),
    "checkpoint, a call that takes 2 GB": (
        "checkpoint", lambda: {"a.pth": with_pickle(b"\x80\2cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.")}
    ),
    "json, nested lists": ("youtube_vis", lambda: {"annotations.json": b"[" * 2_000_000}),
    "yaml, aliases": ("yaml_config", lambda: {"config.yaml": aliases(12)}),
    "yaml, nested lists": ("yaml_config", lambda: {"config.yaml": b"model: " + b"[" * 100_000}),
    "yaml, 100 MB": ("yaml_config", lambda: {"config.yaml": b"a: " + b"x" * 100_000_000}),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_within_seconds(name, worker):
    target, make = BOMBS[name]
    files = make()
    if target == "panoptic_results":
        files["pred.json"] = worker.scratch / "static/vipseg/panoptic_gt_VIPSeg_val.json"
    outcome = worker.run(target, files)
    assert outcome.kind == "refused", outcome
    assert not outcome.outside


def test_a_large_sound_checkpoint_is_loaded(worker):
    """300 million weights, 1.2 GB on disk, are no bomb; here 30 million."""
    content = {"model": seeds.state(), "optimizer": {"x": torch.zeros(30_000_000)}}
    assert worker.run("checkpoint", {"a.pth": seeds.saved(content)}).kind == "read"
