"""Reading sources and writing videos."""

from __future__ import annotations

import struct
import wave
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import pytest
import torch
from PIL import Image
from torch import Tensor

from local2global.app.video import VideoWriter, natural_key, open_source
from local2global.errors import UserError

COLOURS = [(200, 30, 40), (20, 180, 60), (30, 40, 220)]


def plain(colour: tuple[int, int, int], height: int = 48, width: int = 64) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).repeat(1, height, width)


def write_video(path: Path, frames: Iterable[Tensor], fps: Fraction | float = 10) -> Path:
    """Writes a video of the size of its first frame."""
    rest = iter(frames)
    first = next(rest)
    with VideoWriter(path, fps, (first.shape[1], first.shape[2])) as writer:
        for frame in chain([first], rest):
            writer.write(frame)
    return path


def write_images(folder: Path, names: list[str], size: tuple[int, int] = (8, 6)) -> Path:
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        Image.new("RGB", size, (index, 0, 0)).save(folder / name)
    return folder


def mean_colour(frame: Tensor) -> Tensor:
    return frame.float().mean((1, 2))


# --- Writing ---


def test_a_written_video_keeps_rate_frames_and_colours(tmp_path):
    rate = Fraction(30000, 1001)
    source = open_source(write_video(tmp_path / "out.mp4", [plain(c) for c in COLOURS * 4], rate))
    assert (source.name, source.fps, source.size, source.length) == ("out", rate, (48, 64), 12)
    frames = list(source)
    assert len(frames) == 12
    for index, frame in enumerate(frames):
        assert frame.shape == (3, 48, 64)
        assert frame.dtype == torch.uint8
        torch.testing.assert_close(
            mean_colour(frame), torch.tensor(COLOURS[index % 3]).float(), atol=6, rtol=0
        )


def test_a_written_video_plays_in_browsers(tmp_path):
    path = write_video(tmp_path / "out.mp4", [plain(COLOURS[0])] * 3)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.codec_context.colorspace == 1  # BT.709 is tagged
    content = path.read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat"), (
        "the index precedes the data, so playback starts at once"
    )


def test_odd_sizes_are_padded_by_repeating_the_edge(tmp_path):
    source = open_source(write_video(tmp_path / "odd.mp4", [plain(COLOURS[1], 61, 83)] * 2))
    assert source.size == (62, 84)
    edge = next(iter(source))[:, -1].float().mean(1)
    torch.testing.assert_close(edge, torch.tensor(COLOURS[1]).float(), atol=8, rtol=0)


def test_a_source_can_be_iterated_repeatedly(tmp_path):
    source = open_source(write_video(tmp_path / "twice.mp4", [plain(c) for c in COLOURS]))
    assert next(iter(source)) is not None
    assert sum(1 for _ in source) == 3


def test_a_failed_write_leaves_no_file(tmp_path):
    def broken() -> Iterator[Tensor]:
        yield from [plain(COLOURS[0])] * 40
        assert [p.name for p in tmp_path.iterdir()] == ["half.partial.mp4"]
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        write_video(tmp_path / "half.mp4", broken())
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_existing_file(tmp_path):
    path = write_video(tmp_path / "out.mp4", [plain(COLOURS[0])] * 5)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="48, 64"):
        write_video(path, [plain(COLOURS[1]), plain(COLOURS[1], 50, 64)])
    assert path.read_bytes() == before


def test_writing_no_frames_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no frame"), VideoWriter(tmp_path / "none.mp4", 10, (48, 64)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_frame_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="48, 64"), VideoWriter(tmp_path / "x.mp4", 10, (48, 64)) as writer:
        writer.write(plain(COLOURS[0], 50, 64))


def test_a_rotated_video_is_read_upright(tmp_path):
    """The header declares a clockwise quarter turn: the left edge becomes the top."""
    left_red = plain((0, 0, 0))
    left_red[0, :, :16] = 220
    path = write_video(tmp_path / "phone.mp4", [left_red] * 3)
    content = bytearray(path.read_bytes())
    matrix = content.find(b"tkhd") + 4 + 40
    unit = 1 << 16  # 1.0 in 16.16 fixed point
    assert struct.unpack(">9i", content[matrix : matrix + 36]) == (unit, 0, 0, 0, unit, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = struct.pack(">9i", 0, unit, 0, -unit, 0, 0, 48 * unit, 0, 1 << 30)
    path.write_bytes(content)
    source = open_source(path)
    frame = next(iter(source))
    assert source.size == (64, 48) == tuple(frame.shape[1:])
    assert frame[0, :14].float().mean() > 180 > 60 > frame[0, 20:].float().mean()


# --- Images ---


def test_a_folder_is_read_in_natural_order(tmp_path):
    folder = write_images(tmp_path / "clip", ["f1.png", "f10.png", "f2.png"])
    (folder / "notes.txt").write_text("not a frame")
    source = open_source(folder)
    assert (source.name, source.fps, source.size, source.length) == ("clip", 10, (6, 8), 3)
    assert [int(frame[0, 0, 0]) for frame in source] == [0, 2, 1]


def test_natural_order_compares_numbers_as_numbers():
    assert sorted(["a10", "a9", "b1", "a010b"], key=natural_key) == ["a9", "a010b", "a10", "b1"]


def test_a_glob_selects_frames(tmp_path):
    folder = write_images(tmp_path / "clip", ["left1.png", "left2.png", "right1.png"])
    source = open_source(folder / "left*.png", fps=25)
    assert (source.name, source.fps, source.length) == ("clip", 25, 2)


def test_a_single_image_is_a_video_of_one_frame(tmp_path):
    source = open_source(write_images(tmp_path, ["one.png"]) / "one.png")
    assert (source.name, source.length, len(list(source))) == ("one", 1, 1)


def test_a_rotated_photo_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to show
    Image.new("RGB", (8, 6)).save(tmp_path / "photo.jpg", exif=exif)
    source = open_source(tmp_path / "photo.jpg")
    assert source.size == (8, 6) == tuple(next(iter(source)).shape[1:])


def test_grey_and_transparent_images_become_rgb(tmp_path):
    Image.new("L", (8, 6), 77).save(tmp_path / "1.png")
    Image.new("RGBA", (8, 6), (77, 77, 77, 10)).save(tmp_path / "2.png")
    assert [frame.float().mean() for frame in open_source(tmp_path)] == [77, 77]


# --- Unreadable sources ---


def message(path: Path) -> str:
    """The one-line error of reading a source."""
    with pytest.raises(UserError) as caught:
        list(open_source(path))
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_a_missing_file_is_refused(tmp_path):
    assert "no such file or folder" in message(tmp_path / "no.mp4")


def test_a_text_file_is_not_a_video(tmp_path):
    (tmp_path / "text.mp4").write_text("hello there")
    assert "cannot be read" in message(tmp_path / "text.mp4")


def test_an_empty_file_is_not_a_video(tmp_path):
    (tmp_path / "empty.mp4").touch()
    assert "empty" in message(tmp_path / "empty.mp4")


def test_an_audio_file_is_not_a_video(tmp_path):
    with wave.open(str(tmp_path / "sound.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(4000))
    assert "no video stream" in message(tmp_path / "sound.mp4")


def test_a_truncated_video_is_refused(tmp_path):
    path = write_video(tmp_path / "half.mp4", [torch.randint(0, 255, (3, 48, 64), dtype=torch.uint8)] * 40)
    path.write_bytes(path.read_bytes()[:600])
    assert "half.mp4" in message(path)


def test_a_folder_without_frames_is_refused_with_the_known_suffixes(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert ".png" in message(tmp_path)


def test_a_glob_without_matches_is_refused(tmp_path):
    assert "no file matches" in message(tmp_path / "*.jpg")


def test_a_glob_of_several_videos_is_refused(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    assert "a.mp4" in message(tmp_path / "*.mp4")


def test_frames_of_two_sizes_are_refused_before_any_is_decoded(tmp_path):
    write_images(tmp_path, ["1.png", "2.png"])
    Image.new("RGB", (9, 6)).save(tmp_path / "3.png")
    with pytest.raises(UserError, match=r"3\.png: 9x6 pixels, but 1\.png has 8x6"):
        open_source(tmp_path)


def test_a_truncated_image_is_refused_at_its_position(tmp_path):
    noise = torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8).numpy()
    for name in ("1.jpg", "2.jpg"):
        Image.fromarray(noise).save(tmp_path / name)
    content = (tmp_path / "2.jpg").read_bytes()
    (tmp_path / "2.jpg").write_bytes(content[: len(content) // 2])
    frames = iter(open_source(tmp_path))
    assert next(frames).shape == (3, 64, 64)
    with pytest.raises(UserError, match=r"2\.jpg: .*truncated"):
        next(frames)


def test_a_text_file_is_not_an_image(tmp_path):
    (tmp_path / "x.jpg").write_text("hello")
    assert "not an image" in message(tmp_path / "x.jpg")


@pytest.mark.parametrize("fps", [0, -1, 1e9])
def test_impossible_rates_are_refused(tmp_path, fps):
    write_images(tmp_path, ["1.png"])
    with pytest.raises(UserError, match="frames per second"):
        open_source(tmp_path, fps=fps)
