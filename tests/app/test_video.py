"""Reading sources and writing videos."""

from __future__ import annotations

import re
import struct
import wave
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import pytest
import torch
from PIL import Image, TiffImagePlugin
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


def test_a_written_video_starts_at_zero(tmp_path):
    """A player shows frame t at t / fps, without the delay of reordered frames."""
    path = tmp_path / "video.mp4"
    with VideoWriter(path, 10, (32, 48)) as writer:
        for level in range(0, 250, 25):
            writer.write(torch.full((3, 32, 48), level, dtype=torch.uint8))
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([t / 10 for t in range(10)])


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


def set_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Replaces the matrix (a, b, c, d) in the track header: x' = ax + cy, y' = bx + dy."""
    content = bytearray(path.read_bytes())
    place = content.find(b"tkhd") + 4 + 40
    unit = 1 << 16  # 1.0 in 16.16 fixed point
    assert struct.unpack(">9i", content[place : place + 36]) == (unit, 0, 0, 0, unit, 0, 0, 0, 1 << 30)
    a, b, c, d = (value * unit for value in matrix)
    # Negative axes need an offset, so that the picture starts at the origin.
    shift = (64 * unit * (a < 0) + 48 * unit * (c < 0), 64 * unit * (b < 0) + 48 * unit * (d < 0))
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, *shift, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("matrix", "size", "corner"),
    [
        ((1, 0, 0, 1), (48, 64), (0, 0)),
        ((0, 1, -1, 0), (64, 48), (0, -1)),  # a quarter turn clockwise
        ((-1, 0, 0, -1), (48, 64), (-1, -1)),
        ((0, -1, 1, 0), (64, 48), (-1, 0)),
        ((-1, 0, 0, 1), (48, 64), (0, -1)),  # mirrored: left and right are swapped
        ((1, 0, 0, -1), (48, 64), (-1, 0)),
        ((0, 1, 1, 0), (64, 48), (0, 0)),  # transposed
        ((0, -1, -1, 0), (64, 48), (-1, -1)),
    ],
)
def test_rotated_and_mirrored_videos_are_read_upright(tmp_path, matrix, size, corner):
    """The top left corner of the coded picture is red; the matrix moves it to `corner`."""
    picture = plain((0, 0, 0))
    picture[0, :24, :32] = 220
    source = open_source(set_display_matrix(write_video(tmp_path / "phone.mp4", [picture] * 3), matrix))
    frame = next(iter(source))[0].float()
    assert source.size == size == tuple(frame.shape)
    quarters = {(row, column): float(frame[row, column]) for row in (0, -1) for column in (0, -1)}
    assert quarters.pop(corner) > 180
    assert max(quarters.values()) < 40


def encode(path: Path, frames: list[Tensor], aspect: Fraction | None = None, **options: str) -> Path:
    """Writes an H.264 file with PyAV alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[1:], "yuv420p"
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).numpy(), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("aspect", "size"), [(Fraction(2), (48, 128)), (Fraction(1, 2), (96, 64)), (Fraction(4, 3), (48, 85))]
)
def test_pixels_become_square(tmp_path, aspect, size):
    """No resampling loses pixels: wide pixels stretch the width, narrow pixels the height."""
    source = open_source(encode(tmp_path / "wide.mp4", [plain(COLOURS[0])] * 3, aspect))
    assert source.size == size
    assert [tuple(frame.shape[1:]) for frame in source] == [size] * 3


def test_an_impossible_pixel_shape_is_ignored_and_logged(tmp_path, caplog):
    source = open_source(encode(tmp_path / "odd.mp4", [plain(COLOURS[0])] * 3, Fraction(20)))
    assert source.size == (48, 64)
    assert "pixels of 20:1 are read as square" in caplog.text


def test_time_stamps_of_a_varying_rate_are_read_and_written(tmp_path):
    times = [0.0, 0.1, 0.2, 1.2, 2.2, 2.3]
    with VideoWriter(tmp_path / "vfr.mp4", 10, (48, 64)) as writer:
        for time in times:
            writer.write(plain(COLOURS[0]), time)
    source = open_source(tmp_path / "vfr.mp4")
    assert [time for _, time in source.read()] == pytest.approx(times, abs=1e-4)
    constant = open_source(tmp_path / "vfr.mp4", fps=4)
    assert [time for _, time in constant.read()] == [0, 0.25, 0.5, 0.75, 1, 1.25]


def test_time_stamps_that_do_not_increase_are_moved(tmp_path):
    with VideoWriter(tmp_path / "same.mp4", 10, (48, 64)) as writer:
        for time in (0.0, 0.0, 0.5, 0.4):
            writer.write(plain(COLOURS[0]), time)
    times = [time for _, time in open_source(tmp_path / "same.mp4").read()]
    assert times == sorted(set(times))
    assert times == pytest.approx([0, 0, 0.5, 0.5], abs=1e-3)


# --- Several streams ---


def write_streams(path: Path, streams: list[tuple[int, int, bool]]) -> Path:
    """Writes (size, frames, default) streams of one colour each into one file, muxed one after the other."""
    with av.open(str(path), "w") as container:
        added = []
        for size, _, default in streams:
            stream = container.add_stream("libx264", rate=10)
            stream.height = stream.width = size
            stream.pix_fmt = "yuv420p"
            stream.disposition = av.stream.Disposition.default if default else av.stream.Disposition(0)
            added.append(stream)
        for stream, (size, frames, _) in zip(added, streams, strict=True):
            for _ in range(frames):
                picture = av.VideoFrame.from_ndarray(plain(COLOURS[0], size, size).permute(1, 2, 0).numpy())
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("streams", "size"),
    [
        ([(32, 1, True), (64, 5, False)], 64),  # a picture in front of the film
        ([(32, 5, False), (64, 3, True)], 64),  # the default stream
        ([(32, 3, False), (64, 5, False)], 64),  # the longest stream
        ([(32, 5, False), (64, 5, False)], 32),
    ],
)
def test_of_several_video_streams_the_film_is_read(tmp_path, caplog, streams, size):
    source = open_source(write_streams(tmp_path / "two.mkv", streams))
    assert source.size == (size, size)
    assert len(list(source)) == next(frames for edge, frames, _ in streams if edge == size)
    assert f"two.mkv: 2 video streams; stream {size // 64} ({size}x{size} pixels) is read" in caplog.text


def test_cover_art_is_skipped_without_a_message(tmp_path, caplog):
    with av.open(str(tmp_path / "cover.mp4"), "w") as container:
        cover, film = container.add_stream("mjpeg", rate=1), container.add_stream("libx264", rate=10)
        cover.disposition = av.stream.Disposition.attached_pic
        for stream, size, form in ((cover, 32, "yuvj420p"), (film, 64, "yuv420p")):
            stream.height, stream.width, stream.pix_fmt = size, size, form
        for stream, size, frames in ((cover, 32, 1), (film, 64, 5)):
            for _ in range(frames):
                picture = av.VideoFrame.from_ndarray(plain(COLOURS[0], size, size).permute(1, 2, 0).numpy())
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    source = open_source(tmp_path / "cover.mp4")
    assert (source.size, len(list(source))) == ((64, 64), 5)
    assert caplog.text == ""


# --- Damaged videos ---


def test_frames_lost_at_the_start_are_counted(tmp_path, caplog):
    """The first group of pictures is overwritten; reading starts at the next key frame."""
    noise = [torch.randint(0, 255, (3, 48, 64), dtype=torch.uint8) for _ in range(12)]
    path = encode(tmp_path / "lost.ts", noise, None, g="6", bf="0", sc_threshold="0")
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, 6]
        end = packets[6].pos
    for start in range(0, end, 188):  # packets of a transport stream; the header of 8 bytes stays
        if content[start + 1] & 0x1F == 1 and not content[start + 1] & 0x40:
            content[start + 8 : start + 188] = bytes(180)
    path.write_bytes(content)
    frames = list(open_source(path).read())
    assert frames[0][1] == 0
    lost = re.search(r"at least (\d+) frames lost", caplog.text)
    # The demuxer may join two damaged packets.
    assert lost is not None
    assert 4 <= int(lost[1]) <= 12 - len(frames) <= 8


def test_frames_decoded_in_part_are_counted(tmp_path, caplog):
    """The decoder guesses what it cannot read, and delivers all frames."""
    noise = [torch.randint(0, 255, (3, 48, 64), dtype=torch.uint8) for _ in range(6)]
    path = encode(tmp_path / "guessed.mkv", noise, None, g="6", bf="0")
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][2]
    middle = packet.pos + packet.size // 2
    content[middle : middle + 50] = b"\xff" * 50
    path.write_bytes(content)
    assert len(list(open_source(path))) == 6
    assert "guessed.mkv: at least 1 frame decoded in part: the data are damaged" in caplog.text


def test_frames_that_an_edit_list_hides_do_not_count(tmp_path):
    """A video cut without encoding begins with frames that are decoded and not shown."""
    whole = encode(tmp_path / "whole.mkv", [plain(COLOURS[i % 3]) for i in range(8)], None, g="8", bf="0")
    path = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.pts is not None:
                packet.pts = packet.dts = packet.pts - 300  # ms: the first three frames have negative times
                packet.stream = stream
                target.mux(packet)
    source = open_source(path)
    assert (source.length, len(list(source))) == (5, 5)


def test_a_whole_video_has_no_lost_frames(tmp_path, caplog):
    """B-frames arrive out of order, and the container declares no count."""
    frames = [torch.randint(0, 255, (3, 48, 64), dtype=torch.uint8) for _ in range(30)]
    assert len(list(open_source(encode(tmp_path / "whole.ts", frames, None, bf="3")))) == 30
    assert caplog.text == ""


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 2)])
def test_a_video_too_large_for_the_encoder_is_refused(tmp_path, size):
    with pytest.raises(UserError, match=rf"^{size[1]}x{size[0]} pixels: an H.264 video has at most 16384"):
        VideoWriter(tmp_path / "large.mp4", 10, size)
    assert list(tmp_path.iterdir()) == []


def test_a_video_of_one_pixel_is_padded(tmp_path):
    assert open_source(write_video(tmp_path / "one.mp4", [plain(COLOURS[0], 1, 1)])).size == (2, 2)


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


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "apng", "tiff"])
def test_an_image_file_of_several_frames_is_a_video(tmp_path, suffix):
    """Durations of 100 and 500 ms; TIFF has none and defaults to 10 frames per second."""
    pictures = [Image.new("RGB", (64, 48), colour) for colour in COLOURS]
    path = tmp_path / f"moving.{suffix}"
    options = {} if suffix == "tiff" else {"duration": [100, 500, 100], "lossless": suffix == "webp"}
    form = "PNG" if suffix == "apng" else None
    pictures[0].save(path, form, save_all=True, append_images=pictures[1:], **options)
    source = open_source(path)
    assert source.size == (48, 64)
    frames, times = zip(*source.read(), strict=True)
    assert times == pytest.approx([0, 0.1, 0.2] if suffix == "tiff" else [0, 0.1, 0.6])
    for frame, expected in zip(frames, COLOURS, strict=True):
        torch.testing.assert_close(mean_colour(frame), torch.tensor(expected).float(), atol=6, rtol=0)


def test_the_fallback_image_of_an_apng_is_not_a_frame(tmp_path):
    pictures = [Image.new("RGB", (8, 6), colour) for colour in COLOURS]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:], default_image=True)
    frames = [mean_colour(frame).tolist() for frame in open_source(tmp_path / "a.png")]
    assert frames == [list(colour) for colour in COLOURS[1:]]


def test_thumbnails_of_a_tiff_are_not_frames(tmp_path):
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "scan.tiff"), True) as writer:
        Image.new("RGB", (8, 6), COLOURS[0]).save(writer, "TIFF")
        writer.newFrame()
        Image.new("RGB", (4, 3)).save(writer, "TIFF", tiffinfo={254: 1})
    assert open_source(tmp_path / "scan.tiff").length == 1


def test_the_second_picture_of_a_camera_jpeg_is_not_a_frame(tmp_path):
    first, preview = Image.new("RGB", (64, 48)), Image.new("RGB", (32, 24))
    first.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[preview])
    assert open_source(tmp_path / "photo.jpg").length == 1


def test_an_animation_among_the_frames_of_a_folder_is_refused(tmp_path):
    write_images(tmp_path, ["1.png", "2.png"], (64, 48))
    pictures = [Image.new("RGB", (64, 48), colour) for colour in COLOURS]
    pictures[0].save(tmp_path / "3.webp", save_all=True, append_images=pictures[1:])
    with pytest.raises(UserError, match=r"3\.webp: 3 frames in one of 3 images"):
        open_source(tmp_path)


def test_names_with_superscript_digits_are_ordered():
    """`str.isdigit` accepts characters that `int` rejects."""
    assert sorted(["²", "b10", "b٣"], key=natural_key) == ["b٣", "b10", "²"]


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
