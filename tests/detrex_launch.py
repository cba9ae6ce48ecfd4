"""Run one of detrex's scripts, unmodified, on a machine that lacks what detrex is built for.

    DETREX=... DETECTRON2=... python tests/detrex_launch.py tools/train_net.py --config-file ...

Nothing of detrex or detectron2 is changed but this, and only where it is missing: torchvision's wheel for CUDA gets the
names of two operators it cannot load, detrex's compiled operators may be absent, and the one assertion
`torch.cuda.is_available()` of the trainer's step holds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import runpy
import sys
from pathlib import Path
from types import ModuleType

import torch

_LIBRARIES: list[torch.library.Library] = []  # an operator's name lives as long as its library


def put_on_path() -> Path:
    """Make detrex, its `projects` and detectron2 importable from their checkouts; detrex's folder."""
    folders = [Path(os.environ.get(name) or ".").resolve() for name in ("DETREX", "DETECTRON2")]
    for name, folder, part in zip(("DETREX", "DETECTRON2"), folders, ("detrex", "detectron2"), strict=True):
        if not os.environ.get(name) or not (folder / part).is_dir():
            sys.exit(
                f"detrex_launch.py: {name} is to name a checkout of {part}, with {part}/ in it; got {folder}."
            )
    # detrex carries an empty folder `detectron2`: the real one goes first
    sys.path[:0] = [str(folders[1]), str(folders[0])]
    return folders[0]


def let_torchvision_import() -> None:
    """Declare `nms` and `qnms`, which torchvision looks up while it is imported, if its library does not load."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for library in Path(spec.origin).parent.glob("_C*.so"):
        with contextlib.suppress(OSError, RuntimeError):
            torch.ops.load_library(str(library))
    if not hasattr(torch.ops.torchvision, "nms"):
        names = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            names.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(names)


def let_detrex_import_uncompiled(folder: Path) -> None:
    """An empty `detrex._C` where none was built: deformable attention then is detrex's own in Python, not a dummy."""
    if not list((folder / "detrex").glob("_C*.so")):
        sys.modules.setdefault("detrex._C", ModuleType("detrex._C"))


def make_importable() -> Path:
    """All of the above; detrex's folder."""
    folder = put_on_path()
    let_torchvision_import()
    let_detrex_import_uncompiled(folder)
    return folder


def step_over_the_cuda_assertion(script: Path) -> None:
    """`Trainer.run_step` of the script sees a CUDA device; nobody else does."""
    asked = torch.cuda.is_available

    def is_available() -> bool:
        caller = sys._getframe(1).f_code
        return asked() or (caller.co_name == "run_step" and Path(caller.co_filename) == script)

    torch.cuda.is_available = is_available


def main() -> None:
    """The script (in detrex's folder, or an absolute path) or module (-m) in this process, as python would run it."""
    folder = make_importable()
    step_over_the_cuda_assertion(folder / "tools" / "train_net.py")
    del sys.argv[0]
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv[0] = str(folder / sys.argv[0])
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
