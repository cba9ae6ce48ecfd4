"""Lookup of config files by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from ..configs import FOLDER
from ..errors import UserError

#: Configs that were merged into the recipe of the same model.
MERGED = {
    "ablation/table3_trajectory_ovis": "ovis/l2g_r50.py",
    "ablation/table3_trajectory_ytvis2021": "ytvis2021/l2g_r50.py",
    "ablation/table5_1024_ovis": "ovis/l2g_r50.py",
    "ablation/table6_static_ovis": "ovis/l2g_r50.py",
}


def find_config_file(name: str) -> Path:
    """Find a config file by path, also relative to the project or to its configs/.

    The configs of the current folder have priority over those of the package.

    Raises:
        UserError: if there is none; the message suggests the most similar name.
    """
    roots = [Path(), FOLDER.parent]
    spellings = [name, f"{name}.py"]
    for root in roots:
        for spelling in spellings:
            for candidate in (root / spelling, root / "configs" / spelling):
                if candidate.is_file():
                    return candidate
    known = [str(p.relative_to(root / "configs")) for root in roots for p in (root / "configs").rglob("*.py")]
    merged = MERGED.get(name.removeprefix("configs/").removesuffix(".py"))
    if merged is not None:
        raise UserError(f"{name}: no such config. Its model is the full model: use configs/{merged}")
    near = difflib.get_close_matches(name.removeprefix("configs/"), known, n=1, cutoff=0.5)
    raise UserError(f"{name}: no such config.{f' Did you mean {near[0]}?' if near else ''}")
