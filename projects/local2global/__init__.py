"""Local2Global query alignment for video instance segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app.predict import L2G

__all__ = ["L2G", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `L2G` on first use, so that importing the package does not import torch."""
    if name == "L2G":
        from .app.predict import L2G

        return L2G
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
