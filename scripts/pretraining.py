r"""Did COCO pre-training (section 4.2) work?  Learned queries through the aligner, against the segmenter's own queries.

    python scripts/pretraining.py configs/demo/coco_pretrain.py \
        --before output/coco_segmenter --after output/coco_pretrain

Three mask APs on the config's test images: the segmenter before pre-training, by itself (`model.tracker=bypass`);
learned queries + aligner after it; and the control, the same where the aligner is told of another image: its local
queries come from the next one.  Then whether every frozen tensor is, bit for bit, what it was.  The exit status is 1
unless the second reaches `--share` of the first, the control does not, and nothing frozen changed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from local2global.app.predict import find_weights
from local2global.config.find import find_config_file
from local2global.engine.loop import evaluate, load_model
from local2global.errors import UserError
from local2global.lazy import instantiate, load_config
from local2global.modeling.model import Local2Global
from local2global.results.instances import VideoPostprocessor
from local2global.structures import Clip, FramePredictions, VideoResult
from local2global.weights.checkpoint import load_checkpoint, read_state

#: What makes the pre-training's config the segmenter's by itself.
ALONE = ("model.tracker=bypass", "model.trainable=null")


class ToldOfAnother(nn.Module):
    """A model of videos of one frame whose tracker gets the local queries of another frame.

    Args:
        model: the model.
        others: for each video's id the frame, (3, H, W) uint8, whose local queries stand for its own.
    """

    def __init__(self, model: Local2Global, others: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.model, self.others = model, others

    def forward(self, clips: Sequence[Clip]) -> list[VideoResult]:
        """The result of each clip."""
        results = []
        for clip in clips:
            post = VideoPostprocessor(
                clip.size, threshold=self.model.threshold, aggregate=self.model.aggregate
            )
            post.update(self.step(clip.frames[0], self.others[clip.video_id]))
            results.append(post.result(clip.video_id))
        return results

    @torch.no_grad()
    def step(self, frame: Tensor, other: Tensor) -> FramePredictions:
        """The predictions of a frame, decoded from what the tracker makes of the other frame's local queries."""
        segmenter = self.model.segmenter
        local = segmenter.propose(self.model.encode([other]))
        queries, positions = self.model.tracker(None, local, segmenter.decoder.embed_boxes)
        return segmenter.decode(queries, positions, self.model.encode([frame]), local.predictions)


def shuffled(model: Local2Global, cfg: DictConfig) -> ToldOfAnother:
    """The control: every image is told of the next one, the last of the first."""
    clips = [clip for batch in instantiate(cfg.dataloader.test) for clip in batch]
    others = {
        clip.video_id: other.frames[0] for clip, other in zip(clips, clips[1:] + clips[:1], strict=True)
    }
    return ToldOfAnother(model, others)


def frozen(state: Mapping[str, Tensor], trainable: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a state that `trainable` doesn't name."""
    return {name: value for name, value in state.items() if not any(re.search(p, name) for p in trainable)}


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that are not in both states, or not bit for bit the same."""
    return sorted(
        name
        for name in before.keys() | after.keys()
        if name not in before or name not in after or _bits(before[name]) != _bits(after[name])
    )


def _bits(value: Tensor) -> tuple[torch.Size, torch.dtype, bytes]:
    return value.shape, value.dtype, value.contiguous().numpy().tobytes()


def main() -> None:
    """Measures, prints, and exits by what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="the pre-training's")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to it")
    parser.add_argument("--before", type=Path, required=True, help="weights, or the run, of the segmenter")
    parser.add_argument("--after", type=Path, required=True, help="weights, or the run, of the pre-training")
    parser.add_argument("--share", type=float, default=0.8, help="of the segmenter's AP to reach")
    options = parser.parse_args()
    before, after = find_weights(options.before), find_weights(options.after)
    cfg = _config(options, after)
    model = load_model(cfg)
    rows = {
        "the segmenter by itself": load_model(_config(options, before, *ALONE)),
        "learned queries + aligner": model,
        "told of another image": shuffled(model, cfg),
    }
    scores = {name: evaluate(cfg, row)["segm"]["AP"] for name, row in rows.items()}
    whole, reached, control = scores.values()
    kept, changed = _frozen_parts(before, after, cfg.model.trainable)
    for name, score in scores.items():
        share = f"{score / whole:6.0%}" if whole > 0 else ""
        sys.stdout.write(f"{name:27} AP {score:5.1f}{share}\n")
    sys.stdout.write(
        f"{len(kept)} frozen tensors, {len(changed)} changed {' '.join(changed[:5])}".rstrip() + "\n"
    )
    sys.exit(not (control < options.share * whole <= reached and not changed))


def _config(options: argparse.Namespace, weights: Path, *words: str) -> DictConfig:
    quiet = ("dataloader.evaluator.output_dir=null", f"train.init_checkpoint={weights}")
    return load_config(find_config_file(options.config), [*options.overrides, *words, *quiet])


def _frozen_parts(before: Path, after: Path, trainable: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    states = [read_state(load_checkpoint(path), str(path)).tensors for path in (before, after)]
    parts = [frozen(state, trainable) for state in states]
    return parts[1], moved(*parts)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"pretraining.py: {error}")
