"""The readers under test.  A target takes the folder of one input, and reads it to the end."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from local2global.app import cli
from local2global.app.predict import L2G
from local2global.app.result_folder import finish
from local2global.app.video import open_source
from local2global.config.saved import load_yaml_config
from local2global.data.check import check_dataset
from local2global.data.readers.coco import load_coco
from local2global.data.readers.entries import MAX_SIDE, read_json
from local2global.data.readers.images import PILLOW_ERRORS, read_image, upright_size
from local2global.data.readers.rle import count_pixels, decode_outlines, parse_outline
from local2global.data.readers.vipseg import load_panoptic
from local2global.data.readers.youtube_vis import load_youtube_vis
from local2global.engine.settings import build, require, train_settings
from local2global.errors import UserError
from local2global.evaluation.masks import parse_track
from local2global.evaluation.oddities import Oddities
from local2global.evaluation.panoptic_files import score_files as score_panoptic
from local2global.evaluation.submission import write_bundle
from local2global.evaluation.ytvis import report
from local2global.evaluation.ytvis import score_files as score_tracks
from local2global.lazy import apply_overrides, load_config
from local2global.limits import MAX_PIXELS
from local2global.weights.checkpoint import load_checkpoint, load_weights

Target = Callable[[Path], None]
TARGETS: dict[str, Target] = {}

#: Frames above this size are not decoded: masks of annotations are as large as the annotations say.
DECODED = 1 << 22
#: Frames read from one video.
FRAMES = 60

_state: dict[str, Any] = {}


def prepare(scratch: Path) -> None:
    """Load what all inputs share."""
    torch.set_num_threads(1)
    root = Path(__file__).resolve().parents[2]
    _state.update(scratch=scratch, static=scratch / "static", out=scratch / "out")
    _state["config"] = load_config(root / "configs/demo/l2g_tiny.py")


def static(*parts: str) -> Path:
    """A file of the unchanged data."""
    path: Path = _state["static"].joinpath(*parts)
    return path


def target(function: Target) -> Target:
    """Register a target under its name."""
    TARGETS[function.__name__] = function
    return function


def read_masks(videos: Any) -> None:
    """Read ids, labels and all masks of a dataset."""
    for video in videos.videos:
        assert len(video.ids) == len(video.labels)
        height, width = video.size
        for t in range(video.length):
            present = video.present(t)
            if height * width * max(1, len(present)) <= DECODED:
                assert video.masks(t).shape == (len(present), height, width)


@target
def youtube_vis(folder: Path) -> None:
    file, images = folder / "annotations.json", static("ytvis", "images")
    assert_refused_together(file, lambda skip: load_youtube_vis(images, file, skip_invalid_annotations=skip))
    check_dataset(file, images=images)
    dataset = load_youtube_vis(images, file)
    read_masks(dataset)
    dataset.truth()


@target
def coco(folder: Path) -> None:
    file, images = folder / "annotations.json", static("coco", "images")
    assert_refused_together(file, lambda skip: load_coco(images, file, skip_invalid_annotations=skip))
    check_dataset(file, images=images)
    dataset = load_coco(images, file, keep_empty=True)
    read_masks(dataset)
    dataset.truth()


def assert_refused_together(file: Path, load: Callable[[bool], Any]) -> None:
    """A file without an invalid entry is loaded whether invalid annotations are skipped or not."""
    try:
        load(False)
    except UserError:
        return
    load(True)


@target
def vipseg(folder: Path) -> None:
    file = folder / "annotations.json"
    images, maps = static("vipseg", "images"), static("vipseg", "panomasksRGB")
    check_dataset(file, images=images, maps=maps)
    read_masks(load_panoptic(images, maps, file))


@target
def panoptic_png(folder: Path) -> None:
    """A damaged map of the truth, in scores and in training."""
    root = static("vipseg")
    truth = root / "panoptic_gt_VIPSeg_val.json"
    score_panoptic(truth, truth, folder, folder)
    read_masks(load_panoptic(root / "images", folder, truth))


@target
def panoptic_results(folder: Path) -> None:
    truth, maps = static("vipseg", "panoptic_gt_VIPSeg_val.json"), static("vipseg", "panomasksRGB")
    given = folder / "maps.npz"
    score_panoptic(truth, folder / "pred.json", maps, given if given.exists() else maps)


@target
def tracks_truth(folder: Path) -> None:
    report(score_tracks(folder / "truth.json", static("results.json"), ovis=False))


@target
def tracks_results(folder: Path) -> None:
    (results,) = folder.iterdir()
    truth = static("ytvis", "truth.json")
    report(score_tracks(truth, results, oddities=Oddities()))
    if results.suffix == ".json":
        write_bundle(json.loads(truth.read_text()), results, _state["out"] / "bundle.zip")


def expand(runs: list[int], size: tuple[int, int]) -> np.ndarray:
    """An (H, W) mask of run lengths, by definition: the independent reference."""
    values = itertools.chain.from_iterable([n % 2] * length for n, length in enumerate(runs))
    return np.array(list(values), dtype=bool).reshape(size[::-1]).T


def decode_runs(text: str) -> list[int]:
    """Run lengths of a compressed RLE, by definition: the independent reference."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (digit & 16) << shift - 4
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


@target
def rle(folder: Path) -> None:
    """Masks of training and of scores equal the reference decoder."""
    content = read_json(folder / "mask.json")
    segmentation, size = content["segmentation"], tuple(content["size"])
    for read in (_train_mask, _scored_mask):
        try:
            read(segmentation, size)
        except UserError as error:
            message = str(error)
            continue
        message = ""
    if message:
        raise UserError(message)


def _train_mask(segmentation: Any, size: tuple[int, int]) -> None:
    if max(size) > MAX_SIDE or size[0] * size[1] > MAX_PIXELS:
        return
    try:
        outline = parse_outline(segmentation, size)
    except ValueError as error:
        raise UserError(f"mask: {error}") from error
    if size[0] * size[1] > DECODED:
        return
    decoded = decode_outlines([outline], size)[0].numpy()
    if isinstance(outline, str):
        assert np.array_equal(decoded, expand(decode_runs(outline), size)), "wrong pixels"
        assert count_pixels([outline], size) == [decoded.sum()], "wrong area"


def _scored_mask(segmentation: Any, size: tuple[int, int]) -> None:
    masks = parse_track([segmentation], lambda frame: f"frame {frame}", size)
    if masks.rles[0] is not None and masks.sizes[0].prod() <= DECODED:
        counts = masks.rles[0]["counts"]
        text = counts.decode() if isinstance(counts, bytes) else counts
        assert masks.areas[0] == sum(decode_runs(text)[1::2]), "wrong area"


@target
def yaml_config(folder: Path) -> None:
    """A config for training: `l2g train config.yaml`."""
    cfg = load_yaml_config(folder / "config.yaml")
    require(cfg, "model", "train")
    train_settings(cfg)


@target
def weights_config(folder: Path) -> None:
    """A stranger's config.yaml beside weights: `l2g predict --weights FOLDER`."""
    L2G.from_pretrained(folder / "weights.pth", "cpu")


def command(*arguments: str) -> None:
    """Run `l2g` in this process; an error of one line is raised as a UserError."""
    os.chdir(_state["out"])  # a yaml config may write below the working directory
    errors = io.StringIO()
    with patch.object(sys, "argv", ["l2g", *arguments]), contextlib.redirect_stderr(errors):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
    last = [line for line in errors.getvalue().splitlines() if line.startswith("l2g: ")]
    if code == 1 and len(last) == 1:
        raise UserError(last[0].removeprefix("l2g: "))
    assert code == 0, errors.getvalue()[-400:]


@target
def eval_config(folder: Path) -> None:
    """A run's config.yaml as the config: `l2g eval config.yaml --weights weights.pth`."""
    options = ["--weights", str(static("weights.pth")), "train.device=cpu"]
    command("eval", str(folder / "config.yaml"), *options, f"train.output_dir={_state['out']}/eval")


@target
def overrides(folder: Path) -> None:
    texts = json.loads((folder / "overrides.json").read_text())
    cfg = apply_overrides(copy.deepcopy(_state["config"]), texts)
    require(cfg, "model", "train")
    train_settings(cfg)
    build(cfg, "model")


class _Small(nn.Module):
    """A model with the parameters of the checkpoints in `seeds.py`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)
        self.classes = [{"id": 1, "name": "a"}]


@target
def checkpoint(folder: Path) -> None:
    (path,) = folder.iterdir()
    load_weights(_Small(), load_checkpoint(path), source=str(path))


@target
def image(folder: Path) -> None:
    """One image for training, and for `l2g predict`."""
    (path,) = folder.iterdir()
    messages = []
    for read in (lambda: read_image(path), lambda: read_image(path, 2), lambda: list(open_source(path))):
        try:
            read()
        except UserError as error:
            messages.append(str(error))
    with suppress(*PILLOW_ERRORS):  # those that the checker reports
        upright_size(path, decode=True)
    if messages:
        raise UserError(messages[0])


@target
def video(folder: Path) -> None:
    (path,) = folder.iterdir()
    source = open_source(path)
    for frame in itertools.islice(source, FRAMES):
        assert tuple(frame.shape) == (3, *source.size)


@target
def record(folder: Path) -> None:
    """A record of `l2g predict`, finished after a kill."""
    out = _state["out"] / "stream"
    out.mkdir(exist_ok=True)
    for name in ("frames.jsonl", "stream.json"):
        (out / name).write_bytes((folder / name).read_bytes())
    finish(out)
