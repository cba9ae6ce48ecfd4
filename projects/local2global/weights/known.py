"""Released weights that have a short name, such as `maskdino-r50`."""

from __future__ import annotations

from dataclasses import dataclass

_DETREX = "https://github.com/IDEA-Research/detrex-storage/releases/download/maskdino-v0.1.0/"
_R50 = "maskdino_r50_50ep_300q_"
_SWIN = "maskdino_swinl_50ep_300q_hid2048_3sd1_"


@dataclass(frozen=True)
class Release:
    """A published weights file.

    Attributes:
        url: public address of the file.
        title: the model and what it was trained on.
        licence: licence of the project that published it.
        about: approximate size in bytes, from the number of parameters in float32.
        sha256: SHA-256 of the file; None if it is not known, then the hash of the first download is pinned.
    """

    url: str
    title: str
    licence: str
    about: int
    sha256: str | None = None

    @property
    def file(self) -> str:
        """The name of the file."""
        return self.url.rpartition("/")[2]


def _maskdino(file: str, title: str, about: int) -> Release:
    return Release(f"{_DETREX}{file}.pth", f"MaskDINO {title}, by the detrex project", "Apache-2.0", about)


#: The weights of `l2g predict` without --weights.
DEFAULT = "maskdino-r50"

#: Released weights by short name.  The paper starts from `maskdino-r50` (section 4.2), on VIPSeg from
#: `maskdino-r50-panoptic`.
RELEASES = {
    DEFAULT: _maskdino(
        f"{_R50}hid2048_3sd1_instance_maskenhanced_mask46.3ap_box51.7ap", "R50, COCO instances", 209_000_000
    ),
    "maskdino-r50-hid1024": _maskdino(
        f"{_R50}hid1024_3sd1_instance_maskenhanced_mask46.1ap_box51.5ap",
        "R50 with encoder FFN 1024, COCO instances",
        196_000_000,
    ),
    "maskdino-r50-panoptic": _maskdino(
        f"{_R50}hid2048_3sd1_panoptic_pq53.0", "R50, COCO panoptic", 209_000_000
    ),
    "maskdino-swinl": _maskdino(
        f"{_SWIN}instance_maskenhanced_mask52.3ap_box59.0ap", "Swin-L, COCO instances", 890_000_000
    ),
    "maskdino-swinl-panoptic": _maskdino(f"{_SWIN}panoptic_58.3pq", "Swin-L, COCO panoptic", 890_000_000),
}
