"""The format of an annotation file, recognised by its content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import UserError
from .entries import read_json

YOUTUBE_VIS, COCO, VIPSEG, COCOVID = "YouTube-VIS", "COCO", "VIPSeg", "CocoVID"
REMEDIES = {
    YOUTUBE_VIS: "Load it with load_youtube_vis, as configs/custom do",
    COCO: "Load it with load_coco, as configs/coco and configs/custom do",
    VIPSEG: "Load it with load_panoptic, as configs/vipseg do",
    COCOVID: "CocoVID has images with video_id and frame_id: convert it with `l2g data convert cocovid SOURCE OUT`",
}
"""How to use a file that has another format than expected."""
_PROBES = 8


def format_of(content: Any) -> str | None:
    """The format of an annotation file's content; None if it is unknown."""
    if not isinstance(content, dict):
        return None
    videos, annotations, images = (content.get(key) for key in ("videos", "annotations", "images"))
    if isinstance(videos, list):
        if isinstance(images, list) and any(
            isinstance(i, dict) and "video_id" in i for i in images[:_PROBES]
        ):
            return COCOVID
        panoptic = any(isinstance(v, dict) and ("images" in v or "video_id" in v) for v in videos[:_PROBES])
        return VIPSEG if panoptic else YOUTUBE_VIS
    if isinstance(images, list) and "categories" in content and isinstance(annotations, list):
        first = [a for a in annotations[:_PROBES] if isinstance(a, dict)]
        return None if any("segments_info" in a for a in first) else COCO
    return None


def read_content(path: Path, expected: str) -> dict[str, Any]:
    """The content of an annotation file of a given format.

    Raises:
        UserError: if the file cannot be read or has another format.
    """
    content = read_json(path)
    key = "images" if expected == COCO else "videos"
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise UserError(f'{path.name}: no list "{key}": not a {expected} annotation file.')
    found = format_of(content)
    if found not in (expected, None):
        raise UserError(f"{path.name}: a {found} annotation file, not {expected}. {REMEDIES[str(found)]}.")
    return content
