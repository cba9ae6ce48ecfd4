#!/usr/bin/env python
"""`l2g convert` as a script, for a checkout that is not installed: other projects' weights to ours, ours to detrex's.

python scripts/convert_checkpoint.py maskdino_r50.pth --output output/maskdino
"""

from __future__ import annotations

import sys

from local2global.app.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "convert")
    main()
