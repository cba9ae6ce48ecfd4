"""`l2g eval --ray`: every worker evaluates one video at a time, and the driver scores the results of all."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig
from rich.progress import Progress

from ...data.loader import VideoLoader
from ...engine.evaluation import load_model, process, results_config, share_dataset
from ...engine.processes import join
from ...engine.settings import build, require, train_settings
from ...errors import UserError
from ..output import progress_bar
from .pool import Pool, capacity, connected, resources_of


class EvaluationWorker:
    """Evaluates videos of a config with one model.

    Args:
        cfg: the whole config.
    """

    def __init__(self, cfg: DictConfig) -> None:
        """Loads nothing."""
        self.cfg = cfg

    def load(self) -> None:
        """Loads the model and opens the dataset.

        Raises:
            UserError: if weights or data cannot be read on this machine.
        """
        self.model = load_model(self.cfg, join(train_settings(self.cfg).device))
        self.loader, self.evaluator = _parts(self.cfg)

    def evaluate(self, index: int) -> tuple[dict[Any, Any], int]:
        """The evaluator's results for video `index` of the test set, and the number of frames."""
        self.evaluator.reset()
        one = replace(self.loader, videos=self.loader.videos[index : index + 1])
        frames = process(self.model, one, self.evaluator)
        return self.evaluator.videos, frames


def evaluate_videos(cfg: DictConfig, address: str, workers: int | None = None) -> dict[str, Any]:
    """Evaluates `cfg.dataloader.test` on a Ray cluster; the scores are those of one process.

    Args:
        cfg: the whole config; its data and weights must be readable on every node.
        address: as `connected` takes it.
        workers: number of workers; default: as many as the cluster has room for.

    Returns:
        the scores, as `engine.evaluation.evaluate` does.

    Raises:
        UserError: if the config's loader or evaluator cannot be divided, or a video fails.
    """
    require(cfg, "model", "dataloader.test", "dataloader.evaluator", "train")
    loader, evaluator = _parts(cfg)
    longest_first = sorted(range(len(loader)), key=lambda index: -loader.videos[index].length)
    frames, begin = 0, time.perf_counter()
    with connected(address, workers):
        resources = resources_of(train_settings(cfg).device)
        cfg = cfg.copy()
        cfg.train.device = "cuda" if "num_gpus" in resources else "cpu"
        with Pool(EvaluationWorker, [cfg], workers or capacity(resources), resources) as pool:
            results = pool.run("evaluate", longest_first)
            with progress_bar(*Progress.get_default_columns()) as bar:
                for index, result in bar.track(results, len(loader), description="evaluate"):
                    if isinstance(result, Exception):
                        raise UserError(f"video {loader.videos[index].id}: {result}") from result
                    evaluator.videos |= result[0]
                    frames += result[1]
    seconds = time.perf_counter() - begin
    return {**(evaluator.evaluate() or {}), "speed": {"frames_per_second": frames / max(seconds, 1e-9)}}


def _parts(cfg: DictConfig) -> tuple[VideoLoader, Any]:
    """The test loader and the evaluator of a config.

    Raises:
        UserError: if they are not of a kind that can be divided by videos.
    """
    cfg = share_dataset(results_config(cfg))
    loader, evaluator = build(cfg, "dataloader.test"), build(cfg, "dataloader.evaluator")
    if not isinstance(loader, VideoLoader):
        raise UserError(f"--ray: dataloader.test is {type(loader).__name__}, expected build_test_loader")
    if not isinstance(getattr(evaluator, "videos", None), dict):
        raise UserError(f"--ray: {type(evaluator).__name__} has no `videos`, so results cannot be joined")
    return loader, evaluator
