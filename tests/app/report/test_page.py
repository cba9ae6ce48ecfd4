"""The page of a run: timelines, thumbnails, cuts, the size of the file, and hostile names."""

from __future__ import annotations

import json
import re
from array import array
from pathlib import Path

import numpy as np
import pytest

from fake_run_folder import HOSTILE, NAMES, entry, large_page, moving, write_folder, write_source
from local2global.app.report.report import find_folders, report
from local2global.app.report.run import Identity, load, read_run
from local2global.app.report.timeline import curve, edges, gap_path, gaps, positions
from local2global.errors import UserError


def identity(frames: list[int], scores: list[float]) -> Identity:
    return Identity(
        1, array("I", frames), array("f", scores), array("f", [0.0] * 4 * len(frames)), [(frames[0], 5)]
    )


@pytest.fixture
def source(tmp_path) -> Path:
    return write_source(tmp_path / "clip.mp4", 20, cut=10)


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])


# --- Timelines ---


def test_a_curve_has_one_part_per_interval():
    x = positions(edges(np.arange(4) / 10, 10))  # four frames of 250 units
    assert curve(identity([0, 1, 3], [1.0, 0.5, 0.25]), x) == "M0 40V0L250 20H500V40ZM750 40V30H1000V40Z"


def test_a_gap_is_a_line_between_its_frames():
    x = positions(edges(np.arange(4) / 10, 10))
    track = identity([0, 3], [1.0, 1.0])
    assert gaps(track) == [(1, 2)]
    assert gap_path(track, x) == "M250 39H750"


def test_positions_follow_the_time_stamps():
    assert edges(np.array([2.0, 2.1, 2.5]), 10).round(3).tolist() == [0, 0.1, 0.5, 0.75]


def test_a_long_curve_keeps_its_best_scores():
    scores = np.full(5000, 0.5)
    scores[1234] = 1.0
    x = positions(edges(np.arange(5000) / 25, 25))
    path = curve(identity(list(range(5000)), scores.tolist()), x)
    assert " 0L" in path
    assert len(path) < 10_000


# --- The page ---


def test_the_page_shows_every_identity(tmp_path, source):
    page = report(write_folder(tmp_path / "run", moving(), source, command="l2g predict clip.mp4"))
    text = page.read_text(encoding="utf-8")
    assert re.findall(r'class="id">(\d+)<', text) == ["3", "7"]
    assert text.count("data:image/jpeg;base64,") == 2
    assert "dog becomes person at 0:01.5" in text
    assert 'data-gaps="1"' in text
    assert "l2g predict clip.mp4" in text
    assert "model.pth" in text
    assert sorted(p.name for p in page.parent.iterdir()) == ["frames.jsonl", "report.html", "stream.json"]


def test_a_scene_cut_is_found(tmp_path, source):
    text = report(write_folder(tmp_path / "run", moving(), source)).read_text(encoding="utf-8")
    assert re.findall(r'<button type="button" data-frame="(\d+)">0:01.0</button>', text) == ["10"]


def test_a_video_without_cuts_has_no_list_of_cuts(tmp_path):
    source = write_source(tmp_path / "clip.mp4", 20)
    assert "Scene cuts" not in report(write_folder(tmp_path / "run", moving(), source)).read_text(
        encoding="utf-8"
    )


def test_hostile_names_are_text(tmp_path, source):
    names = {**NAMES, 5: HOSTILE}
    page = report(write_folder(tmp_path / "run", moving(), source, names, command=HOSTILE))
    text = page.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "49" not in re.findall(r"&amp;(.*?)<", text)
    assert data_of(page)["rows"][0]["label"] == f"3 {HOSTILE}"
    assert text.count("</script>") == 3  # data, video, program


def test_the_policy_of_the_page_allows_its_program_only(tmp_path, source):
    text = report(write_folder(tmp_path / "run", moving(), source)).read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/=]+'$", policy)
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", text)


def test_a_changed_source_is_not_used(tmp_path, source):
    """The record names the frames by a hash: another video at the same path is not shown under these masks."""
    folder = write_folder(tmp_path / "run", moving(), source)
    write_source(source, 21)
    with pytest.raises(UserError, match="its video is not found; name it with --source"):
        report(folder)


def test_the_frames_that_a_run_selected_are_shown(tmp_path, source):
    """As after predict --start 0.5 --every 2: eight frames, of which the fourth is in the second scene."""
    folder = write_folder(tmp_path / "run", moving(8), source)
    about = json.loads((folder / "stream.json").read_text())
    about["run"]["source"] += " 0.5 None 2 None"
    (folder / "stream.json").write_text(json.dumps(about))
    assert 'data-frame="3">0:00.3</button>' in report(folder).read_text(encoding="utf-8")


def test_without_the_source_the_annotated_video_is_shown(tmp_path, source):
    folder = write_folder(tmp_path / "run", moving(), source)
    source.rename(folder / "video.mp4")
    page = report(folder)
    assert data_of(page)["drawn"] is True
    assert (folder / "video.mp4").is_file()


def test_a_large_video_stays_beside_the_page(tmp_path, source, monkeypatch):
    monkeypatch.setattr("local2global.app.report.page.MAX_INSIDE", 100)
    page = report(write_folder(tmp_path / "run", moving(), source))
    assert data_of(page)["video"] == "report.mp4"
    assert (page.parent / "report.mp4").is_file()
    assert 'id="video"' not in page.read_text(encoding="utf-8")


def test_a_page_of_100_identities_and_3000_frames_is_small(tmp_path):
    """At most 5 MB and 60 bytes an outline, without the video."""
    page, outlines = large_page(tmp_path)
    size = page.stat().st_size
    assert outlines == 60_000
    assert size < 5_000_000 + 60 * outlines


# --- Input ---


def test_outlines_are_at_least_five_frames_apart(tmp_path, source):
    run = load(read_run(write_folder(tmp_path / "run", moving(), source)))
    assert [t for t, _ in run.identities[3].outlines] == [0, 5, 10, 15]
    dog = run.identities[7]
    assert [dog.frames[t] for t, _ in dog.outlines] == [0, 5, 12, 17]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [0, 0, float("nan"), 1]}, "invalid frame record"),
        ({"bbox": ["x", 0, 1, 1]}, "invalid frame record"),
        ({"segmentation": {"size": [10, 10], "counts": "d3"}}, "a mask's size differs from the video's"),
        ({"segmentation": {"size": [64, 96], "counts": "5`j`1"}}, "malformed mask of identity 3"),
        ({"id": 7}, "identity 7 is listed twice"),
    ],
)
def test_invalid_records_are_refused_in_one_line(tmp_path, source, change, message):
    frames = moving()
    frames[0][0] |= change
    folder = write_folder(tmp_path / "run", frames, source)
    with pytest.raises(UserError, match=message):
        report(folder)
    assert not (folder / "report.html").exists()


def test_a_record_longer_than_its_video_is_refused(tmp_path, source):
    folder = write_folder(tmp_path / "run", moving(25), source)
    with pytest.raises(UserError, match="20 frames, but run has 25"):
        report(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["frames.jsonl", "stream.json"]


def test_a_record_without_objects_has_an_empty_table(tmp_path, source):
    page = report(write_folder(tmp_path / "run", [[]] * 20, source))
    assert data_of(page)["rows"] == []


def test_folders_are_found_one_level_down(tmp_path, source):
    a, b = (write_folder(tmp_path / name, [[entry(1, 0, 0)]], source) for name in ("a", "b"))
    assert find_folders(tmp_path) == [a, b]
    assert find_folders(a) == [a]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither an output folder"):
        find_folders(tmp_path / "empty")
