"""Training runs of a small Local2Global through the trainer, on clips of moving rectangles or generated videos.

As a script: one gradient step per argument, a list of the numbers of instances, e.g. as one of several processes.
"""

import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from local2global.engine.loop import train
from local2global.engine.processes import rank, world_size
from local2global.lazy import LazyCall as L
from local2global.lazy import load_config
from local2global.structures import Clip, ClipTargets

CONFIG = Path(__file__).resolve().parents[1] / "configs/demo/l2g_tiny.py"
HEIGHT, WIDTH = 64, 96


def make_clip(num_instances, length=2, key=(0, 0, 0)):
    """A clip of rectangles that move to the right, all visible on every frame."""
    generator = torch.Generator().manual_seed(num_instances)
    frames = torch.randint(0, 60, (length, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(num_instances, length, HEIGHT, WIDTH, dtype=torch.bool)
    boxes = torch.zeros(num_instances, length, 4)
    for i, t in itertools.product(range(num_instances), range(length)):
        x, y, w, h = 6 + 28 * i + 4 * t, 8 + 10 * i, 20, 24
        masks[i, t, y : y + h, x : x + w] = True
        frames[t, i % 3, y : y + h, x : x + w] = 250
        boxes[i, t] = torch.tensor([x + w / 2, y + h / 2, w, h]) / torch.tensor(
            [WIDTH, HEIGHT, WIDTH, HEIGHT]
        )
    labels = torch.arange(num_instances) % 3
    visible = torch.ones(num_instances, length, dtype=torch.bool)
    targets = ClipTargets(labels, torch.arange(num_instances), masks, boxes, visible)
    return Clip(frames, (HEIGHT, WIDTH), frame_ids=tuple(range(length)), targets=targets, key=key)


@dataclass
class RepeatedClips:
    """An endless loader of one batch of clips: `instances` of each clip.  A process loads its part of the batch."""

    instances: list[int]
    start: int = 0

    def seek(self, iteration, accumulate=1):
        self.start = iteration * accumulate

    def __iter__(self):
        per_rank = len(self.instances) // world_size()
        indices = range(rank() * per_rank, (rank() + 1) * per_rank)
        for iteration in itertools.count(self.start):
            yield [make_clip(self.instances[i], key=(0, iteration, i)) for i in indices]


def config(folder, instances=(3,), **train_keys):
    """The demo's config with a narrower model, one log entry per iteration and no evaluation."""
    cfg = load_config(str(CONFIG))
    segmenter, criterion = cfg.model.segmenter, cfg.model.criterion
    segmenter.backbone.update(hidden_sizes=[16, 16, 32, 32], embedding_size=16)
    segmenter.encoder.channels = dict(res2=16, res3=16, res4=32, res5=32)
    criterion.matcher.num_points = criterion.sampler.num_points = 128
    cfg.dataloader = dict(train=L(RepeatedClips)(instances=list(instances)))
    cfg.train.update(output_dir=str(folder), device="cpu", log_period=1, eval_period=0, seed=0)
    cfg.train.update(train_keys)
    return cfg


def with_sgd(cfg):
    """Plain gradient descent: after one step, weights differ from the initial ones by the gradient."""
    cfg.optimizer = L(torch.optim.SGD)(params=cfg.optimizer.params, lr=1.0, weight_decay=0.0)
    cfg.train.clip_grad.enabled = False
    cfg.train.max_iter = 1
    return cfg


if __name__ == "__main__":
    torch.set_num_threads(1)
    for instances in sys.argv[2:]:
        train(with_sgd(config(Path(sys.argv[1]) / instances, json.loads(instances))))
