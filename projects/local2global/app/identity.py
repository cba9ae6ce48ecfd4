"""`l2g identity`: how well runs keep identities, between reference points of the same segmenter.

The references need no video training: *single frames* does not link frames at all and bounds the coverage, *untrained
propagation* passes the queries on, *similarity linking*, *IoU linking* and the *image tracker* link the predictions of
single frames, and the *oracle* links them by ground truth.  Every tracker sees each video as a whole, and in pieces of
a few frames, which need no long-term memory.  The rows of an ablation are compared seed by seed.
"""

from __future__ import annotations

import copy
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from ..boxes import mask_iou
from ..data.augment import resize_shortest_edge
from ..data.datasets import VideoDataset, VideoRecord
from ..data.excerpts import Excerpt, excerpts
from ..engine.settings import build
from ..errors import UserError
from ..evaluation.files import read_json
from ..evaluation.identity import IdentityMeter
from ..evaluation.linking import IoULinker, oracle_rows
from ..evaluation.precision import AREAS
from ..evaluation.ytvis import Scores, score, tracks_of
from ..lazy import LazyCall, load_resolved
from ..modeling.model import Local2Global
from ..modeling.tracker import Tracker
from ..modeling.variants import ImageTracker, RememberingTracker, RestartingTracker
from ..results.instances import VideoPostprocessor
from ..results.masks import decode_masks
from ..structures import FrameFeatures, FramePredictions, Queries
from ..weights.checkpoint import find_config, load_checkpoint, load_weights
from ..weights.find import find_weights
from .ablate import Results, summarise
from .output import markdown_table
from .tables import read_rows

#: A score with its 95 % interval over videos: (value, low, high).
Value = tuple[float, float, float]
Table = dict[str, dict[str, Value]]

#: Frames of a video to predictions, one a frame; the second argument is the video.
Stream = Callable[[Sequence[FrameFeatures], VideoRecord], Iterator[FramePredictions]]

#: Trackers of --memory by the ending of the row's name.
MEMORIES = {"memory": RememberingTracker, "restart": RestartingTracker}

LINKED_SLOTS = 100
RESAMPLES = 200


@dataclass
class Arm:
    """One way to track, and what has been measured of it.

    Attributes:
        stream: the tracker.
        model: the model whose backbone and encoder it uses.
        counts: identity counts of each video, see `_count`.
        whole: tracks of whole videos, in the form of result files.
        pieces: tracks of pieces.
    """

    stream: Stream
    model: Local2Global
    counts: list[dict[str, float]] = field(default_factory=list)
    whole: list[dict[str, Any]] = field(default_factory=list)
    pieces: list[dict[str, Any]] = field(default_factory=list)


def identity(
    cfg: DictConfig,
    weights: Path,
    runs: Sequence[Path],
    videos: int,
    length: int,
    console: Console,
    memory: bool = False,
) -> Table:
    """Measures the reference points of a segmenter, and runs.

    Args:
        cfg: config of the method; its test videos and its model are used.
        weights: weights of the segmenter, trained on single frames.
        runs: folders of runs or of ablations, or weights.
        videos: the number of test videos, from the first.
        length: frames of a piece.
        console: where progress is shown.
        memory: also measure untrained propagation and every run with the trackers of `MEMORIES`.

    Returns:
        The scores by name of each tracker.
    """
    dataset: VideoDataset = build(cfg, "dataloader.test.dataset")
    dataset = replace(dataset, videos=list(dataset.videos[:videos]))
    if not len(dataset):
        raise UserError("no test videos: give --videos a positive number, and the config a test set")
    cut = excerpts(dataset, length)
    arms = references(cfg, find_weights(weights), memory)
    for name, run in named_runs(runs).items():
        run_cfg = load_resolved(find_config(run))
        model = _load(run_cfg, run, strict=True)
        arms[name] = Arm(_propagate(model), model)
        if memory and isinstance(model.tracker, Tracker):
            arms |= _remembering(name, run_cfg, run, strict=True)
    with torch.no_grad():
        for video in track(dataset.videos, description="identity", console=console):
            pieces = [piece for piece in cut.videos if isinstance(piece, Excerpt) and piece.whole is video]
            _follow(arms.values(), video, pieces, [entry["id"] for entry in dataset.classes])
    ids = [video.id for video in dataset.videos]
    of_video = {
        v.id: [p.id for p in cut.videos if isinstance(p, Excerpt) and p.whole is v] for v in dataset.videos
    }
    truths = dataset.truth(), cut.truth()
    return {name: _summarise(arm, *truths, ids, of_video) for name, arm in arms.items()}


def named_runs(paths: Sequence[Path]) -> dict[str, Path]:
    """The weights of runs by name.

    The folder of an ablation is expanded to its finished runs `row/seedN` in the order of training, reference first.

    Raises:
        UserError: if a path holds no weights, or two runs have one name.
    """
    runs: dict[str, Path] = {}
    for path in paths:
        finished = sorted(path.glob("*/seed*/model_final.pth"), key=lambda file: file.stat().st_mtime)
        found = {f"{file.parent.parent.name}/{file.parent.name}": file for file in finished}
        found = found or {str(path): find_weights(path)}
        if both := sorted(found.keys() & runs.keys()):
            raise UserError(
                f"{path}: a run named {both[0]} was given before. Compare two ablations one by one."
            )
        runs |= found
    return runs


def with_memory(name: str) -> list[str]:
    """The rows of a run that is measured with every tracker of `MEMORIES`: `row+memory/seedN` in an ablation."""
    match = _SEED.fullmatch(name)
    row, seed = (match[1], f"/seed{match[2]}") if match else (name, "")
    return [f"{row}+{memory}{seed}" for memory in MEMORIES]


def references(cfg: DictConfig, weights: Path, memory: bool = False) -> dict[str, Arm]:
    """The reference points of a segmenter; with `memory`, also untrained propagation with those of `MEMORIES`."""
    cfg = copy.deepcopy(cfg)
    cfg.model.tracker.aligner = None
    single = _load(cfg, weights)
    remembering = {}
    if memory and isinstance(single.tracker, Tracker):
        remembering = _remembering("untrained propagation", cfg, weights)
    # Both trackers of images see the same predictions of single frames.
    cfg.model.tracker = LazyCall(ImageTracker)()
    images = _load(cfg, weights)
    images.aggregate = "mean"  # as for image weights: tracks of few frames are often wrong
    cfg.model.tracker = LazyCall(ImageTracker)(
        memory=0, appearance=1.0, colours=0.0, least=0.0, threshold=0.0, duplicate=1.0, smoothing=0.0
    )
    similar = _load(cfg, weights)
    return {
        "single frames": Arm(_do_not_link(single), single),
        "untrained propagation": Arm(_propagate(single), single),
        "similarity linking": Arm(_propagate(similar), similar),
        "IoU linking": Arm(_link_by_iou(single), single),
        "image tracker": Arm(_propagate(images), images),
        "oracle linking": Arm(_link_by_truth(single), single),
        **remembering,
    }


def _remembering(name: str, cfg: DictConfig, weights: Path, strict: bool = False) -> dict[str, Arm]:
    """The same weights with every tracker of `MEMORIES`."""
    cfg, arms = copy.deepcopy(cfg), {}
    for row, tracker in zip(with_memory(name), MEMORIES.values(), strict=True):
        cfg.model.tracker._target_ = tracker
        model = _load(cfg, weights, strict)
        arms[row] = Arm(_propagate(model), model)
    return arms


def _load(cfg: DictConfig, weights: Path, strict: bool = False) -> Local2Global:
    model = build(cfg, "model")
    if not isinstance(model, Local2Global):
        raise UserError(f"l2g identity needs a Local2Global model, not {type(model).__name__}")
    load_weights(model, load_checkpoint(weights), strict=strict, source=str(weights))
    return model.eval()


def _propagate(model: Local2Global) -> Stream:
    def stream(features: Sequence[FrameFeatures], video: VideoRecord) -> Iterator[FramePredictions]:
        del video
        past: Queries | None = None
        for frame in features:
            predictions = model.step(frame, past)
            past = predictions.queries
            yield predictions

    return stream


def _do_not_link(single: Local2Global) -> Stream:
    def stream(features: Sequence[FrameFeatures], video: VideoRecord) -> Iterator[FramePredictions]:
        del video
        return (single.step(frame, None) for frame in features)

    return stream


def _link_by_truth(single: Local2Global) -> Stream:
    def stream(features: Sequence[FrameFeatures], video: VideoRecord) -> Iterator[FramePredictions]:
        for t, frame in enumerate(features):
            predictions = single.step(frame, None)
            rows = oracle_rows(video.masks(t), _masks(predictions, video))
            yield _select(predictions, F.pad(rows, (0, 1), value=-1))  # a piece may have no object

    return stream


def _link_by_iou(single: Local2Global) -> Stream:
    def stream(features: Sequence[FrameFeatures], video: VideoRecord) -> Iterator[FramePredictions]:
        linker = IoULinker(LINKED_SLOTS)
        for frame in features:
            predictions = single.step(frame, None)
            scores = predictions.logits[0].sigmoid().amax(-1)
            yield _select(predictions, linker.rows(_masks(predictions, video), scores))

    return stream


def _select(predictions: FramePredictions, rows: torch.Tensor) -> FramePredictions:
    """The predictions of one frame with row `rows[i]` in slot i; slots with row -1 are empty."""
    empty = (rows < 0)[None, :, None]
    index = rows.clamp(min=0)
    queries = predictions.queries
    return replace(
        predictions,
        logits=predictions.logits[:, index].masked_fill(empty, -20.0),
        boxes=predictions.boxes[:, index],
        masks=predictions.masks[:, index].masked_fill(empty[..., None], -1.0),
        queries=Queries(queries.embed[:, index], queries.boxes[:, index]),
    )


def _masks(predictions: FramePredictions, video: VideoRecord) -> torch.Tensor:
    """(N, H, W) bool masks at the size of the video."""
    width, height = predictions.extent[0].tolist()
    return decode_masks(predictions.masks[0], (width, height), video.size)


def _follow(
    arms: Iterable[Arm], video: VideoRecord, pieces: Sequence[Excerpt], categories: list[int]
) -> None:
    """Tracks one video, and its pieces, with every arm.  Arms with equal encoders share the features."""
    encoded: list[tuple[Local2Global, list[FrameFeatures]]] = []
    for arm in arms:
        features = next((f for model, f in encoded if _same_encoder(model, arm.model)), None)
        if features is None:
            frames = (resize_shortest_edge(video.frame(t), *arm.model.test_size) for t in range(video.length))
            features = [arm.model.encode([frame]) for frame in frames]
            encoded.append((arm.model, features))
        meter, covered = IdentityMeter(), 0
        with VideoPostprocessor(video.size, aggregate=arm.model.aggregate) as post:
            results = []
            for t, predictions in enumerate(arm.stream(features, video)):
                covered += _covered(predictions, video, t)
                results.append(post.update(predictions))
            meter.follow(results, video)
            arm.whole += tracks_of(post.result(video.id), categories)
        summary = {name: float(value or 0) for name, value in meter.summary().items()}
        arm.counts.append({**summary, "covered": covered})
        for piece in pieces:
            with VideoPostprocessor(video.size, aggregate=arm.model.aggregate) as post:
                part = features[piece.start : piece.start + piece.length]
                for predictions in arm.stream(part, piece):
                    post.update(predictions)
                arm.pieces += tracks_of(post.result(piece.id), categories)


def _same_encoder(a: Local2Global, b: Local2Global) -> bool:
    """Whether two models encode frames alike."""
    if a is b:
        return True
    first, second = (
        {n: p for n, p in m.segmenter.state_dict().items() if n.startswith(("backbone.", "encoder."))}
        for m in (a, b)
    )
    return (
        a.test_size == b.test_size
        and first.keys() == second.keys()
        and all(first[n].shape == second[n].shape and torch.equal(first[n], second[n]) for n in first)
    )


def _covered(predictions: FramePredictions, video: VideoRecord, t: int) -> int:
    """The number of visible objects that the mask of any slot covers with an IoU of at least .5, at any score."""
    return int((mask_iou(video.masks(t), _masks(predictions, video)).amax(1) >= 0.5).sum())


def _summarise(
    arm: Arm, whole: dict[str, Any], pieces: dict[str, Any], ids: list[int], of_video: dict[int, list[int]]
) -> dict[str, Value]:
    """All scores with their intervals: percentile bootstrap over videos."""
    from scipy.stats import bootstrap

    counts = {name: np.array([video[name] for video in arm.counts]) for name in arm.counts[0]}
    # Only AP over all areas is resampled.
    scored = [
        replace(score(truth, tracks), ranges=AREAS[:1])
        for truth, tracks in ((whole, arm.whole), (pieces, arm.pieces))
    ]

    def numbers(chosen: Sequence[int]) -> dict[str, float]:
        total = defaultdict(float, {name: float(values[chosen].sum()) for name, values in counts.items()})
        values = {
            "owned %": 100 * total["owned"] / max(total["appearances"], 1),
            "covered %": 100 * total["covered"] / max(total["appearances"], 1),
            "kept %": 100 * total["kept"] / max(total["occlusions"], 1),
            "owner changes / 1,000": 1000 * total["owner_changes"] / max(total["appearances"], 1),
        }
        return {
            **_precision("", scored[0], [ids[i] for i in chosen]),
            **_precision("pieces ", scored[1], [piece for i in chosen for piece in of_video[ids[i]]]),
            **values,
        }

    value = numbers(range(len(ids)))
    if len(ids) < 2:
        return {name: (x, float("nan"), float("nan")) for name, x in value.items()}
    resampled = bootstrap(
        (np.arange(len(ids)),),
        lambda chosen: np.array(list(numbers(chosen).values())),
        vectorized=False,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return {
        name: (x, float(low), float(high))
        for (name, x), low, high in zip(value.items(), resampled.low, resampled.high, strict=True)
    }


def read_table(path: Path) -> Table:
    """Reads a table that `l2g identity --json` wrote.

    Raises:
        UserError: the file cannot be read, or is not such a table.
    """
    content = read_json(path)
    try:
        table = {
            str(name): {str(k): (float(v), float(low), float(high)) for k, (v, low, high) in scores.items()}
            for name, scores in content.items()
        }
        if len({tuple(scores) for scores in table.values()}) > 1:
            raise ValueError("trackers with other scores")
        return table
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not a table of l2g identity") from error


def as_markdown(table: Table) -> str:
    """One line per tracker; every score with its 95 % interval."""
    scores = list(next(iter(table.values()), {}))
    rows = [[name, *(_cell(*values[score]) for score in scores)] for name, values in table.items()]
    return markdown_table(["", *scores], rows)


_SEED = re.compile(r"(.+)/seed(\d+)")


def row_of_comparison(runs: Iterable[str], against: str | None) -> str | None:
    """The row of an ablation that the others are compared with: `against`, or the first; None without rows.

    Args:
        runs: names of runs; those of an ablation are `row/seedN`.
        against: the value of --against.

    Raises:
        UserError: there is no such row.
    """
    rows = list(dict.fromkeys(match[1] for name in runs if (match := _SEED.fullmatch(name))))
    if against is not None and against not in rows:
        known = f"the rows are {', '.join(rows)}" if rows else "there are no runs of an ablation (row/seedN)"
        raise UserError(f"--against {against}: {known}")
    return against or next(iter(rows), None)


def seeds_as_markdown(table: Table, configs: Path, against: str | None = None) -> str:
    """The rows of an ablation: means over seeds, and paired differences from one row; empty without an ablation.

    Args:
        table: scores of runs named `row/seedN`; other trackers are left out.
        configs: the folder of the configs that hold the paper's rows.
        against: the row of comparison; the first if None.

    Raises:
        UserError: there is no such row.
    """
    results: dict[str, dict[int, dict[str, float]]] = {}
    for name, scores in table.items():
        if match := _SEED.fullmatch(name):
            results.setdefault(match[1], {})[int(match[2])] = {
                k: value for k, (value, _, _) in scores.items()
            }
    first = row_of_comparison(table, against)
    if first is None:
        return ""
    paired: Results = {first: results[first], **results}
    paper = {row.names: row.scores for row in read_rows(configs) if row.names[0] == 3}
    cells = []
    for row in summarise(paired):
        values = [f"{scores[row.score]:.1f}" for _, scores in sorted(paired[row.setting].items())]
        difference = row.format_difference()
        cells.append(
            [
                row.score,
                row.setting,
                ", ".join(values),
                f"{row.mean:.2f}",
                difference,
                row.verdict,
                _paper_difference(paper, row.setting, first, row.score) if difference else "",
            ]
        )
    order = list(dict.fromkeys(row[0] for row in cells))
    titles = ["", "row", "seeds", "mean", f"against {first} [95 %]", "", "paper, OVIS / YTVIS-21"]
    return markdown_table(titles, sorted(cells, key=lambda cell: order.index(cell[0])))


def _paper_difference(
    paper: Mapping[tuple[Any, ...], Mapping[str, float]], row: str, first: str, score: str
) -> str:
    """The difference of two rows of Table 3 on both data sets, or nothing if the paper has no such rows or score."""

    def scores(name: str, dataset: str) -> Mapping[str, float]:
        return paper.get((3, name, dataset), paper.get((3, f"+ {name}", dataset), {}))

    pairs = [(scores(row, dataset), scores(first, dataset)) for dataset in ("OVIS", "YTVIS-21")]
    return " / ".join(f"{a[score] - b[score]:+.1f}" for a, b in pairs if score in a and score in b)


def _cell(value: float, low: float, high: float) -> str:
    return f"{value:.1f}" if math.isnan(low) else f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _precision(prefix: str, scores: Scores, videos: Sequence[int]) -> dict[str, float]:
    stats = scores.stats_of(videos)
    return {f"{prefix}{name}": 100 * stats[name] for name in ("AP", "AP50", "AR10")}
