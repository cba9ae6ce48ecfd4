"""The paper's tables beside the scores of runs; the same as the command `l2g tables`.

python scripts/tables.py output --output tables.md --output tables.csv
"""

from __future__ import annotations

import sys

from local2global.app.cli import main

if __name__ == "__main__":
    sys.argv = ["l2g", "tables", *sys.argv[1:]]
    main()
