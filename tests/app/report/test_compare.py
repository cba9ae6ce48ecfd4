"""Comparisons: which identities are one object, what happens to it, and where runs differ most."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
from PIL import Image

from fake_run_folder import SIZE, entry, square, write_folder, write_source
from local2global.app.predict import L2G
from local2global.app.report import commands
from local2global.app.report.compare import compare, distinct_names
from local2global.app.report.matching import Follower, Overlaps, difference, follow, match, measure, moments
from local2global.app.report.run import Run
from local2global.errors import UserError

FRAMES = 20


def run_of(name: str, frames: list[list[dict]]) -> Run:
    lines = [{"index": t, "time": t / 10, "objects": objects} for t, objects in enumerate(frames)]
    return Run(name, "clip", SIZE, 10.0, {5: "person"}, lambda: iter(lines))


def two_squares(a: int, b: int) -> list[dict]:
    """A square at the left with identity `a`, one at the right with identity `b`."""
    return [entry(a, 0, 0), entry(b, 60, 40)]


# --- Matching ---


def test_identities_are_matched_by_their_common_pixels_over_the_video():
    """The run changes its numbers for a while; the majority of the pixels decides."""
    reference = run_of("a", [two_squares(1, 2)] * 10)
    other = run_of("b", [two_squares(8, 9)] * 7 + [two_squares(9, 8)] * 3)
    assert match(measure(reference, [other])[0]) == {8: 1, 9: 2}


def test_identities_without_common_pixels_are_not_matched():
    reference = run_of("a", [[entry(1, 0, 0)]] * 3)
    other = run_of("b", [[entry(1, 60, 40)]] * 3)
    assert match(measure(reference, [other])[0]) == {}


def test_the_difference_is_the_share_of_pixels_that_have_another_object():
    """Squares of 16 pixels, moved by 8: 128 pixels in common of 384; then none; then equal; then nothing at all."""
    reference = run_of("a", [[entry(1, 0, 0)], [entry(1, 0, 0)], [entry(1, 0, 0)], []])
    other = run_of("b", [[entry(4, 8, 0)], [], [entry(4, 0, 0)], []])
    overlaps = measure(reference, [other])[0]
    assert difference(overlaps, {4: 1}).round(6).tolist() == [round(1 - 128 / 384, 6), 1, 0, 0]
    assert difference(overlaps, {}).round(6).tolist() == [1, 1, 1, 0]


def test_moments_are_the_most_different_frames_with_a_distance():
    reference = run_of("a", [[entry(1, 0, 0)]] * 100)
    shifts = {20: 16, 21: 15, 22: 14, 70: 8}
    other = run_of("b", [[entry(4, shifts.get(t, 0), 0)] for t in range(100)])
    different = difference(measure(reference, [other])[0], {4: 1})
    found = moments([different], ["b"], "a")
    assert [moment.frame for moment in found] == [20, 70]
    assert found[0].text == "b and a differ in 100% of the object pixels"


def test_runs_of_different_lengths_are_refused():
    with pytest.raises(UserError, match="b: fewer frames than the other runs"):
        measure(run_of("a", [[]] * 3), [run_of("b", [[]] * 2)])


# --- Events ---


def events(owners: list[int | None]) -> list[tuple[int, str]]:
    follower = Follower()
    for t, owner in enumerate(owners):
        follower.update(t, owner)
    return [(event.frame, event.kind) for event in follower.events]


@pytest.mark.parametrize(
    ("owners", "expected"),
    [
        ([None, 4, 4, 4], []),
        ([4, 4, 6, 6], [(2, "switch")]),
        ([4, None, None, 4], []),
        ([4, None, None, None, 4], [(1, "lost"), (4, "found")]),
        ([4, None, None, None, 6], [(1, "lost"), (4, "switch")]),
        ([4, None, None, None, None], [(1, "lost")]),
        ([None, None, None, None], []),
        ([4, 6, 4], [(1, "switch"), (2, "switch")]),
    ],
)
def test_switches_losses_and_returns(owners, expected):
    assert events(owners) == expected


def test_a_switch_is_found_from_masks():
    truth = run_of("truth", [two_squares(1, 2)] * 10)
    other = run_of("b", [two_squares(8, 9)] * 6 + [two_squares(9, 8)] * 4)
    happened = follow(measure(truth, [other])[0])
    assert [(e.frame, e.kind) for e in happened[1].events] == [(6, "switch")]
    assert happened[1].events[0].text == "identity switch: the object changes from 8 to 9"
    assert (happened[2].owned, happened[2].visible) == (10, 10)


def test_an_identity_of_low_overlap_owns_nothing():
    overlaps = Overlaps([{(1, 4): 80.0}], ([{1: 100}], [{4: 150}]))
    assert follow(overlaps)[1].owned == 0


# --- The page and the video ---


@pytest.fixture
def source(tmp_path) -> Path:
    return write_source(tmp_path / "clip.mp4", FRAMES)


@pytest.fixture
def folders(tmp_path, source) -> list[Path]:
    """A baseline that swaps two identities at frame 12, and a method that does not."""
    baseline = [two_squares(0, 1)] * 12 + [two_squares(1, 0)] * 8
    return [
        write_folder(tmp_path / "baseline" / "clip", baseline, source),
        write_folder(tmp_path / "method" / "clip", [two_squares(5, 6)] * FRAMES, source),
    ]


@pytest.fixture
def truth(tmp_path) -> Path:
    video = {"id": 1, "width": SIZE[1], "height": SIZE[0], "length": FRAMES}
    video["file_names"] = [f"clip/{t:05}.jpg" for t in range(FRAMES)]
    places = {11: (0, 0), 12: (60, 40)}
    annotations = [
        {"id": key, "video_id": 1, "category_id": 5, "iscrowd": 0, "segmentations": [square(*place)] * FRAMES}
        for key, place in places.items()
    ]
    other = {**video, "id": 2, "file_names": ["other/00000.jpg"] * FRAMES}
    content = {
        "videos": [other, video],
        "categories": [{"id": 5, "name": "person"}],
        "annotations": annotations,
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    return path


def test_two_runs_and_their_truth(tmp_path, folders, truth):
    page, video, picture, summary = compare(folders, truth, tmp_path / "out", picture=True)
    text = page.read_text(encoding="utf-8")
    assert re.findall(r'class="id">(\d+)<', text) == ["11", "12"]
    switches = re.findall(r'class="event switch" style="left: ([\d.]+)%" data-frame="(\d+)"', text)
    assert switches == [("60.000", "12")] * 2
    first = re.search(r'<ol class="moments">\s*<li>(.*?)</li>', text, re.S)[1]
    assert 'data-frame="12"' in first
    assert "baseline, object 11: identity switch: the object changes from 0 to 1" in first
    rows = re.findall(r'<tr><th scope="row">(\w+)</th>(.*?)</tr>', text)
    assert [(name, re.findall("<td>(.*?)</td>", cells)) for name, cells in rows] == [
        ("truth", ["2", "", "", "", "", ""]),
        ("baseline", ["2", "40.0%", "2", "0", "0", "100.0%"]),
        ("method", ["2", "0.0%", "0", "0", "0", "100.0%"]),
    ]
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == FRAMES
    assert frames[0].shape[1] > 3 * SIZE[1]
    with Image.open(picture) as animation:
        assert animation.n_frames == 2, "WebP merges equal frames: before and after the switch"
        assert animation.size == (frames[0].shape[1], frames[0].shape[0])
    assert summary[1][1] == ["baseline", "2", "40.0%", "2", "0", "0", "100.0%"]


def test_agreeing_runs_have_the_same_colours(tmp_path, folders):
    video = compare(folders, None, tmp_path / "out").video
    with av.open(str(video)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    left, right = frame[-SIZE[0] :, : SIZE[1]], frame[-SIZE[0] :, 100 : 100 + SIZE[1]]
    assert abs(left[50, 66] - left[50, 40]).max() > 30, "the object is tinted"
    assert abs(left[50, 66] - right[50, 66]).max() < 12


def test_one_run_over_its_truth(tmp_path, folders, truth):
    page = compare(folders[:1], truth, tmp_path / "out").page
    assert "2 objects" in page.read_text(encoding="utf-8")


def test_one_run_alone_is_refused(tmp_path, folders):
    with pytest.raises(UserError, match="two output folders of l2g predict, or one and --truth"):
        compare(folders[:1], None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_weights_are_loaded_before_any_is_run(tmp_path, source, monkeypatch):
    def load(path, device):
        if path == "missing.pth":
            raise UserError("missing.pth: no such weights")
        return SimpleNamespace(predict=None)

    monkeypatch.setattr(L2G, "from_pretrained", load)
    with pytest.raises(UserError, match=r"missing\.pth: no such weights"):
        commands.compare([str(source)], weights=["run.pth", "missing.pth"], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_on_different_videos_are_refused(tmp_path, folders):
    longer = write_source(tmp_path / "longer.mp4", 22)
    other = write_folder(tmp_path / "other", [[]] * 22, longer)
    with pytest.raises(UserError, match="these are not runs of one video"):
        compare([folders[0], other], None, tmp_path / "out")


def test_a_truth_without_the_video_is_refused(tmp_path, folders, truth):
    content = json.loads(truth.read_text())
    content["videos"][1]["file_names"] = ["third/00000.jpg"] * FRAMES
    truth.write_text(json.dumps(content))
    with pytest.raises(UserError, match="none of its 2 videos is named clip"):
        compare(folders, truth, tmp_path / "out")


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["out/a", "out/b"], ["a", "b"]),
        (["base/clip", "ours/clip"], ["base", "ours"]),
        (["x/a/clip", "x/b/clip", "x/b/other"], ["a/clip", "b/clip", "b/other"]),
    ],
)
def test_names_of_runs_differ(paths, names):
    assert distinct_names([Path(path) for path in paths]) == names
