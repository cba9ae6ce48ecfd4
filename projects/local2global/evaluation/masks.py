"""Run-length masks of tracks: validation, areas, and intersections by pycocotools.

pycocotools reads run-length strings without any check, so every string is decoded and checked here first.  A mask is
{"size": [height, width], "counts": runs}; the runs go down the columns and start with the background.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..errors import UserError
from ..limits import MAX_PIXELS as LARGEST_IMAGE
from ..results.rle import Ints, RunsError, decode_counts, parse_polygon

Rle = Mapping[str, Any]
Place = Callable[[int], str]  # describes frame t of a track in an error message, or the track for t = -1

MAX_PIXELS = 1 << 31  # pycocotools counts pixels with 32 bits


@dataclass(frozen=True)
class MaskTrack:
    """The masks of one track, T frames.

    Attributes:
        rles: (T,) masks with counts as strings, None where the frame has no mask.
        areas: (T,) int64 pixels, 0 where the frame has no mask.
        sizes: (T, 2) int64 (height, width), -1 where the frame has no mask.
        listed: whether any mask was a list of run lengths.
    """

    rles: Sequence[Rle | None]
    areas: Ints
    sizes: Ints
    listed: bool = False

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.areas)

    @property
    def mean_area(self) -> float:
        """Mean of the non-zero areas, 0 if there are none."""
        return float(self.areas.sum() / max(1, np.count_nonzero(self.areas)))


def parse_track(segmentations: Any, place: Place, polygon_size: tuple[int, int] | None = None) -> MaskTrack:
    """Checks the masks of one track.

    Args:
        segmentations: per frame an RLE, None, or a list of polygons.
        place: describes a frame in error messages.
        polygon_size: (height, width) in which polygons are drawn; None: polygons raise an error.

    Raises:
        UserError: not a list, or a malformed mask.
    """
    if not isinstance(segmentations, Sequence) or isinstance(segmentations, (str, bytes)):
        raise UserError(f"{place(-1)}: expected a list `segmentations`, one mask or null per frame")
    rles: list[Rle | None] = [None] * len(segmentations)
    areas, sizes = np.zeros(len(rles), np.int64), np.full((len(rles), 2), -1, np.int64)
    listed, t = False, 0
    try:
        for t, mask in enumerate(segmentations):
            if mask:
                rles[t], sizes[t], was_list = _normalise(mask, polygon_size)
                listed |= was_list
        present = [t for t, rle in enumerate(rles) if rle is not None]
        areas[present] = _check_areas([rle["counts"] for rle in rles if rle is not None], sizes[present])
    except RunsError as error:
        raise _complaint(place(present[error.index]), error) from error
    except KeyError as error:
        raise _complaint(place(t), f"no {error}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise _complaint(place(t), error) from error
    return MaskTrack(rles, areas, sizes, listed)


def _complaint(where: str, reason: object) -> UserError:
    return UserError(f"{where}: malformed run-length mask: {reason}")


def _normalise(mask: Any, polygon_size: tuple[int, int] | None) -> tuple[Rle, tuple[int, int], bool]:
    """A mask with counts as a string, its (height, width), and whether its counts were a list."""
    if isinstance(mask, list) and polygon_size is not None:
        _check_polygons(mask, polygon_size)
        mask = coco_mask.merge(coco_mask.frPyObjects(mask, *polygon_size))
    if not isinstance(mask, Mapping):
        raise ValueError("an object with size and counts is needed")
    height, width = mask["size"]
    if type(height) is not int or type(width) is not int:
        height, width = _whole(height), _whole(width)
        mask = {**mask, "size": [height, width]}
    if not (0 <= height < MAX_PIXELS and 0 <= width < MAX_PIXELS):
        raise ValueError(f"a size of {height} x {width}")
    if height * width >= MAX_PIXELS:
        raise ValueError(f"{height} x {width} are more pixels than are looked at")
    counts = mask["counts"]
    if isinstance(counts, (str, bytes)):
        return mask, (height, width), False
    runs = np.asarray(counts)
    if runs.ndim != 1 or runs.dtype.kind not in "iuf" or (runs.dtype.kind == "f" and (runs % 1 != 0).any()):
        raise ValueError("a run that is not a whole number")
    if len(runs) and (runs.min() < 0 or runs.max() >= MAX_PIXELS):
        raise ValueError("a run is negative" if runs.min() < 0 else "a run longer than any frame")
    size = [height, width]
    return coco_mask.frPyObjects({"size": size, "counts": runs}, *size), (height, width), True


def _check_polygons(polygons: list[Any], size: tuple[int, int]) -> None:
    """Checks what pycocotools does not: it allocates four bytes a pixel to join two polygons without a check."""
    if size[0] * size[1] > LARGEST_IMAGE:
        raise ValueError(
            f"a polygon in a frame of {size[0]} x {size[1]}, the limit is {LARGEST_IMAGE} pixels in all"
        )
    for polygon in polygons:
        parse_polygon(polygon, size)


def _whole(number: Any) -> int:
    if isinstance(number, (bool, str)) or int(number) != number:
        raise ValueError(f"{number!r} is not a whole number")
    return int(number)


def _check_areas(counts: Sequence[str | bytes], sizes: Ints) -> Ints:
    """(n,) areas of n masks with compressed counts and (n, 2) sizes."""
    runs = decode_counts(counts)
    areas = np.array([mask[1::2].sum() for mask in runs], np.int64)
    covered = areas + np.array([mask[::2].sum() for mask in runs], np.int64)
    wrong = np.flatnonzero(covered != sizes.prod(axis=1))
    if len(wrong):
        n, (height, width) = int(wrong[0]), sizes[wrong[0]]
        raise RunsError(n, f"its runs cover {covered[n]} pixels, its size is {height} x {width}")
    return areas


def intersections(first: Sequence[MaskTrack], second: Sequence[MaskTrack]) -> Ints:
    """Common pixels of every pair of tracks on every frame, 0 where their masks differ in size.

    Args:
        first: P tracks.
        second: G tracks.

    Returns:
        (P, G, T) int64 for the T frames that at least one track of each side has.
    """
    frames = min(max((len(track) for track in side), default=0) for side in (first, second))
    common = np.zeros((len(first), len(second), frames), np.int64)
    for t in range(frames):
        rows, columns = (
            [n for n, track in enumerate(side) if t < len(track) and track.areas[t]]
            for side in (first, second)
        )
        if not (rows and columns):
            continue
        p, g = [first[n].rles[t] for n in rows], [second[n].rles[t] for n in columns]
        iou = coco_mask.iou(p, g, [0] * len(g)).clip(min=0)  # -1 where sizes differ
        total = np.add.outer([first[n].areas[t] for n in rows], [second[n].areas[t] for n in columns])
        # i / (a + b - i) = r, solved for the whole number i
        common[np.ix_(rows, columns, [t])] = np.rint(iou * total / (1 + iou))[..., None]
    return common


def track_iou(predictions: Sequence[MaskTrack], truths: Sequence[MaskTrack]) -> NDArray[np.float64]:
    """IoU of tracks: intersections summed over frames, divided by unions summed over frames.

    A frame where only one side has a mask adds that mask to the union.  Tracks of unequal length are compared over the
    shorter one.  A frame whose two masks differ in size adds nothing to either sum.

    Args:
        predictions: P tracks.
        truths: G tracks.

    Returns:
        (P, G) float64 in [0, 1], 0 where the union is empty.
    """
    common = intersections(predictions, truths)
    sums = np.zeros(common.shape[:2], np.int64)
    for i, p in enumerate(predictions):
        for j, g in enumerate(truths):
            frames = min(len(p), len(g))
            sizes = p.sizes[:frames], g.sizes[:frames]
            comparable = (sizes[0] == sizes[1]).all(1) | (sizes[0] < 0).all(1) | (sizes[1] < 0).all(1)
            sums[i, j] = ((p.areas[:frames] + g.areas[:frames]) * comparable).sum()
    shared = common.sum(axis=2)
    return np.asarray(shared / np.maximum(sums - shared, 1))
