#!/usr/bin/env python
"""`l2g convert` as a script for a checkout without installation: convert weights of other projects, or to detrex.

python scripts/convert_checkpoint.py maskdino_r50.pth --output output/maskdino
"""

from __future__ import annotations

import sys

from local2global.app.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "convert")
    main()
