"""Hypothesis strategies: mutated valid inputs, and hostile ones made from nothing."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import seeds
import torch
import yaml
from hypothesis import strategies as st

Files = dict[str, bytes | Path]

#: JSON cannot write an integer of thousands of digits; this text is replaced by one.
DIGITS = "@digits@"
DEEP = "@deep@"

VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        7,
        0.5,
        255,
        32768,
        2**31 - 1,
        2**31,
        2**32,
        2**53,
        2**63,
        -(2**63) - 1,
        2**70,
    ),
    *(1e-300, 1e308, -1e30, float("nan"), float("inf"), 1.5, DIGITS, DEEP),
    *(
        "",
        "a",
        "0",
        "1",
        "b\n",
        "\x00",
        "../../x",
        "/etc/passwd",
        "~",
        "\ud800",
        "é",
        "x" * 3000,
        "C:\\x\\y.jpg",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        [1, 2],
        {"id": 1},
        {"size": [24, 32], "counts": "0"},
        [0] * 7,
        [1.5, "a", 3, 4, 5, 6],
    ),
]
"""Replacements for a value of a JSON or yaml document."""


VALUE_EDITS = ["replace", "replace", "replace", "delete", "repeat", "rename", "exchange", "nudge"]
BYTE_EDITS = ["flip", "flip", "write", "write", "extreme", "remove", "repeat", "insert", "cut"]


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values below a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from nodes(item, (*path, key))


@st.composite
def mutated(draw: Callable[..., Any], document: Any, values: list[Any] = VALUES, most: int = 3) -> Any:
    """A JSON document with one to three values replaced, deleted, repeated, renamed or exchanged."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, most))):
        paths = list(nodes(document))
        if not paths:
            return draw(st.sampled_from(values))
        path = draw(st.sampled_from(paths))
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        last = path[-1]
        edit = draw(st.sampled_from(VALUE_EDITS))
        if edit == "delete":
            del parent[last]
        elif edit == "repeat" and isinstance(parent, list):
            parent.insert(draw(st.integers(0, len(parent))), copy.deepcopy(parent[last]))
        elif edit == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["id", "size", "counts", "x", str(last).upper(), ""]))] = parent.pop(
                last
            )
        elif edit == "exchange":
            other = document
            for key in draw(st.sampled_from(paths)):
                other = other[key]
            parent[last] = copy.deepcopy(other)
        elif edit == "nudge" and isinstance(parent[last], (int, float)):
            parent[last] += draw(st.sampled_from([-1, 1, 0.5, 1000]))
        else:
            parent[last] = copy.deepcopy(draw(st.sampled_from(values)))
    return document


def to_json(document: Any) -> bytes:
    """JSON text, with the numbers and the nesting that `json.dumps` cannot write."""
    text = json.dumps(document).encode()
    text = text.replace(json.dumps(DIGITS).encode(), b"9" * 5000)
    return text.replace(json.dumps(DEEP).encode(), b"[" * 3000 + b"]" * 3000)


@st.composite
def damaged(draw: Callable[..., Any], data: bytes, most: int = 4) -> bytes:
    """Bytes with some of them changed, removed, repeated or inserted."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, most))):
        size = len(changed)
        place = draw(st.integers(0, max(0, size - 1)))
        length = draw(st.sampled_from([1, 1, 2, 4, 8, 64]))
        edit = draw(st.sampled_from(BYTE_EDITS))
        if edit == "flip" and size:
            changed[place] ^= 1 << draw(st.integers(0, 7))
        elif edit == "write":
            new = draw(st.binary(min_size=1, max_size=length))
            changed[place : place + len(new)] = new
        elif edit == "extreme":
            width = draw(st.sampled_from([1, 2, 4, 8]))
            new = draw(
                st.sampled_from(
                    [b"\xff", b"\x00", b"\x7f\xff\xff\xff\xff\xff\xff\xff", b"\x80\0\0\0\0\0\0\0"]
                )
            )
            changed[place : place + width] = (new * 8)[:width]
        elif edit == "remove":
            del changed[place : place + length]
        elif edit == "repeat":
            changed[place:place] = changed[place : place + length]
        elif edit == "insert":
            changed[place:place] = draw(st.binary(min_size=1, max_size=length))
        elif edit == "cut":
            del changed[place:]
    return bytes(changed)


def document(name: str, content: Any) -> st.SearchStrategy[Files]:
    """A JSON file: mostly changed in its values, sometimes in its bytes."""
    plain = to_json(content)
    return st.one_of(
        mutated(content).map(to_json),
        mutated(content).map(to_json),
        mutated(content).map(to_json),
        damaged(plain),
    ).map(lambda data: {name: data})


def damaged_files(files: dict[str, bytes]) -> st.SearchStrategy[Files]:
    """One of some files, damaged."""
    return st.sampled_from(sorted(files)).flatmap(
        lambda name: st.one_of(damaged(files[name]), st.just(files[name])).map(lambda data: {name: data})
    )


# --- Masks ---

SIZES = [(24, 32), (1, 1), (3, 5), (1, 64), (24, 33), (32768, 32768), (1 << 20, 1 << 20)]


@st.composite
def masks(draw: Callable[..., Any]) -> Files:
    """RLE of every kind and polygons, valid and not."""
    height, width = size = draw(st.sampled_from(SIZES))
    stated = draw(
        st.sampled_from([list(size), list(size), list(size), [width, height], [height], None, [1.0, 2]])
    )
    pixels = height * width
    total = draw(st.sampled_from([pixels, pixels, pixels, pixels - 1, pixels + 1, 2**32 + pixels]))
    cuts = draw(st.lists(st.integers(0, max(0, total)), max_size=8))
    ends = [0, *sorted(cuts), max(0, total)]
    runs: list[Any] = [b - a for a, b in itertools.pairwise(ends)]
    kind = draw(
        st.sampled_from(["list", "text", "text", "letters", "mutated", "polygons", "polygons", "odd"])
    )
    segmentation: Any = {"size": stated, "counts": runs}
    if kind == "text":
        segmentation["counts"] = compress(runs)
    elif kind == "letters":
        segmentation["counts"] = draw(
            st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=20)
        )
    elif kind == "mutated":
        segmentation = draw(mutated(segmentation))
    elif kind == "polygons":
        number = st.one_of(
            st.integers(-5, 40), st.floats(-1e3, 1e3), st.sampled_from([1e30, 2**31, 330, -320, 0.5])
        )
        segmentation = draw(st.lists(st.lists(number, max_size=12), max_size=3))
    elif kind == "odd":
        segmentation = draw(st.sampled_from(VALUES))
    return {"mask.json": to_json({"segmentation": segmentation, "size": list(size)})}


def compress(runs: list[int]) -> str:
    """COCO's text of run lengths."""
    text = ""
    for n, run in enumerate(runs):
        value = run - (runs[n - 2] if n > 2 else 0)
        more = True
        while more:
            digit = value & 31
            value >>= 5
            more = value != (-1 if digit & 16 else 0)
            text += chr(digit + 32 * more + 48)
    return text


# --- Configs and overrides ---

TARGETS = [
    *("os.system", "builtins.eval", "torch.hub.load", "torch.load", "torch.nn.Linear", "x", ""),
    *("local2global.data.writers.write_youtube_vis", "local2global.modeling.model.Local2Global"),
    "torch.nn.modules.module.Module",
]
CONFIG_VALUES = [
    *VALUES,
    *({"_target_": name, "path": "x"} for name in TARGETS),
    *(
        "${model.classes}",
        "${oc.env:HOME}",
        "${x",
        "${len:${model.classes}}",
        "${model}",
        "???",
        "no",
        "1e3",
        ".inf",
    ),
]


def yaml_files(content: Any) -> st.SearchStrategy[bytes]:
    """A changed yaml config."""

    def dump(value: Any) -> bytes:
        return yaml.safe_dump(value, sort_keys=False).encode("utf-8", "surrogatepass")

    tags = [
        "!!python/object/apply:os.system [x]",
        "&a [*a, *a]",
        "*b",
        "<<: *c",
        "? {a: b} : c",
        "!x y",
        "%TAG",
        "\t",
    ]
    plain = dump(content)
    tagged = st.tuples(st.sampled_from(tags), st.integers(0, plain.count(b"\n"))).map(
        lambda pair: b"\n".join(
            [*(lines := plain.split(b"\n"))[: pair[1]], pair[0].encode(), *lines[pair[1] :]]
        )
    )
    changed = mutated(content, CONFIG_VALUES).map(dump)
    return st.one_of(changed, changed, changed, tagged, damaged(plain))


def override_files(keys: list[str]) -> st.SearchStrategy[Files]:
    """Up to three overrides of a config."""
    words = [
        *(
            "1",
            "0",
            "-1",
            "300",
            "no",
            "yes",
            "true",
            "null",
            "''",
            "a",
            "[1,2]",
            "[",
            "{a:1}",
            "{",
            "1e30",
            ".5",
        ),
        *(
            "nan",
            "${model.test_size}",
            "${x}",
            "${oc.env:HOME}",
            "~",
            "~/x",
            "a=b",
            "x,y",
            "bypass",
            '"',
            "é",
        ),
        *(
            "\ud800",
            "a b",
            "???",
            "9" * 30,
            "9" * 5000,
            "{_target_:os.system}",
            "\n",
            "choice(1,2)",
            "range(1,5)",
        ),
        "'\\'",
    ]
    parts = ["x", "_target_", "0", "", ".", "[0]", "@a", "__class__", "model", "keys"]
    key = st.one_of(
        st.sampled_from(keys),
        st.sampled_from(keys),
        st.tuples(st.sampled_from(keys), st.sampled_from(parts)).map(".".join),
        st.tuples(st.sampled_from(keys), st.integers(0, 30)).map(lambda pair: pair[0][: pair[1]]),
        st.text(max_size=12),
    )
    value = st.one_of(st.sampled_from(words), st.sampled_from(words), st.text(max_size=12))
    text = st.tuples(
        st.sampled_from(["", "", "", "+", "++", "~", "~"]), key, st.sampled_from(["=", "=", "=", ""]), value
    )
    return st.lists(text.map("".join), min_size=1, max_size=3).map(
        lambda texts: {"overrides.json": to_json(texts)}
    )


# --- Pickles ---


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


HOSTILE = [
    Call(os.system, "touch x"),
    Call(eval, "1"),
    Call(torch.load, "x"),
    Call(np.load, "x"),
    Call(getattr, OrderedDict, "fromkeys"),
    Call(OrderedDict, [(1, 2)]),
    Call(bytearray, 10),
    Call(pickle.loads, b"N."),
    torch.nn.Linear(1, 1),
    np.array([None]),
    np.array(["text"]),
    np.datetime64("2020-01-01"),
    {1, 2},
    complex(1, 2),
]


def odd_contents() -> st.SearchStrategy[Any]:
    """Contents of a checkpoint: tensors, arrays, plain values and objects that run code."""
    number = st.sampled_from([0.5, float("nan"), float("inf"), 1e30])
    shape = st.sampled_from([(3, 4), (3,), (2, 3), (2,), (0,), (), (4, 3), (1, 1, 1)])
    tensor = st.tuples(shape, number).map(lambda pair: torch.full(*pair))
    kinds = st.sampled_from([torch.float16, torch.int64, torch.bool, torch.complex64, torch.bfloat16])
    leaf = st.one_of(
        tensor,
        tensor,
        tensor.map(lambda t: t.double().numpy()),
        st.tuples(shape, kinds).map(lambda pair: torch.zeros(pair[0], dtype=pair[1])),
        st.sampled_from(
            [None, 1, "a", 2**70, b"x", torch.Size([2]), torch.float32, torch.device("cpu"), np.float64(1)]
        ),
        st.sampled_from(HOSTILE),
        st.just(torch.zeros(1).expand(3, 4)),
    )
    names = [
        *seeds.state(),
        "module.first.weight",
        "model",
        "state_dict",
        "classes",
        "ema_state",
        "x",
        3,
        None,
    ]
    inner = st.dictionaries(st.sampled_from(names), leaf, max_size=6)
    full = inner.map(lambda extra: {**seeds.state(), **extra})
    return st.one_of(
        leaf,
        inner,
        full,
        full.map(lambda state: {"model": state}),
        st.tuples(full, leaf).map(lambda p: {"model": p[0], "classes": p[1]}),
    )


@st.composite
def pickled(draw: Callable[..., Any]) -> Files:
    """A checkpoint of odd contents."""
    content, kind = draw(odd_contents()), draw(st.sampled_from(["pkl", "pth", "pt"]))
    protocol = draw(st.integers(0, 5))
    if kind == "pkl":
        return {"x.pkl": pickle.dumps(content, protocol)}
    options = {"pickle_protocol": max(2, protocol), "_use_new_zipfile_serialization": kind == "pth"}
    return {f"x.{kind}": seeds.saved(content, **options)}


# --- All targets ---


def strategies(static: Path) -> dict[str, st.SearchStrategy[Files]]:
    """The inputs of every target in `targets.py`."""

    def read(*parts: str) -> Any:
        return json.loads(static.joinpath(*parts).read_text())

    truth, panoptic = read("ytvis", "truth.json"), read("vipseg", "panoptic_gt_VIPSeg_val.json")
    results = read("results.json")
    packed = seeds.zipped("results.json", json.dumps(results).encode())
    zips = st.one_of(
        damaged(packed),
        st.sampled_from([0, 8, 12, 14]).flatmap(
            lambda method: damaged(seeds.zipped("results.json", json.dumps(results).encode(), method))
        ),
        mutated(results).map(lambda value: seeds.zipped("results.json", to_json(value))),
        st.just(seeds.zipped("other.json", b"[]")),
    ).map(lambda data: {"results.zip": data})
    arrays, recorded = seeds.maps(static), seeds.record(static)
    pred = {"pred.json": json.dumps(panoptic).encode()}
    names = [f"{v['video_id']}/{i['id']}.png" for v in panoptic["videos"] for i in v["images"]]
    unchanged = {name: static.joinpath("vipseg", "panomasksRGB", name).read_bytes() for name in names}
    config = yaml.safe_load((static / "config.yaml").read_text())
    lines = recorded["frames.jsonl"].decode().splitlines()
    return {
        "youtube_vis": document("annotations.json", truth),
        "coco": document("annotations.json", read("coco", "truth.json")),
        "vipseg": document("annotations.json", panoptic),
        "panoptic_png": damaged(unchanged[names[0]]).map(lambda data: {**unchanged, names[0]: data}),
        "panoptic_results": st.one_of(
            document("pred.json", panoptic), damaged(arrays).map(lambda data: {**pred, "maps.npz": data})
        ),
        "tracks_truth": document("truth.json", truth),
        "tracks_results": st.one_of(document("results.json", results), zips),
        "rle": masks(),
        "yaml_config": yaml_files(config).map(lambda data: {"config.yaml": data}),
        "eval_config": yaml_files(yaml.safe_load((static / "eval.yaml").read_text())).map(
            lambda data: {"config.yaml": data}
        ),
        "weights_config": yaml_files({"model": config["model"]}).map(
            lambda data: {"config.yaml": data, "weights.pth": static / "weights.pth"}
        ),
        "overrides": override_files(config_keys(config)),
        "checkpoint": st.one_of(damaged_files(seeds.checkpoints()), pickled()),
        "image": damaged_files(seeds.images()),
        "video": damaged_files(seeds.videos()),
        "record": st.one_of(
            damaged(recorded["frames.jsonl"]).map(lambda data: {**recorded, "frames.jsonl": data}),
            mutated([json.loads(line) for line in lines]).map(
                lambda value: {
                    **recorded,
                    "frames.jsonl": b"\n".join(map(to_json, value if isinstance(value, list) else [value]))
                    + b"\n",
                }
            ),
            document("stream.json", json.loads(recorded["stream.json"])).map(
                lambda files: {**recorded, **files}
            ),
        ),
    }


def config_keys(config: Any) -> list[str]:
    """The dotted keys of a config."""
    return [".".join(map(str, path)) for path in nodes(config) if all(isinstance(key, str) for key in path)]
