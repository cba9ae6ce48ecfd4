"""Limits on input files: a small file may not unpack to more memory than a machine has.

Sizes are read from headers, before anything is unpacked.
"""

from __future__ import annotations

#: Pixels of an image or of a frame of a video, about 400 MB as RGB.  A frame of 8K video has 33 million.
MAX_PIXELS = 1 << 27

#: Bytes of `results.json` in a zip file.
MAX_RESULTS = 1 << 30

#: Bytes of the panoptic maps of one video in an .npz.
MAX_MAPS = 1 << 31

#: Bytes of all entries of a checkpoint's zip file, in sizes of that file.  torch does not compress entries.
MAX_UNPACKED = 8

#: Bytes of a download.  The weights of Swin-L have 0.9 billion.
MAX_DOWNLOAD = 1 << 32

#: Steps of a pickle, and bytes of the pickle in a checkpoint's zip file.  A step reads a number, a text or a tensor.
#: A checkpoint of 1,000 parameters with an optimizer and a weight average has 100,000 steps.
MAX_PICKLE_STEPS = 1_000_000
MAX_PICKLE_BYTES = 1 << 25


def check_pixels(width: int, height: int) -> None:
    """Check the size that the header of an image states.

    Raises:
        ValueError: if it has more than `MAX_PIXELS`.
    """
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels, the limit is {MAX_PIXELS} in all")
