"""Many videos on many machines: `--ray` of `l2g predict` and `l2g eval`."""
