"""`l2g ablate`: trains a config over a grid of values and seeds, and writes one table of the differences.

Every run has its own folder and equals a run of `l2g train`.  Finished runs are reused, interrupted runs are resumed.
All settings use the same seeds.  Runs of one seed sample the same clips, so differences are paired by seed.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
import shlex
import statistics
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, make_folder
from .output import csv_table, markdown_table

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console

#: Scores by setting and seed; undefined scores are left out.
Results = Mapping[str, Mapping[int, Mapping[str, float]]]


@dataclass(frozen=True)
class Setting:
    """A point of the grid.

    Attributes:
        name: folder name.
        values: value of each swept key, as written on the command line.
        overrides: all overrides of the setting, the fixed ones included.
    """

    name: str
    values: Mapping[str, str]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        setting: the point of the grid.
        seed: `train.seed`.
        folder: `train.output_dir`.
        cfg: the config with all overrides applied.
    """

    setting: Setting
    seed: int
    folder: Path
    cfg: DictConfig

    @property
    def overrides(self) -> tuple[str, ...]:
        """All overrides of the config file, seed and folder included."""
        folder = f"++train.output_dir='{self.folder}'"
        return (*self.setting.overrides, f"++train.seed={self.seed}", folder)


@dataclass(frozen=True)
class Row:
    """Statistics of one score of one setting.

    Attributes:
        setting: name of the setting.
        score: e.g. "segm/AP".
        seeds: number of runs.
        mean: mean over the runs.
        spread: standard deviation over the runs; NaN for a single run.
        difference: mean of the paired differences from the first setting; NaN for the first setting itself.
        low: lower end of the 95 % confidence interval of the difference; NaN for fewer than two pairs.
        high: upper end.
    """

    setting: str
    score: str
    seeds: int
    mean: float
    spread: float
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def verdict(self) -> str:
        """The sign of the difference, "higher" or "lower", or "inconclusive" if the interval contains 0."""
        if math.isnan(self.difference):
            return ""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "inconclusive"

    def format_difference(self) -> str:
        """The difference with its interval, such as "+0.50 [+0.10, +0.90]"; empty for the first setting."""
        if math.isnan(self.difference):
            return ""
        interval = "" if math.isnan(self.low) else f" [{self.low:+.2f}, {self.high:+.2f}]"
        return f"{self.difference:+.2f}{interval}"


# --- Settings and runs ---


def grid(overrides: Sequence[str], rows: Sequence[str] = ()) -> list[Setting]:
    """Expands overrides with several values, `key=a,b,c`, to the settings of the grid.  The last key varies fastest.

    Args:
        overrides: `key=value` and `key=a,b,c`.
        rows: `NAME=key=value key=value ...`, settings that are not a grid, such as the rows of a table.  The grid is
            repeated for each row.

    Raises:
        UserError: if an override or a row cannot be parsed, or a key or a row occurs twice.
    """
    points = _expand(overrides)
    if not rows:
        return points
    parsed = [_parse_row(text) for text in rows]
    duplicate, count = Counter(name for name, _ in parsed).most_common(1)[0]
    if count > 1:
        raise UserError(f"--row: there are two rows called {duplicate}")
    settings = []
    for (row, row_overrides), point in itertools.product(parsed, points):
        swept = {key.lstrip("+~") for key in point.values}
        for text in row_overrides:
            key = text.partition("=")[0].lstrip("+~")
            if key in swept:
                raise UserError(f"--row {row}: {key} is also swept by {key}=...; set it in one place")
        name = row if not point.values else f"{row},{point.name}"
        settings.append(Setting(name, {"row": row, **point.values}, (*point.overrides, *row_overrides)))
    return settings


def _parse_row(text: str) -> tuple[str, list[str]]:
    """Splits `NAME=key=value key=value ...` into the name and the overrides."""
    name, equals, rest = text.partition("=")
    if not equals or not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(f"--row '{text}': expected NAME='KEY=VALUE KEY=VALUE ...'")
    try:
        overrides = shlex.split(rest)
    except ValueError as error:
        raise UserError(f"--row '{text}': {error}") from error
    if _expand(overrides)[0].values:
        raise UserError(f"--row '{text}': a row has one value per key; sweep a key outside the rows")
    return name, overrides


def _expand(overrides: Sequence[str]) -> list[Setting]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    fixed: list[str] = []
    swept: dict[str, list[str]] = {}
    for text in overrides:
        try:
            override = parser.parse_override(text)
            if not override.is_sweep_override():
                fixed.append(text)
                continue
            key = override.get_key_element()
            values = list(dict.fromkeys(override.sweep_string_iterator()))
        except HydraException as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"'{text}' is not an override such as key=value or key=a,b: {reason}") from error
        if key in swept:
            raise UserError(f"'{text}': {key} is swept twice; write all its values as {key}=a,b,c")
        swept[key] = values
    settings: dict[str, Setting] = {}
    short = _short_names(list(swept))
    for point in itertools.product(*swept.values()):
        values_by_key = dict(zip(swept, point, strict=True))
        name = ",".join(f"{short[key]}={value}" for key, value in values_by_key.items()) or "config"
        name = re.sub(r"[^\w.=,+-]+", "_", name)
        if name in settings:
            name += f"_{len(settings)}"
        chosen = (f"{key}={value}" for key, value in values_by_key.items())
        settings[name] = Setting(name, values_by_key, (*fixed, *chosen))
    return list(settings.values())


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Maps each key to its last part, or to the whole key where last parts collide."""
    full = [key.lstrip("+") for key in keys]
    last = [key.rpartition(".")[2] for key in full]
    return {key: b if last.count(b) == 1 else a for key, a, b in zip(keys, full, last, strict=True)}


def plan(
    config: Path, overrides: Sequence[str], seeds: int, output: Path | None, rows: Sequence[str] = ()
) -> list[Run]:
    """Lists all runs, the settings of one seed next to each other.  All configs are checked first.

    Args:
        config: config file.
        overrides: `key=value` and `key=a,b,c`.
        seeds: runs per setting; seeds count up from the config's `train.seed`.
        output: folder of the ablation; the default is named after `train.output_dir` and the swept keys.
        rows: settings that are not a grid, see `grid`.

    Raises:
        UserError: if an override is refused, or the config has no evaluator.
    """
    from ..engine.evaluation import evaluates
    from ..engine.loop import checked
    from ..lazy import load_config

    runs = []
    for number, setting in itertools.product(range(seeds), grid(overrides, rows)):
        cfg = load_config(config, setting.overrides)
        if not evaluates(cfg):
            raise UserError(f"{config}: no dataloader.evaluator, so there are no scores to compare")
        checked(cfg)  # a mistake ends the ablation before the first run
        seed = max(int(cfg.train.get("seed", 0)), 0) + number
        keys = _short_names(list(setting.values)).values()
        default = "_".join([cfg.train.get("output_dir", "output"), "ablation", *keys])
        folder = (output or Path(default)) / setting.name / f"seed{seed}"
        cfg.train.seed, cfg.train.output_dir = seed, str(folder)
        runs.append(Run(setting, seed, folder, cfg))
    return runs


# --- Training ---


def scores_of(run: Run) -> dict[str, float] | None:
    """Reads the final scores of a finished run, without undefined scores (-1); None if the run is not finished.

    Raises:
        UserError: if the folder holds a run of another config.
    """
    from ..engine.metrics import read_entries
    from ..engine.settings import train_settings

    cfg = copy.deepcopy(run.cfg)
    last = train_settings(cfg).max_iter - 1
    _check_same_config(run.folder, cfg)
    if not (run.folder / "model_final.pth").is_file():
        return None
    scores = None
    for entry in read_entries(run.folder / "metrics.jsonl"):
        defined = {name: value for name, value in entry.items() if "/" in name and value not in (None, -1)}
        if entry["iteration"] == last and any("/" in name for name in entry):
            scores = {k: v for k, v in defined.items() if not k.removeprefix("ema_").startswith("speed/")}
    return scores


def _check_same_config(folder: Path, cfg: DictConfig) -> None:
    from ..config.saved import read_yaml
    from ..lazy import resolve

    path = folder / "config.yaml"
    if not path.is_file():
        return
    saved, current = _flatten(read_yaml(path)), _flatten(resolve(cfg))
    for key in {**saved, **current}:
        if saved.get(key) != current.get(key):
            raise UserError(
                f"{folder}: a run of another config: {key} was {saved.get(key)}, not {current.get(key)}. "
                "Choose another folder with --output, or delete this one."
            )


def _flatten(value: Any, key: str = "") -> dict[str, str]:
    """Nested values by dotted key, as text without memory addresses."""
    items = (
        enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, Mapping) else ()
    )
    if not value or not items:
        return {key: re.sub(r" at 0x[0-9a-f]+", "", repr(value))}
    return {k: v for name, item in items for k, v in _flatten(item, f"{key}.{name}".lstrip(".")).items()}


def _train(config: Path, run: Run, gpus: int, console: Console) -> None:
    if gpus == 1:
        from ..engine.loop import train

        train(run.cfg, resume=True, progress=console)
        return
    from ..engine.processes import launch_command

    arguments = ["-m", "local2global", "train", str(config), *run.overrides, "--resume"]
    if subprocess.run(launch_command(arguments, gpus), check=False).returncode:
        raise UserError("the training processes failed; see the messages above")


def ablate(
    config: Path,
    overrides: Sequence[str],
    seeds: int,
    output: Path | None,
    gpus: int = 1,
    rows: Sequence[str] = (),
) -> Path:
    """Trains all runs that are not finished and rewrites the table after each of them.

    Args:
        config: config file.
        overrides: `key=value` and `key=a,b,c`.
        seeds: runs per setting.
        output: folder of the ablation.
        gpus: processes per run.
        rows: settings that are not a grid, see `grid`.

    Returns:
        Path of the table, `ablation.md`; `ablation.csv` is written beside it.

    Raises:
        UserError: for bad input, before any run starts; after the last run, if runs failed.
    """
    from rich.console import Console

    console = Console(stderr=True)
    runs = plan(config, overrides, seeds, output, rows)
    for run in runs:
        scores_of(run)  # refuses folders of other configs before training starts
    folder = runs[0].folder.parents[1]
    make_folder(folder, "--output")
    command = _command(config, overrides, seeds, output, gpus, rows)
    results: dict[str, dict[int, dict[str, float]]] = {run.setting.name: {} for run in runs}
    failed = []
    for number, run in enumerate(runs, start=1):
        scores = scores_of(run)
        title = f"[{number}/{len(runs)}] {run.setting.name}, seed {run.seed}"
        status = run.folder if scores is None else "already finished"
        console.print(f"{title}: {status}", highlight=False, soft_wrap=True)
        if scores is None:
            try:
                _train(config, run, gpus, console)
                scores = scores_of(run)
            except UserError as error:
                console.print(f"{title}: {error}", highlight=False, soft_wrap=True)
        if scores is None:
            failed.append(title)
            continue
        results[run.setting.name][run.seed] = scores
        write_tables(folder, runs, summarise(results), command)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}. The others are saved."
        )
    return folder / "ablation.md"


def _command(
    config: Path, overrides: Sequence[str], seeds: int, output: Path | None, gpus: int, rows: Sequence[str]
) -> str:
    """The command line that repeats the ablation."""
    words = ["l2g", "ablate", str(config), *overrides]
    words += [word for row in rows for word in ("--row", row)] + ["--seeds", str(seeds)]
    words += ["--output", str(output)] if output is not None else []
    return shlex.join(words + (["--gpus", str(gpus)] if gpus > 1 else []))


# --- The table ---


def summarise(results: Results) -> list[Row]:
    """Mean, standard deviation and paired difference from the first setting, for all scores of all settings."""
    rows = []
    first = next(iter(results))
    for setting, by_seed in results.items():
        for name in dict.fromkeys(name for scores in by_seed.values() for name in scores):
            values = {seed: scores[name] for seed, scores in by_seed.items() if name in scores}
            spread = statistics.stdev(values.values()) if len(values) > 1 else math.nan
            difference = (math.nan, math.nan, math.nan)
            if setting != first:
                base = {seed: scores[name] for seed, scores in results[first].items() if name in scores}
                difference = interval([values[seed] - base[seed] for seed in values if seed in base])
            mean = statistics.fmean(values.values())
            rows.append(Row(setting, name, len(values), mean, spread, *difference))
    return rows


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean of paired differences and its 95 % confidence interval (Student's t).

    Returns:
        (mean, low, high); all NaN without differences, low and high NaN for a single one.
    """
    if not differences:
        return math.nan, math.nan, math.nan
    mean, count = statistics.fmean(differences), len(differences)
    if count == 1:
        return mean, math.nan, math.nan
    from scipy.stats import t

    margin = float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    return mean, mean - margin, mean + margin


def write_tables(folder: Path, runs: Sequence[Run], rows: Sequence[Row], command: str) -> None:
    """Writes `ablation.md` and `ablation.csv` into the folder of the ablation."""
    from ..files import write_text

    settings = {run.setting.name: run.setting for run in runs}
    write_text(folder / "ablation.md", _markdown(settings, rows, command))
    write_text(folder / "ablation.csv", _csv(settings, rows))


def _markdown(settings: Mapping[str, Setting], rows: Sequence[Row], command: str) -> str:
    """One line per setting: the scores of the first task, and the difference of its first score."""
    task = rows[0].score.rpartition("/")[0]
    scores = list(dict.fromkeys(row.score for row in rows if row.score.rpartition("/")[0] == task))
    titles = [score.rpartition("/")[2] for score in scores]
    keys = list(next(iter(settings.values())).values)
    cells = []
    for name, setting in settings.items():
        by_score = {row.score: row for row in rows if row.setting == name}
        main = by_score.get(scores[0])
        if main is not None:
            means = [_mean(by_score[score]) if score in by_score else "-" for score in scores]
            cells.append(
                [
                    *setting.values.values(),
                    str(main.seeds),
                    *means,
                    main.format_difference() or "-",
                    main.verdict,
                ]
            )
    head = [*keys, "seeds", *titles, f"{titles[0]} against the first [95 %]", ""]
    note = "Mean ± standard deviation over seeds; differences are paired by seed, with Student's t interval."
    return f"`{command}`\n\n{markdown_table(head, cells)}\n\n{note}\n"


def _mean(row: Row) -> str:
    return f"{row.mean:.2f}" if math.isnan(row.spread) else f"{row.mean:.2f} ± {row.spread:.2f}"


def _csv(settings: Mapping[str, Setting], rows: Sequence[Row]) -> str:
    """One line per score and setting; undefined statistics are empty."""
    keys = list(next(iter(settings.values())).values)
    names = ["score", "seeds", "mean", "spread", "difference", "low_95", "high_95", "verdict"]
    lines: list[list[Any]] = []
    for row in rows:
        statistics_ = (row.mean, row.spread, row.difference, row.low, row.high)
        cells = ["" if math.isnan(x) else repr(x) for x in statistics_]
        lines.append([*settings[row.setting].values.values(), row.score, row.seeds, *cells, row.verdict])
    return csv_table([*keys, *names], lines)
