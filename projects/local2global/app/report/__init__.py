"""Self-contained HTML pages: one run, runs side by side, training curves, and the attention of a frame."""
