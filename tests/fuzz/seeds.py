"""Small valid inputs of every kind, which the strategies mutate."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

import miniatures

CATEGORIES = [{"id": 1, "name": "a", "isthing": 1}, {"id": 7, "name": "b", "isthing": 0}]


def write_static(folder: Path) -> None:
    """The unchanged data that targets read beside an input."""
    vis = [{"id": c["id"], "name": c["name"]} for c in CATEGORIES]
    miniatures.write_videos(folder / "ytvis" / "images", folder / "ytvis" / "truth.json", vis)
    miniatures.write_images(folder / "coco" / "images", folder / "coco" / "truth.json", vis, [1, 7])
    miniatures.write_panoptic(folder / "vipseg", "val", CATEGORIES)
    miniatures.write_json(folder / "results.json", tracks(folder))


def tracks(folder: Path) -> list[dict[str, Any]]:
    """Results: the true tracks as compressed RLE, with scores."""
    from local2global.data.readers.rle import encode_mask
    from local2global.data.readers.youtube_vis import load_youtube_vis

    dataset = load_youtube_vis(folder / "ytvis" / "images", folder / "ytvis" / "truth.json")
    return [
        {
            "video_id": video.id,
            "category_id": dataset.classes[int(video.labels[0])]["id"],
            "score": 0.5,
            "segmentations": [encode_mask(video.masks(t)[0]) for t in range(video.length)],
        }
        for video in dataset.videos
    ]


def zipped(name: str, data: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file of one entry."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as bundle:
        bundle.writestr(zipfile.ZipInfo(name), data, method)  # ZipInfo has a fixed date
    return buffer.getvalue()


def maps(folder: Path) -> bytes:
    """An .npz of predicted panoptic maps."""
    arrays = {}
    for place in sorted((folder / "vipseg" / "panomasksRGB").iterdir()):
        frames = [np.asarray(Image.open(path)).astype(np.int32) for path in sorted(place.iterdir())]
        arrays[f"pred/{place.name}"] = np.stack([f @ [1, 256, 65536] for f in frames]).astype(np.int32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def images() -> dict[str, bytes]:
    """Images of every format and depth by file name."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65535, (12, 16), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {
        "a.png": (colour, {}),
        "b.png": (deep, {}),
        "c.png": (colour.convert("P"), {"transparency": 1}),
        "d.png": (colour.convert("RGBA"), {"exif": exif}),
        "e.jpg": (colour, {"exif": exif}),
        "f.jpg": (colour.convert("CMYK"), {"progressive": True}),
        "g.webp": (colour, {}),
        "h.bmp": (colour, {}),
        "i.tif": (colour, {"compression": "tiff_lzw"}),
        "j.tif": (deep, {}),
        "k.tif": (Image.fromarray(rng.random((12, 16), dtype=np.float32)), {}),
        "l.png": (colour.convert("1"), {}),
    }
    files = {}
    for name, (picture, options) in made.items():
        buffer = io.BytesIO()
        picture.save(buffer, format={"jpg": "JPEG", "tif": "TIFF"}.get(name[2:], name[2:].upper()), **options)
        files[name] = buffer.getvalue()
    return files


def panoptic_png() -> bytes:
    """The map of `miniatures.write_panoptic`."""
    ids = np.full(miniatures.SIZE, 70000)
    ids[:4] = 0
    ids[6:16, 8:20] = 300
    buffer = io.BytesIO()
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def videos() -> dict[str, bytes]:
    """Six frames in several containers and codecs, by file name."""
    made = {
        "a.mp4": "libx264",
        "b.mkv": "mpeg4",
        "c.avi": "mjpeg",
        "d.webm": "libvpx",
        "e.mov": "libx264",
        "f.ts": "mpeg2video",
    }
    files = {}
    for name, codec in made.items():
        buffer = io.BytesIO()
        kind = {"mkv": "matroska", "ts": "mpegts"}.get(name[2:], name[2:])
        # bitexact: without random identifiers
        with av.open(buffer, "w", format=kind, options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height = 48, 32
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for t in range(6):
                pixels = np.full((32, 48, 3), 30 * t, dtype=np.uint8)
                pixels[8:24, 4 * t : 4 * t + 16] = (200, 60, 10)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        files[name] = buffer.getvalue()
    return files


def state() -> dict[str, torch.Tensor]:
    """The weights of the small model in `targets.py`."""
    shapes = {"first.weight": (3, 4), "first.bias": (3,), "second.weight": (2, 3), "second.bias": (2,)}
    return OrderedDict((name, torch.full(shape, 0.5)) for name, shape in shapes.items())


def saved(content: Any, **options: Any) -> bytes:
    """The bytes of `torch.save`."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def checkpoints() -> dict[str, bytes]:
    """The same weights in every form, by file name."""
    from safetensors.torch import save

    content = {
        "model": state(),
        "iteration": 3,
        "classes": [{"id": 1, "name": "a"}],
        "random": [{"x": (1, 2)}],
    }
    arrays = {"model": {name: value.numpy() for name, value in state().items()}, "__author__": "x"}
    return {
        "a.pth": saved(content),
        "b.pt": saved(content, _use_new_zipfile_serialization=False),
        "c.pkl": pickle.dumps(arrays, 2),
        "d.pkl": pickle.dumps(arrays, 4),
        "e.pkl": pickle.dumps({"model": dict(state())}, 2),
        "f.safetensors": save(dict(state())),
        "g.pth": saved(state()),
    }


def record(folder: Path) -> dict[str, bytes]:
    """`frames.jsonl` and `stream.json` of three frames."""
    from pycocotools import mask as coco_mask

    masks = coco_mask.encode(np.asfortranarray(np.eye(32, 48, dtype=np.uint8)))
    objects = [
        {
            "id": i,
            "category_id": 5,
            "score": 0.5,
            "bbox": [0.0, 0.0, 32.0, 32.0],
            "segmentation": {"size": [32, 48], "counts": masks["counts"].decode()},
        }
        for i in range(2)
    ]
    lines = [{"index": t, "time": t / 10, "objects": objects[: 2 - t % 2]} for t in range(3)]
    video = {"name": "v", "width": 48, "height": 32, "fps": 10.0, "file_names": None}
    return {
        "frames.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode(),
        "stream.json": json.dumps({"video": video, "categories": [{"id": 5, "name": "person"}]}).encode(),
    }
