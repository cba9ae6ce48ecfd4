"""Layering: which rooms of the package may import which.  Imports are parsed from the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "projects" / "local2global"

NOUNS = {"structures", "boxes", "randomness", "errors", "files", "configs", "limits"}
# What each room may import besides itself and the nouns.  A room is a folder or a file of the package.
MAY_IMPORT = {
    **{noun: set() for noun in NOUNS - {"errors"}},
    "errors": set(),
    "config": set(),
    "lazy": {"config"},
    "results": set(),
    "data": {"config", "results"},
    "evaluation": {"results"},
    "weights": {"config"},
    "modeling": {"results", "weights"},
    "engine": {"lazy", "config", "weights"},
}
# Inside modeling, a file may import files of its own level and of lower levels.
FLOORS = {
    "ops": 0,
    "ops.bags": 0,
    "ops.triton_kernel": 0,
    "layers": 0,
    "deformable": 0,
    **dict.fromkeys(["backbone", "swin", "encoder", "decoder", "positions", "aligner", "losses"], 1),
    **dict.fromkeys(["segmenter", "tracker", "matcher"], 2),
    **dict.fromkeys(["criterion", "variants"], 3),
    "model": 4,
}
MAY_NAME_DEVICES = {"lazy", "app", "engine"}


def module_name(path: Path) -> str:
    """`modeling.layers` for projects/local2global/modeling/layers.py, "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def absolute_imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""


def resolved(name: str) -> str:
    """The longest prefix of a dotted name that is a module of the package."""
    while name not in SOURCES:
        name = name.rpartition(".")[0]
    return name


def own_imports(name: str) -> set[str]:
    """The modules of the package that a module imports, including imports inside functions."""
    tree, found = TREES[name], set()
    for full in absolute_imports(tree):
        if full.split(".")[0] == "local2global":
            found.add(resolved(full.partition(".")[2]))
    folder = name.split(".") if SOURCES[name].name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1]
            base = [*base, *(node.module or "").split(".")]
            found |= {resolved(".".join(filter(None, [*base, alias.name]))) for alias in node.names}
    return found - {name}


def room(name: str) -> str:
    return name.split(".")[0]


def test_the_source_is_found():
    assert {"structures", "errors", "lazy"} <= set(SOURCES)


@pytest.mark.parametrize("name", [name for name in SOURCES if room(name) in MAY_IMPORT])
def test_a_room_imports_only_what_the_design_allows(name):
    """Every room may import the package's __init__, which holds the version."""
    others = {other for other in own_imports(name) if room(other) not in {room(name), "", *NOUNS}}
    refused = {other for other in others if room(other) not in MAY_IMPORT[room(name)]}
    assert not refused, f"{name} imports {sorted(refused)}"


def test_inside_modeling_no_file_imports_a_higher_level():
    for name in SOURCES:
        floor = FLOORS.get(name.removeprefix("modeling."))
        if room(name) == "modeling" and floor is not None:
            inside = [
                other.removeprefix("modeling.") for other in own_imports(name) if room(other) == "modeling"
            ]
            above = [other for other in inside if FLOORS.get(other, 0) > floor]
            assert not above, f"modeling.{name} imports {above}"


def test_no_room_imports_the_app():
    """Except for the package's __init__ and `python -m local2global`."""
    assert not [
        name
        for name in SOURCES
        if room(name) not in {"app", "", "__main__"}
        for other in own_imports(name)
        if room(other) == "app"
    ]


def test_there_are_no_import_cycles():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a cycle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for other in sorted(own_imports(name) - {""}):
                visit(other, (*path, name))
            done.add(name)

    for name in SOURCES:
        visit(name, ())


def test_only_lazy_imports_detectron2_or_detrex():
    files = {path: TREES[name] for name, path in SOURCES.items() if name != "lazy"}
    for path in sorted((ROOT / "configs").rglob("*.py")):
        if path.relative_to(ROOT / "configs").parts[0] != "detrex":
            files[path] = ast.parse(path.read_text(encoding="utf-8"))
    for path, tree in files.items():
        foreign = [
            full for full in absolute_imports(tree) if re.match(r"(detectron2|detrex|projects)\b", full)
        ]
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


@pytest.mark.parametrize("name", [name for name in SOURCES if room(name) not in MAY_NAME_DEVICES])
def test_devices_come_from_tensors(name):
    """Models, data and scores neither call `.cuda()` nor name a device."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr != "cuda", f"{name}:{node.lineno} calls .cuda()"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.fullmatch(r"cuda(:\d+)?", node.value), f"{name}:{node.lineno} names a device"


@pytest.mark.parametrize("name", SOURCES)
def test_every_module_has_a_docstring(name):
    assert ast.get_docstring(TREES[name]), f"{SOURCES[name].name} has no docstring"
