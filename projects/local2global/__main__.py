"""`python -m local2global` is `l2g`."""

from .app.cli import main

if __name__ == "__main__":
    main()
