"""The shipped configs: `from local2global.configs.ytvis2021.l2g_r50 import model`.

The files are in `configs/` of a checkout, and are installed below this package.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

#: The folder of the configs.
FOLDER = _HERE if (_HERE / "common").is_dir() else _HERE.parents[2] / "configs"

__path__ = [str(FOLDER)]
