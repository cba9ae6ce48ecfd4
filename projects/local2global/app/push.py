"""`l2g push`: weights, config and a model card for a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from ..config.saved import read_yaml
from ..engine.metrics import read_entries
from ..engine.run_folder import read_versions, refuse_run
from ..engine.settings import build
from ..errors import UserError, make_folder
from ..files import write_text
from ..lazy import load_resolved, save_resolved
from ..weights.checkpoint import (
    evaluation_state,
    find_config,
    load_checkpoint,
    load_weights,
    read_state,
    save_tensors,
)
from ..weights.download import megabytes
from ..weights.find import find_weights
from .output import markdown_table

_FILES = ("README.md", "config.yaml", "model.safetensors")


def push(
    repository: str,
    weights: str,
    output: Path | None = None,
    licence: str = "apache-2.0",
    private: bool = False,
    dry_run: bool = False,
) -> Iterator[str]:
    """Uploads weights as model.safetensors, config.yaml and README.md, and yields the lines of the report.

    `hf://OWNER/REPO` loads what was uploaded.  Averaged weights are uploaded if the run evaluates only those.

    Args:
        repository: `OWNER/REPO`; created if missing.
        weights: weights with a config.yaml, as for `find_weights`.
        output: folder to write the files to, instead of uploading them.
        licence: licence of the weights, for the model card.
        private: whether a new repository is private.
        dry_run: yield the model card, and neither write nor upload.

    Raises:
        UserError: if the weights have no config or do not fit it, the Hub refuses, or `output` holds other files of
            these names.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository):
        raise UserError(f"{repository}: expected OWNER/REPO, such as someone/local2global-ovis")
    path = find_weights(weights)
    state, config = _model(path)
    card = model_card(
        path.parent, repository, config, sum(value.numel() for value in state.values()), licence
    )
    size = megabytes(sum(value.numel() * value.element_size() for value in state.values()))
    if dry_run:
        yield card
        yield f"{', '.join(_FILES)} ({size}) for hf://{repository}; nothing was written or uploaded"
    elif output is not None:
        refuse_run(output, "--output")
        if (output / "README.md").is_file() and not (output / "model.safetensors").is_file():
            raise UserError(
                f"{output}: its README.md is not of l2g push. Choose another folder with --output."
            )
        make_folder(output, "--output")
        _write(output, state, config, card)
        yield f"{', '.join(_FILES)} ({size}) written to {output}"
    else:
        from ..weights.hub import upload_folder

        with TemporaryDirectory(prefix="l2g-push-") as folder:
            _write(Path(folder), state, config, card)
            address = upload_folder(Path(folder), repository, private)
        yield f"{', '.join(_FILES)} ({size}) uploaded to {address}"
        yield f"load them with --weights hf://{repository}"


def _model(path: Path) -> tuple[dict[str, Tensor], DictConfig]:
    """The tensors of the model that `l2g predict` would build, and the model's config."""
    content = load_checkpoint(path)
    project = read_state(content, str(path)).project
    if project is not None and not path.with_name("config.yaml").is_file():
        raise UserError(f"{path}: {project.name} weights have no config. Convert them first: l2g convert")
    config = load_resolved(find_config(path), ("model",))
    model = build(config, "model")
    load_weights(model, evaluation_state(content, None, str(path)), source=str(path))
    return {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}, config


def _write(folder: Path, state: Mapping[str, Tensor], config: DictConfig, card: str) -> None:
    save_tensors(folder / "model.safetensors", state, {"format": "pt"})
    save_resolved(config, folder / "config.yaml")
    write_text(folder / "README.md", card)


# --- Model card ---


def model_card(run: Path, repository: str, config: DictConfig, parameters: int, licence: str) -> str:
    """The README.md of a repository: use, classes, scores, data, command and versions of a run.

    Paths outside the working directory are shortened to their last part.

    Args:
        run: folder of the run; what is missing in it is left out.
        repository: `OWNER/REPO`.
        config: the model's config.
        parameters: number of parameters and buffers.
        licence: identifier of a licence, such as "apache-2.0".
    """
    saved = read_yaml(run / "config.yaml")
    saved = saved if isinstance(saved, dict) else {}
    versions = read_versions(run)
    classes = [str(entry["name"]) for entry in config.model.get("classes") or ()]
    loader, train = saved.get("dataloader") or {}, saved.get("train") or {}
    start = train.get("init_checkpoint") if isinstance(train, dict) else None
    facts = {
        "Parameters": f"{parameters / 1e6:.1f} M",
        "Classes": f"{len(classes)}: {', '.join(classes)}",
        "Initial weights": _short(str(start)) if start else "",
        "Training data": "; ".join(_datasets(loader.get("train"))) if isinstance(loader, dict) else "",
        "Test data": "; ".join(_datasets(loader.get("test"))) if isinstance(loader, dict) else "",
        "Command": " ".join(map(_short, str(versions.pop("command", "")).split(" "))),
        **{
            f"{name[0].upper()}{name[1:]}": str(value)
            for name, value in versions.items()
            if value is not None
        },
        "Licence": licence,
    }
    head = f"---\nlicense: {licence}\nlibrary_name: local2global\ntags:\n- video-instance-segmentation\n---\n"
    use = (
        f"```\nl2g predict clip.mp4 --weights hf://{repository}\n```\n\n"
        f'```python\nfrom local2global import L2G\n\nmodel = L2G.from_pretrained("hf://{repository}")\n'
        'for frame in model.stream("clip.mp4"):\n    print(frame.ids, frame.labels, frame.scores)\n```\n'
    )
    rows = [[name, value.replace("|", "\\|")] for name, value in facts.items() if value]
    scores = _scores(run)
    measured = markdown_table(["score", "value"], scores, right=["value"]) if scores else "Not measured."
    return (
        f"{head}\n# {repository.rpartition('/')[2]}\n\nOnline video instance segmentation with Local2Global query "
        f"alignment ([paper](https://arxiv.org/abs/2507.20120)).\n\n{use}\n## Scores\n\n{measured}\n\n"
        f"## Model and training\n\n{markdown_table(['', ''], rows)}\n"
    )


def _scores(run: Path) -> list[list[str]]:
    """Name and value of the last scores in metrics.jsonl, which are named `task/score`; -1 is an undefined score."""
    scores: dict[str, float] = {}
    for entry in read_entries(run / "metrics.jsonl"):
        latest = {name: value for name, value in entry.items() if "/" in name and isinstance(value, float)}
        scores = latest or scores
    return [
        [name, f"{value:.2f}"]
        for name, value in scores.items()
        if value >= 0 and not name.startswith("speed/")
    ]


def _datasets(node: Any) -> list[str]:
    """The datasets of a loader's config as calls, such as `load_split(name=ytvis_2021, split=train)`."""
    found: list[str] = []
    if isinstance(node, Mapping):
        for name, item in node.items():
            if name == "dataset" and isinstance(item, Mapping):
                values = (
                    f"{k}={_short(str(v))}" for k, v in item.items() if not isinstance(v, (Mapping, list))
                )
                arguments = ", ".join(value for value in values if not value.startswith("_target_"))
                found.append(f"{str(item.get('_target_', '')).rpartition('.')[2]}({arguments})")
            else:
                found += _datasets(item)
    elif isinstance(node, list):
        for item in node:
            found += _datasets(item)
    return list(dict.fromkeys(found))


def _short(text: str) -> str:
    """A word of a command or a config, with absolute paths shortened to their last part."""
    key, equals, value = text.rpartition("=")
    return f"{key}{equals}{Path(value).name}" if Path(value).is_absolute() else text
