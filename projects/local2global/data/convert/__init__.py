"""Converters of other dataset formats into the supported layouts: one file per format, one function each."""

from __future__ import annotations

from .coco import convert_coco
from .cocovid import convert_cocovid
from .common import Converted
from .davis import convert_davis
from .labelme import convert_labelme
from .mots import convert_mots
from .vipseg import convert_vipseg

__all__ = [
    "Converted",
    "convert_coco",
    "convert_cocovid",
    "convert_davis",
    "convert_labelme",
    "convert_mots",
    "convert_vipseg",
]
