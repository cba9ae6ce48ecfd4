"""A cache on disk of what the frozen backbone and encoder compute for the frames of a training.

A file holds the features of one frame.  Its name is the hash of the frame's pixels, and its folder the hash of the
frozen weights, so runs with the same segmenter share the cache, also at the same time, whatever else they change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError
from ..files import require_space
from ..structures import FrameFeatures
from ..weights.checkpoint import save_tensors

#: Tensors of `FrameFeatures` that are rounded to float16; the others are exact.
_ROUNDED = ("memory", "mask_features")


class FeatureCache:
    """Encodes frames, and reads frames that were encoded before from disk.

    Features are stored as float16: 65 kB for a frame of 64 x 96 pixels and 64 channels.

    Args:
        model: a `Local2Global` whose backbone and encoder are not trained.
        folder: folder of the cache; it is created.

    Attributes:
        found: the number of frames that were read from disk.
        encoded: the number of frames that were encoded.

    Raises:
        UserError: the model has no `segmenter`, or its backbone or encoder is trained.
    """

    def __init__(self, model: nn.Module, folder: str | Path) -> None:
        segmenter: Any = getattr(model, "segmenter", None)
        if segmenter is None or not hasattr(model, "feature_cache"):
            raise UserError(
                f"train.cache_features: {type(model).__name__} has no backbone and encoder to cache"
            )
        digest = hashlib.blake2b(
            repr((model.divisor, model.pixel_mean, model.pixel_std)).encode(), digest_size=16
        )
        for part in (segmenter.backbone, segmenter.encoder):
            trained = next((name for name, p in part.named_parameters() if p.requires_grad), None)
            if trained is not None:
                raise UserError(
                    f"train.cache_features: {type(part).__name__}.{trained} is trained, so its features change. Freeze "
                    r"backbone and encoder: model.trainable=['^(?!segmenter\.(backbone|encoder)\.)']"
                )
            digest.update(repr(part).encode())
            for name, value in part.state_dict().items():
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.folder = Path(folder) / digest.hexdigest()
        self.found = self.encoded = 0

    def __call__(self, model: Any, frames: Sequence[Tensor]) -> FrameFeatures:
        """The features of (3, H, W) uint8 frames, as `model.encode` computes them, up to float16.

        Frames of several sizes are padded to a common one and depend on one another; they are encoded and not stored.
        """
        if len({tuple(frame.shape) for frame in frames}) > 1:
            self.encoded += len(frames)
            return model.encode(frames)  # type: ignore[no-any-return]
        files = [self._file(frame) for frame in frames]
        # A repeated frame is encoded once.
        missing = {file: frame for file, frame in zip(files, frames, strict=True) if not file.is_file()}
        if missing:
            features = model.encode(list(missing.values()))
            for file, frame in zip(missing, features.split(len(missing)), strict=True):
                self._write(file, frame)
        self.encoded += len(missing)
        self.found += len(frames) - len(missing)
        return self._read(files, model.device)

    def _file(self, frame: Tensor) -> Path:
        pixels = frame.cpu().contiguous()
        name = hashlib.blake2b(repr(tuple(pixels.shape)).encode(), digest_size=16)
        name.update(pixels.numpy().tobytes())
        return self.folder / name.hexdigest()[:2] / f"{name.hexdigest()}.safetensors"

    def _write(self, file: Path, features: FrameFeatures) -> None:
        tensors = {name: _rounded(getattr(features, name)) for name in _ROUNDED}
        tensors |= {"extent": features.extent, "valid_ratios": features.valid_ratios}
        tensors["shapes"] = torch.tensor(features.shapes)
        if features.padding is not None:
            tensors["padding"] = features.padding
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        size = sum(value.nbytes for value in tensors.values())
        require_space(
            self.folder, size, "the cache of features", "Free some space, or set train.cache_features=''."
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(file, tensors)

    def _read(self, files: Sequence[Path], device: torch.device) -> FrameFeatures:
        frames = []
        for file in files:
            try:
                frames.append(load_file(file))
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file}: not readable ({error}). Delete the folder of the cache.") from error
        names = frames[0].keys() - {"shapes"}
        joined: dict[str, Any] = {name: torch.cat([f[name] for f in frames]).to(device) for name in names}
        joined.update({name: joined[name].float() for name in _ROUNDED})
        shapes = tuple((int(height), int(width)) for height, width in frames[0]["shapes"])
        return FrameFeatures(shapes=shapes, **{"padding": None, **joined})


def _rounded(value: Tensor) -> Tensor:
    """Float16, or the value itself if it is too large for float16."""
    half = value.half()
    return half if bool(half.isfinite().all()) else value
