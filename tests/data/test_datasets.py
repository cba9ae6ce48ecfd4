"""The reader of YouTube-VIS and OVIS files: a hand-made file of two videos, and errors of invalid files."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from local2global.data.datasets import VideoDataset, merge
from local2global.data.readers.images import read_image
from local2global.data.readers.rle import encode_mask
from local2global.data.readers.youtube_vis import load_youtube_vis
from local2global.errors import UserError

HEIGHT, WIDTH = 4, 6
CLASSES = [{"id": 3, "name": "car"}, {"id": 18, "name": "dog"}]


def square(top: int, left: int) -> torch.Tensor:
    """A mask of 2x2 pixels."""
    mask = torch.zeros((HEIGHT, WIDTH), dtype=torch.bool)
    mask[top : top + 2, left : left + 2] = True
    return mask


def runs(mask: torch.Tensor) -> dict[str, Any]:
    """Uncompressed RLE: run lengths in column order, background first."""
    flat = mask.T.flatten().tolist()
    counts, value = [0], False
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def content() -> dict[str, Any]:
    """A dog in frames 0 and 2 of "yard"; in "road" a car as a polygon and an ignore region."""
    polygon = [[1, 1, 3, 1, 3, 3, 1, 3]]
    return {
        "videos": [
            {
                "id": 4,
                "height": HEIGHT,
                "width": WIDTH,
                "length": 3,
                "file_names": [f"yard/{t}.png" for t in range(3)],
            },
            {"id": 9, "height": HEIGHT, "width": WIDTH, "length": 1, "file_names": ["road/0.png"]},
        ],
        "annotations": [
            {
                "id": 17,
                "video_id": 4,
                "category_id": 18,
                "segmentations": [encode_mask(square(0, 0)), None, runs(square(1, 3))],
            },
            {
                "id": 20,
                "video_id": 9,
                "category_id": 3,
                "iscrowd": 1,
                "segmentations": [encode_mask(square(2, 2))],
            },
            {"id": 21, "video_id": 9, "category_id": 3, "iscrowd": 0, "segmentations": [polygon]},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
    }


def write(folder: Path, data: Any) -> tuple[Path, Path]:
    """The image folder and the annotation file of `data`; frame t has grey value 10 t."""
    for video in data["videos"]:
        for t, name in enumerate(video.get("file_names", ())):
            path = folder / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT), (10 * t, 10 * t, 10 * t)).save(path)
    file = folder / "instances.json"
    file.write_text(json.dumps(data))
    return folder / "images", file


@pytest.fixture
def dataset(tmp_path: Path) -> VideoDataset:
    """The two videos of `content`."""
    return load_youtube_vis(*write(tmp_path, content()))


def message(folder: Path, data: Any, **options: Any) -> str:
    """The error message of loading `data`."""
    with pytest.raises(UserError) as caught:
        load_youtube_vis(*write(folder, data), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_classes_come_from_the_file_in_the_order_of_their_ids(dataset):
    assert dataset.classes == CLASSES
    assert [video.labels.tolist() for video in dataset.videos] == [[1], [0]]


def test_a_record_has_the_annotated_instances(dataset):
    yard = dataset.videos[0]
    assert (yard.id, yard.name, yard.size, yard.length) == (4, "yard", (HEIGHT, WIDTH), 3)
    assert yard.ids.tolist() == [17]
    assert yard.ids.dtype == yard.labels.dtype == torch.int64
    assert [yard.present(t).tolist() for t in range(3)] == [[True], [False], [True]]
    assert torch.equal(yard.masks(0)[0], square(0, 0))
    assert not yard.masks(1).any()
    assert torch.equal(yard.masks(2)[0], square(1, 3)), "an uncompressed RLE"


def test_a_polygon_becomes_the_pixels_it_encloses(dataset):
    assert torch.equal(dataset.videos[1].masks(0)[0], square(1, 1))


def test_frames_are_read_lazily(dataset, tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)).save(tmp_path / "images/yard/1.png")
    frame = dataset.videos[0].frame(1)
    assert frame.dtype == torch.uint8
    assert frame.shape == (3, HEIGHT, WIDTH)
    assert frame[:, 0, 0].tolist() == [1, 2, 3]


def test_crowds_are_in_the_ground_truth_only(dataset):
    assert dataset.videos[1].ids.tolist() == [21]
    crowds = {a["id"]: a["iscrowd"] for a in dataset.truth()["annotations"]}
    assert crowds == {17: 0, 20: 1, 21: 0}


def test_the_ground_truth_is_json_with_the_masks_of_the_records(dataset):
    truth = json.loads(json.dumps(dataset.truth()))
    assert truth["categories"] == CLASSES
    dog, _, car = truth["annotations"]
    assert dog["segmentations"][1] is None
    assert dog["areas"] == [4, None, 4]
    assert dog["bboxes"] == [[0, 0, 2, 2], None, [3, 1, 2, 2]]
    assert np.array_equal(rle.decode(dog["segmentations"][2]), square(1, 3).numpy())
    assert np.array_equal(rle.decode(car["segmentations"][0]), square(1, 1).numpy())


def test_ground_truth_encoded_from_records_equals_the_files(dataset):
    made = VideoDataset(dataset.videos, dataset.classes).truth()
    read = [a for a in dataset.truth()["annotations"] if not a["iscrowd"]]
    for one, other in zip(made["annotations"], read, strict=True):
        assert {key: one[key] for key in ("id", "video_id", "category_id", "areas", "bboxes")} == {
            key: other[key] for key in ("id", "video_id", "category_id", "areas", "bboxes")
        }
        assert one["segmentations"] == other["segmentations"]


def test_the_areas_of_the_file_are_used(tmp_path):
    data = content()
    data["annotations"][0]["areas"] = [5, None, 7]
    assert load_youtube_vis(*write(tmp_path, data)).truth()["annotations"][0]["areas"] == [5, None, 7]


def test_an_empty_mask_means_absent(tmp_path):
    data = content()
    data["annotations"][0]["segmentations"][0] = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    yard = load_youtube_vis(*write(tmp_path, data)).videos[0]
    assert yard.present(0).tolist() == [False]
    assert not yard.masks(0).any()


@pytest.mark.parametrize("seed", range(5))
def test_compressed_and_uncompressed_rle_decode_to_the_mask(tmp_path, seed):
    """Long, short and zero runs: counts of several characters and negative differences occur."""
    mask = torch.zeros((300, 400), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    mask[:, 200:] = torch.rand((300, 200), generator=generator) < 0.5 / (1 + seed)
    data = content()
    data["videos"] = [{"id": 4, "height": 300, "width": 400, "file_names": ["a/0.png", "a/1.png"]}]
    flat = np.concatenate([[0], mask.T.flatten().numpy().astype(int), [1 - int(mask[-1, -1])]])
    counts = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat))])).tolist()
    plain = {
        "size": [300, 400],
        "counts": [*counts, 300 * 400 - sum(counts)] if sum(counts) < 120000 else counts,
    }
    data["annotations"] = [{**data["annotations"][0], "segmentations": [encode_mask(mask), plain]}]
    video = load_youtube_vis(*write(tmp_path, data)).videos[0]
    assert torch.equal(video.masks(0)[0], mask)
    assert torch.equal(video.masks(1)[0], mask)


@pytest.mark.parametrize("absent", ["missing", "null"])
def test_a_file_without_annotations_is_a_test_set(tmp_path, absent):
    data = content()
    data["annotations"] = None
    if absent == "missing":
        del data["annotations"]
    dataset = load_youtube_vis(*write(tmp_path, data))
    assert len(dataset.videos[0].labels) == 0
    assert dataset.videos[0].masks(0).shape == (0, HEIGHT, WIDTH)
    assert "annotations" not in dataset.truth()


def test_a_class_list_determines_the_labels(tmp_path):
    classes = [{"id": 18, "name": "dog"}, {"id": 5, "name": "train"}, {"id": 3, "name": "Car"}]
    dataset = load_youtube_vis(*write(tmp_path, content()), classes=classes)
    assert [video.labels.tolist() for video in dataset.videos] == [[0], [2]]
    assert [c["id"] for c in dataset.truth()["categories"]] == [18, 5, 3]


def test_videos_are_selected_and_excluded_by_name(tmp_path):
    paths = write(tmp_path, content())
    road = load_youtube_vis(*paths, videos=["road"])
    assert [video.name for video in road.videos] == ["road"]
    assert [a["id"] for a in road.truth()["annotations"]] == [20, 21]
    assert [video.name for video in load_youtube_vis(*paths, exclude=["road"]).videos] == ["yard"]


def test_records_can_be_pickled(dataset):
    sent = pickle.loads(pickle.dumps(dataset)).videos[0]
    assert torch.equal(sent.masks(2), dataset.videos[0].masks(2))


# ----------------------------------------------------------------------------------------------- broken files


def test_too_many_segmentations_are_refused(tmp_path):
    data = content()
    data["annotations"][0]["segmentations"].append(None)
    expected = 'instances.json: annotation 17 (video 4, "yard"): 4 segmentations for a video of 3 frames. '
    assert message(tmp_path, data).startswith(expected)


def test_an_unknown_category_is_refused(tmp_path):
    data = content()
    data["annotations"][0]["category_id"] = 99
    place, problem = 'annotation 17 (video 4, "yard")', "category_id 99 is not among the categories (3, 18)"
    assert message(tmp_path, data).startswith(f"instances.json: {place}: {problem}. ")


def test_a_class_list_of_another_dataset_is_refused(tmp_path):
    text = message(tmp_path, content(), classes=[{"id": 3, "name": "person"}, CLASSES[1]])
    assert text.startswith('instances.json: category 3: "car", but the class list says "person". ')


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("video_id", "annotation 17: video_id null, but the file has no such video"),
        (
            "category_id",
            'annotation 17 (video 4, "yard"): category_id null is not among the categories (3, 18)',
        ),
        ("segmentations", 'annotation 17 (video 4, "yard"): no segmentations'),
        ("id", "annotation at position 0: no id"),
    ],
)
def test_a_missing_key_is_refused(tmp_path, key, problem):
    data = content()
    del data["annotations"][0][key]
    assert message(tmp_path, data).startswith(f"instances.json: {problem}. ")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"video_id": 5}, "annotation 17: video_id 5, but the file has no such video"),
        ({"video_id": "4"}, 'annotation 17: video_id "4", but the file has no such video'),
        ({"video_id": [4]}, "annotation 17: video_id [4], but the file has no such video"),
        ({"id": 21}, "annotation 21: this id is used twice (positions 0 and 2)"),
        ({"id": None}, "annotation at position 0: its id is null"),
    ],
)
def test_an_invalid_value_of_an_annotation_is_refused(tmp_path, change, problem):
    data = content()
    data["annotations"][0].update(change)
    assert message(tmp_path, data).startswith(f"instances.json: {problem}. ")


@pytest.mark.parametrize(
    "mask",
    [
        {"size": [HEIGHT, WIDTH], "counts": [1, 2, 3]},
        {"size": [HEIGHT, WIDTH], "counts": [-1, 25]},
        {"size": [HEIGHT, WIDTH], "counts": "11"},
        {"size": [HEIGHT, WIDTH], "counts": "zzz"},
        {"size": [HEIGHT, WIDTH], "counts": "\x01"},
        {"size": [HEIGHT, WIDTH], "counts": "é"},
        {"size": [HEIGHT, WIDTH], "counts": ""},
        {"size": [HEIGHT, WIDTH]},
        {"size": [WIDTH, HEIGHT], "counts": [24]},
        {"counts": [24]},
        {"size": [HEIGHT, WIDTH], "counts": [24.0]},
        {"size": HEIGHT, "counts": [24]},
        [],
        [[0, 0, 2, 2, 1]],
        [[0, 0, 2, 2, 1, float("inf")]],
        [[0, 0, 2, 2, [1], 1]],
        [[0, 0, 2, 2]],
        [[0, 0, "a", 2, 3, 4]],
        7,
    ],
)
def test_a_malformed_mask_is_refused_with_its_frame(tmp_path, mask):
    data = content()
    data["annotations"][0]["segmentations"][2] = mask
    assert message(tmp_path, data).startswith('instances.json: annotation 17 (video 4, "yard"): frame 2: ')


def test_a_video_without_frames_is_refused(tmp_path):
    data = content()
    data["videos"][0].update(length=0, file_names=[])
    assert message(tmp_path, data).startswith("instances.json: video 4: no file_names. ")


def test_a_wrong_video_length_is_refused(tmp_path):
    data = content()
    data["videos"][0]["length"] = 5
    assert message(tmp_path, data).startswith("instances.json: video 4: length 5, but 3 file names. ")


def test_an_unknown_video_name_is_refused_with_a_suggestion(tmp_path):
    assert (
        message(tmp_path, content(), videos=["raod"])
        == 'instances.json: no video "raod". Did you mean "road"?'
    )


def test_malformed_json_is_refused_with_line_and_column(tmp_path):
    file = tmp_path / "instances.json"
    file.write_text('{"videos": [\n  {"id": 1,,}')
    with pytest.raises(UserError, match=r"instances\.json: not JSON: line 2, column 12"):
        load_youtube_vis(tmp_path, file)


@pytest.mark.parametrize("text", ["[]", "{}", '{"videos": 3}'])
def test_json_of_another_form_is_refused(tmp_path, text):
    file = tmp_path / "instances.json"
    file.write_text(text)
    with pytest.raises(UserError, match="not a YouTube-VIS annotation file"):
        load_youtube_vis(tmp_path, file)


def test_a_missing_annotation_file_or_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json: no such annotation file"):
        load_youtube_vis(tmp_path, tmp_path / "nowhere.json")
    _, file = write(tmp_path, content())
    with pytest.raises(UserError, match="no such image folder"):
        load_youtube_vis(tmp_path / "nowhere", file)


# ----------------------------------------------------------------------------------------------------- images


def test_a_missing_image_is_reported_with_its_path(dataset, tmp_path):
    path = tmp_path / "images/yard/1.png"
    path.unlink()
    with pytest.raises(UserError) as caught:
        dataset.videos[0].frame(1)
    assert str(caught.value).startswith(f"{path}: no such image file")


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_truncated_image_is_reported_with_its_path(tmp_path, kind):
    path = tmp_path / f"frame.{kind}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match=rf"frame\.{kind}: not a readable image"):
        read_image(path)


def test_a_text_file_is_not_an_image(tmp_path):
    path = tmp_path / "frame.jpg"
    path.write_text("hello")
    with pytest.raises(UserError, match="not a readable image"):
        read_image(path)


def test_an_image_of_another_size_is_refused(dataset, tmp_path):
    Image.new("RGB", (5, 5)).save(tmp_path / "images/yard/1.png")
    with pytest.raises(UserError, match=r"5x5 pixels .* but its annotations say 4x6"):
        dataset.videos[0].frame(1)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 7, [7, 7, 7]),
        ("RGBA", (1, 2, 3, 0), [1, 2, 3]),
        ("LA", (9, 0), [9, 9, 9]),
        ("1", 1, [255, 255, 255]),
    ],
)
def test_grey_and_transparent_images_become_rgb(tmp_path, mode, colour, expected):
    Image.new(mode, (3, 2), colour).save(tmp_path / "frame.png")
    image = read_image(tmp_path / "frame.png")
    assert image.shape == (3, 2, 3)
    assert image[:, 1, 1].tolist() == expected


def test_a_photo_is_rotated_upright_by_its_exif_data(tmp_path):
    """EXIF orientation 6: the stored image must be rotated clockwise by 90 degrees."""
    stored = Image.new("RGB", (3, 2))
    stored.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "frame.png", exif=exif)
    image = read_image(tmp_path / "frame.png")
    assert image.shape == (3, 3, 2)
    assert image[0].nonzero().tolist() == [[0, 1]]


# ------------------------------------------------------------------------------------------------------ merge


@pytest.fixture
def merged(tmp_path: Path, dataset: VideoDataset) -> VideoDataset:
    """`content` and a second file with the same video id 4 and annotation id 17, a bird."""
    data = content()
    data["videos"], data["annotations"] = data["videos"][:1], data["annotations"][:1]
    data["annotations"][0]["category_id"] = 16
    data["categories"] = [{"id": 16, "name": "bird"}]
    (tmp_path / "second").mkdir()
    return merge(dataset, load_youtube_vis(*write(tmp_path / "second", data)))


def test_merged_class_lists_are_united_by_id(merged):
    assert merged.classes == [{"id": 3, "name": "car"}, {"id": 16, "name": "bird"}, {"id": 18, "name": "dog"}]
    assert [video.labels.tolist() for video in merged.videos] == [[2], [0], [1]]


def test_merged_ids_are_renumbered_from_one(merged):
    assert [video.id for video in merged.videos] == [1, 2, 3]
    assert [video.ids.tolist() for video in merged.videos] == [[1], [2], [3]]


def test_the_merged_ground_truth_agrees_with_the_records(merged):
    truth = merged.truth()
    assert [video["id"] for video in truth["videos"]] == [1, 2, 3]
    rows = [(a["id"], a["video_id"], a["category_id"], a["iscrowd"]) for a in truth["annotations"]]
    assert rows == [(1, 1, 18, 0), (4, 2, 3, 1), (2, 2, 3, 0), (3, 3, 16, 0)]
    assert truth["categories"] == merged.classes


def test_merged_records_have_the_original_frames_and_masks(merged, dataset):
    assert torch.equal(merged.videos[1].masks(0), dataset.videos[1].masks(0))
    assert torch.equal(merged.videos[0].frame(2), dataset.videos[0].frame(2))
    assert merged.videos[0].present(1).tolist() == [False]


def test_crowds_of_merged_files_have_unique_ids(dataset):
    ids = [annotation["id"] for annotation in merge(dataset, dataset, dataset).truth()["annotations"]]
    assert sorted(ids) == list(range(1, 10))


def test_merging_class_lists_with_conflicting_names_is_refused(dataset):
    other = VideoDataset(dataset.videos, [{"id": 3, "name": "bus"}, CLASSES[1]])
    with pytest.raises(UserError, match='category 3 is "car" in one dataset and "bus" in another'):
        merge(dataset, other)


def test_merging_keeps_the_order_of_a_common_class_list(dataset):
    classes = list(reversed(CLASSES))
    assert (
        merge(VideoDataset(dataset.videos, classes), VideoDataset(dataset.videos, classes)).classes == classes
    )


# ------------------------------------------------------------------------------------------------- real clips


def shared_data() -> Path:
    """The folder of real clips, or a skipped test."""
    shared = os.environ.get("L2G_SHARED") or Path(__file__).parents[3] / "shared"
    data = Path(os.environ.get("L2G_DATA") or Path(shared) / "data")
    if not (data / "clips" / "instances.json").is_file():
        pytest.skip(f"no real clips under {data}: set L2G_DATA")
    return data


@pytest.mark.data
def test_real_clips_and_composites_make_one_dataset():
    """14 real clips and 6 composites: encoding the decoded masks gives the file's ground truth."""
    data = shared_data()
    parts = [
        load_youtube_vis(data / p / "JPEGImages", data / p / "instances.json")
        for p in ("clips", "composites")
    ]
    both = merge(*parts)
    assert len(both) == 20
    assert len({video.name for video in both.videos}) == 20
    read = {a["id"]: a for a in both.truth()["annotations"] if not a["iscrowd"]}
    some = [both.videos[i] for i in (0, 2, 16)]
    for annotation in VideoDataset(some, both.classes).truth()["annotations"]:
        assert annotation["segmentations"] == read[annotation["id"]]["segmentations"]
        assert annotation["areas"] == read[annotation["id"]]["areas"]
        assert annotation["category_id"] == read[annotation["id"]]["category_id"]
    for video in both.videos:
        assert video.frame(video.length - 1).shape == (3, *video.size)
