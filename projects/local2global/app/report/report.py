"""`l2g report`: the page of an output folder of `l2g predict`, or the curves of training runs."""

from __future__ import annotations

from pathlib import Path

from ...errors import UserError
from ...files import PARTIAL, waiting_lock
from ..predict import L2G
from .film import find_source, make_film
from .page import Content, Lane, Row, write_page
from .queries import explain
from .run import load, read_run


def report(folder: Path, source: str | None = None, model: L2G | None = None) -> Path:
    """Writes `report.html` into an output folder of `l2g predict`.

    Args:
        folder: holds `frames.jsonl`, `stream.json` and `video.mp4`.
        source: the video, if it is no longer at the path in the record.
        model: the model that made the run; the page then also shows where it looked.

    Returns:
        The page.

    Raises:
        UserError: if the record or the video cannot be read.
    """
    run = load(read_run(folder))
    opened, clean = find_source(run, folder, source)
    queries = None
    if model is not None:
        if not clean:
            raise UserError(f"{folder}: --queries needs the original video; name it with --source")
        queries = explain(model, opened, run)
    with waiting_lock(folder / f"report{PARTIAL}", lambda: None):
        film = make_film(opened, [run], folder / "report.mp4")
        rows = [Row(identity.id, [Lane(identity)]) for identity in run.identities.values()]
        content = Content(run.video, [run], rows, drawn=not clean, queries=queries)
        return write_page(folder / "report.html", content, film)


def find_folders(place: Path) -> list[Path]:
    """The output folders of `l2g predict` at a path: the folder itself, or those inside it.

    Raises:
        UserError: if there are none.
    """
    if (place / "frames.jsonl").is_file():
        return [place]
    found = sorted(record.parent for record in place.glob("*/frames.jsonl"))
    if not found:
        raise UserError(f"{place}: neither an output folder of l2g predict nor the folder of a training run")
    return found
