"""Run an unmodified script of detrex without CUDA and without compiled operators.

    DETREX=... DETECTRON2=... python tests/detrex_launch.py tools/train_net.py --config-file ...

Three things are replaced, each only where it is missing: the schemas of two torchvision operators are defined, an empty
module stands for detrex's compiled operators, and `torch.cuda.is_available()` is true inside the trainer's step, which
asserts it.
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

_LIBRARIES: list[torch.library.Library] = []  # a schema is removed with its library


def put_on_path() -> Path:
    """Put both checkouts on `sys.path` and return the folder of detrex."""
    folders = [Path(os.environ.get(name) or ".").resolve() for name in ("DETREX", "DETECTRON2")]
    for name, folder, part in zip(("DETREX", "DETECTRON2"), folders, ("detrex", "detectron2"), strict=True):
        if not os.environ.get(name) or not (folder / part).is_dir():
            sys.exit(
                f"detrex_launch.py: {name} must be a checkout of {part} that contains {part}/; got {folder}."
            )
    # detrex contains an empty folder `detectron2`, so the real checkout comes first
    sys.path[:0] = [str(folders[1]), str(folders[0])]
    return folders[0]


def define_torchvision_operators() -> None:
    """Define the schemas `nms` and `qnms`, which torchvision looks up at import, if its library does not load."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for library in Path(spec.origin).parent.glob("_C*.so"):
        with contextlib.suppress(OSError, RuntimeError):
            torch.ops.load_library(str(library))
    if not hasattr(torch.ops.torchvision, "nms"):
        library_def = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library_def.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library_def)


def replace_compiled_operators(folder: Path) -> None:
    """Register an empty `detrex._C` if it was not compiled; detrex then uses its Python deformable attention."""
    if not list((folder / "detrex").glob("_C*.so")):
        sys.modules.setdefault("detrex._C", ModuleType("detrex._C"))


def make_importable() -> Path:
    """Make detrex, its `projects` and detectron2 importable; return the folder of detrex."""
    folder = put_on_path()
    define_torchvision_operators()
    replace_compiled_operators(folder)
    return folder


def bypass_cuda_assertion(script: Path) -> None:
    """Make `torch.cuda.is_available()` true inside `Trainer.run_step` of a script, and nowhere else."""
    original = torch.cuda.is_available

    def is_available() -> bool:
        caller = sys._getframe(1).f_code
        return original() or (caller.co_name == "run_step" and Path(caller.co_filename) == script)

    torch.cuda.is_available = is_available


def main() -> None:
    """Run a script (absolute, or relative to detrex) or a module (`-m`) in this process as python would."""
    folder = make_importable()
    bypass_cuda_assertion(folder / "tools" / "train_net.py")
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
