"""Measure another checkout of this repository as the peer: `benchmark.py SECTION --against PATH`.

Each checkout runs in its own worker process, which imports its own package. Parent and worker exchange one JSON line
per command. Both workers load the same weights, and their results are compared.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_common import (
    LIMITS,
    OUTPUT,
    SIZES,
    Arm,
    Bench,
    Row,
    attention_inputs,
    build_model,
    compiled,
    make_clip,
    make_frame,
    make_predictions,
    past_queries,
    relative_difference,
)

import local2global

#: Arms of each section; `frame compiled` needs --compile.
ARMS = {
    "attention": (
        "attention encoder",
        "attention decoder",
        "attention encoder train",
        "attention decoder train",
    ),
    "frame": ("frame eager", "frame compiled"),
    "clip": ("clip",),
    "scorer": ("score tracks", "score panoptic"),
}
CPU = torch.device("cpu")


class Worker:
    """A process that runs the arms with the package of one checkout."""

    def __init__(self, checkout: Path, threads: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout.resolve() / "projects")}
        command = [sys.executable, __file__, str(threads)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)

    def ask(self, *command: Any) -> Any:
        """Send a command and return the reply."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        reply = self.process.stdout.readline()
        if not reply:
            raise RuntimeError(f"the worker of {self.process.args} ended; its error is above")
        return json.loads(reply)

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def rows(section: str, bench: Bench, against: Path) -> Iterator[Row]:
    """Rows of a section with the other checkout as the peer.

    Raises:
        ValueError: for a section that cannot be run across checkouts.
    """
    if section not in ARMS:
        raise ValueError(f"--against: no section {section}; choose from {', '.join(ARMS)}")
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if section == "scorer":
            _write_scorer_load(Path(folder), bench.quick)
        workers = [Worker(checkout, torch.get_num_threads()) for checkout in (against, here)]
        for worker in workers:
            stack.callback(worker.close)
        for name in ARMS[section]:
            if bench.compiled or not name.endswith("compiled"):
                yield _row(section, name, bench, workers, Path(folder))


def _row(section: str, name: str, bench: Bench, workers: Sequence[Worker], folder: Path) -> Row:
    # The other checkout runs first: it writes the weights that both load.
    first_calls = [worker.ask("prepare", name, str(folder), str(i)) for i, worker in enumerate(workers)]
    theirs, ours = (dict(np.load(folder / f"{name}.{i}.npz")) for i in (0, 1))
    differences = [
        relative_difference(torch.from_numpy(ours[k]), torch.from_numpy(theirs[k])) for k in theirs
    ]
    other, own = ((lambda worker=worker: worker.ask("run", name)) for worker in workers)
    timed = _ByReply(bench.quick, bench.device, bench.compiled)
    limit = {"clip": 2e-3, "scorer": 1e-9}.get(section, LIMITS["fp32"])
    labels = {
        "mode": "compiled" if name.endswith("compiled") else "eager",
        "pass": "train" if name == "clip" or name.endswith("train") else "forward",
    }
    row = timed.compare(section, name, own, other, max(differences), limit, warm=False, **labels)
    return {**row, "first_call_s": first_calls[1], "peer_first_call_s": first_calls[0]}


class _ByReply(Bench):
    """Reads the CPU seconds that the worker reports."""

    def read(self, arm: Arm, repeats: int = 1) -> float:
        return float(arm())


def _write_scorer_load(folder: Path, quick: bool) -> None:
    """Write truth and predictions of both scorers."""
    from bench_scorer import write_panoptic_load, write_track_load

    write_track_load(folder / "tracks", quick)
    write_panoptic_load(folder / "panoptic", quick)


# --- Worker ---

Prepared = tuple[Arm, dict[str, Any]]


def lookup(*names: str) -> Any:
    """Import the first name that exists: checkouts may have the same object in different modules."""
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            return getattr(importlib.import_module(f"local2global.{module}"), attribute)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"none of {', '.join(names)} exists in {local2global.__file__}")


def _model(folder: Path) -> Any:
    """The paper's model; the first worker writes its weights, the second loads them."""
    load_checkpoint, load_weights = (
        lookup(f"weights.checkpoint.{name}", f"checkpoint.{name}")
        for name in ("load_checkpoint", "load_weights")
    )
    model, path = build_model(), folder / "weights.pth"
    if path.exists():
        load_weights(model, load_checkpoint(path))
    else:
        torch.save({"model": model.state_dict()}, path)
    return model


def prepare_frame(name: str, folder: Path) -> Prepared:
    """A frame at 384x640, from a uint8 image to ten masks at 720p."""
    postprocessor = lookup("results.instances.VideoPostprocessor", "postprocess.VideoPostprocessor")
    model = _model(folder)
    image, past = make_frame(SIZES[0], 3), past_queries(model, SIZES[0])
    model = compiled(model) if name.endswith("compiled") else model
    logits = make_predictions(10, 100, SIZES[0], CPU).logits

    def arm() -> Any:
        with torch.inference_mode():
            predictions = model.step(model.encode([image]), past)
            post = postprocessor(OUTPUT, threshold=0.3, spill=False)
            return predictions, post.update(replace(predictions, logits=logits))

    predictions, result = arm()
    return arm, {"logits": predictions.logits, "masks": predictions.masks, "reported": len(result.ids)}


def prepare_clip(name: str, folder: Path) -> Prepared:
    """Forward and backward of a clip of four frames at 160x288 with six instances."""
    from bench_training import step_of

    model = _model(folder).train()
    step = step_of(model, [make_clip((160, 288), 4, 6)], Bench(False, CPU))
    loss = step()
    norms = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])
    return step, {"loss": loss, "gradient": norms.norm()}


def prepare_attention(name: str, folder: Path) -> Prepared:
    """The sampling sum of deformable attention at 384x640."""
    sample = lookup("modeling.ops.deformable_sample", "modeling.layers.sample_levels")
    shapes, values, locations, weights = attention_inputs(name.split()[1], SIZES[0], CPU)
    train = name.endswith("train")
    leaves = [tensor.requires_grad_(train) for tensor in (values, locations, weights)]

    def arm() -> Any:
        out = sample(values, shapes, locations[..., 0], locations[..., 1], weights)
        return torch.autograd.grad(out.square().sum() / 2, leaves) if train else (out,)

    return arm, {str(i): tensor for i, tensor in enumerate(arm())}


def prepare_scores(name: str, folder: Path) -> Prepared:
    """`l2g score` on files, without the import of the package."""
    from local2global.app.cli import app

    kind = name.split()[1]
    command = json.loads((folder / kind / "command.json").read_text(encoding="utf-8"))
    target = folder / kind / f"scores.{os.getpid()}.json"

    def arm() -> None:
        with Path(os.devnull).open("w") as null, redirect_stdout(null), redirect_stderr(null):
            app(["score", *command, "--json", str(target)], standalone_mode=False)

    arm()
    return arm, dict(_numbers(json.loads(target.read_text(encoding="utf-8"))))


def _numbers(value: Any, key: str = "scores") -> Iterator[tuple[str, np.ndarray]]:
    """Flatten the numbers of a JSON document."""
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _numbers(child, f"{key}.{name}")
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from _numbers(child, f"{key}.{i}")
    elif isinstance(value, (int, float)):
        yield key, np.array(value, dtype=np.float64)


PREPARE: dict[str, Callable[[str, Path], Prepared]] = {
    "attention": prepare_attention,
    "frame": prepare_frame,
    "clip": prepare_clip,
    "score": prepare_scores,
}


def serve() -> None:
    """Run the commands of the parent process until its pipe closes."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints must not mix with replies
    torch.set_num_threads(int(sys.argv[1]))
    arms: dict[str, Arm] = {}
    for line in sys.stdin:
        command, name, *arguments = json.loads(line)
        start, clock = time.process_time(), time.perf_counter()
        if command == "prepare":
            folder, index = arguments
            arms[name], result = PREPARE[name.split()[0]](name, Path(folder))
            arrays = {k: v.detach().numpy() if isinstance(v, torch.Tensor) else v for k, v in result.items()}
            np.savez(Path(folder) / f"{name}.{index}.npz", **arrays)
            reply = time.perf_counter() - clock
        else:
            arms[name]()
            reply = time.process_time() - start
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    serve()
