"""Section `peers`: models of other people, where they can be imported, beside ours at the same number of input pixels.

VidEoMT of transformers, with random weights: results cannot be compared, only time.
"""

from __future__ import annotations

from typing import Any

import torch
from bench_measure import Bench, Row
from bench_setup import frame_of, pair, past_of, precision

SIZE = (640, 640)
#: Layers, width and heads of the two published sizes.
VIDEOMT = {"VidEoMT-S": (12, 384, 6), "VidEoMT-L": (24, 1024, 16)}


@torch.inference_mode()
def peers(bench: Bench) -> list[Row]:
    """One frame of 640x640 through each peer that is there, against a frame of ours; masks at stride 4."""
    try:
        from transformers import VideomtConfig, VideomtForUniversalSegmentation
    except ImportError:
        return []
    both = pair(bench.device)
    image, past = frame_of(SIZE, 3, bench.device), past_of(both.ours, SIZE)
    rows = []
    for name, (layers, width, heads) in VIDEOMT.items():
        config = VideomtConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            image_size=SIZE[0],
        )
        theirs = VideomtForUniversalSegmentation(config).to(bench.device).eval()
        pixels = torch.randn(1, 1, 3, *SIZE, device=bench.device)
        for dtype in ("fp32", "bf16"):

            def ours(dtype: str = dtype) -> Any:
                with precision(bench.device, dtype):
                    return both.ours.step(both.ours.encode([image]), past)

            def peer(dtype: str = dtype, theirs: Any = theirs, pixels: Any = pixels) -> Any:
                with precision(bench.device, dtype):
                    return theirs(pixels)

            row = bench.compare("peers", name, ours, peer, 0.0, 0.0, dtype=dtype)
            rows.append({**row, "agree": None})
    return rows
