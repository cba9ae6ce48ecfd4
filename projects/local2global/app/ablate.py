"""Ablations: one config trained over a grid of values, with the same seeds for each, and one table of what differs.

Every run has a folder of its own and is an ordinary run of `l2g train`: a finished one is kept, an interrupted one goes
on from its last checkpoint.  Runs of one seed see the same clips and draw the same numbers, so differences are taken
seed by seed.
"""

from __future__ import annotations

import copy
import itertools
import json
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

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console

#: Scores by setting and seed; a score that could not be computed is left out.
Results = Mapping[str, Mapping[int, Mapping[str, float]]]


@dataclass(frozen=True)
class Setting:
    """One point of the grid.

    Attributes:
        name: its folder's name.
        values: what each swept key is set to, as written.
        overrides: all of its overrides, fixed ones too.
    """

    name: str
    values: Mapping[str, str]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        setting: its point of the grid.
        seed: `train.seed`.
        folder: `train.output_dir`.
        overrides: the setting's, seed and folder too.
        cfg: the config with all of them applied.
    """

    setting: Setting
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    cfg: DictConfig


@dataclass(frozen=True)
class Row:
    """One score of one setting.

    Attributes:
        setting: its name.
        score: such as "segm/AP".
        seeds: how many runs it is the mean of.
        mean: over the seeds.
        spread: standard deviation over the seeds; NaN for one.
        difference: mean difference from the first setting, seed by seed; NaN for the first itself.
        low: lower end of the difference's 95 % interval (Student's t); NaN for fewer than two pairs.
        high: its upper end.
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
        """The sign of the difference, claimed only where its interval excludes 0."""
        if math.isnan(self.difference):
            return ""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "inconclusive"


# --- The grid ---


def grid(overrides: Sequence[str], rows: Sequence[str] = ()) -> list[Setting]:
    """The settings that overrides with several values, `key=a,b,c`, span; the last key changes fastest.

    Args:
        overrides: `key=value` and `key=a,b,c`.
        rows: `name=key=value key=value ...` each, settings that are no grid, such as a table's cumulative rows; every
            one spans the grid anew.

    Raises:
        UserError: an override or a row cannot be read, or a key or a row comes twice.
    """
    if not rows:
        return _grid(overrides)
    named = [_read_row(text) for text in rows]
    twice = [name for name, count in Counter(name for name, _ in named).items() if count > 1]
    if twice:
        raise UserError(f"--row: there are two called {twice[0]}")
    settings = []
    for row, own in named:
        for point in _grid(overrides):
            taken = {text.partition("=")[0].lstrip("+~") for text in own}.intersection(
                key.lstrip("+~") for key in point.values
            )
            if taken:  # its value would stand in the table, and the row's would be trained
                raise UserError(f"--row {row}: {taken.pop()} is swept outside the rows already")
            name = row if not point.values else f"{row},{point.name}"
            settings.append(Setting(name, {"row": row, **point.values}, (*point.overrides, *own)))
    return settings


def _read_row(text: str) -> tuple[str, list[str]]:
    """A row's name and its overrides, which change one value each."""
    name, equals, rest = text.partition("=")
    if not equals or not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(f"--row '{text}': expected NAME='KEY=VALUE KEY=VALUE ...'")
    try:
        own = shlex.split(rest)
    except ValueError as error:
        raise UserError(f"--row '{text}': {error}") from error
    if _grid(own)[0].values:
        raise UserError(f"--row '{text}': one value a key; what is swept stands outside the rows")
    return name, own


def _grid(overrides: Sequence[str]) -> list[Setting]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    fixed: list[str] = []
    swept: dict[str, list[str]] = {}
    for text in overrides:
        try:
            [override] = parser.parse_overrides([text])
            if not override.is_sweep_override():
                fixed.append(text)
                continue
            key = override.get_key_element()
            values = list(dict.fromkeys(override.sweep_string_iterator()))
        except HydraException as error:
            reason = " ".join(str(error).splitlines()[1:2])
            raise UserError(f"'{text}' is not an override such as key=value or key=a,b: {reason}") from error
        if key in swept:
            raise UserError(f"'{text}': {key} is swept already; write all its values in one: {key}=a,b,c")
        swept[key] = values
    settings: list[Setting] = []
    short = _short_names(list(swept))
    for point in itertools.product(*swept.values()):
        chosen = dict(zip(swept, point, strict=True))
        name = ",".join(f"{short[key]}={value}" for key, value in chosen.items()) or "config"
        name = re.sub(r"[^\w.=,+-]+", "_", name)
        if any(setting.name == name for setting in settings):
            name += f"_{len(settings)}"
        settings.append(Setting(name, chosen, (*fixed, *(f"{key}={value}" for key, value in chosen.items()))))
    return settings


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key's last part, or the whole key where two end alike."""
    ends = [key.lstrip("+").rpartition(".")[2] for key in keys]
    return {
        key: end if ends.count(end) == 1 else key.lstrip("+") for key, end in zip(keys, ends, strict=True)
    }


def plan(
    config: Path, overrides: Sequence[str], seeds: int, output: Path | None, rows: Sequence[str] = ()
) -> list[Run]:
    """Every run of an ablation, its config checked before the first one starts; setting by setting of each seed.

    Args:
        config: the config file.
        overrides: `key=value` and `key=a,b,c`.
        seeds: runs of each setting; their seeds count up from the config's own.
        output: the ablation's folder; by default named after the config's and what is swept.
        rows: settings that are no grid, see `grid`.

    Raises:
        UserError: an override is refused, or nothing would be scored.
    """
    from ..lazy import load_config

    settings = grid(overrides, rows)
    runs = []
    for number, setting in itertools.product(range(seeds), settings):
        cfg = load_config(config, setting.overrides)
        if "evaluator" not in cfg.get("dataloader", {}):
            raise UserError(f"{config}: no dataloader.evaluator, so there would be nothing to compare")
        seed = max(int(cfg.train.get("seed", 0)), 0) + number
        default = "_".join(
            [cfg.train.get("output_dir", "output"), "ablation", *_short_names(list(setting.values)).values()]
        )
        folder = (output or Path(default)) / setting.name / f"seed{seed}"
        cfg.train.seed, cfg.train.output_dir = seed, str(folder)
        added = (f"++train.seed={seed}", f"++train.output_dir='{folder}'")
        runs.append(Run(setting, seed, folder, (*setting.overrides, *added), cfg))
    return runs


# --- The runs ---


def scores_of(run: Run) -> dict[str, float] | None:
    """The scores at the end of a finished run, without those that are not defined (-1); None if it is not finished.

    Raises:
        UserError: the run's folder holds a run of another config.
    """
    from ..engine.run import train_settings

    settings = train_settings(copy.deepcopy(run.cfg))
    _expect_same_config(run)
    file = run.folder / "metrics.jsonl"
    if not file.is_file() or not (run.folder / "model_final.pth").is_file():
        return None
    scores: dict[str, float] | None = None
    for line in file.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # the run was killed while it wrote
        if entry.pop("iteration") == settings.max_iter - 1 and any("/" in name for name in entry):
            scores = {
                name: value
                for name, value in entry.items()
                if "/" in name
                and value not in (None, -1)
                and not name.removeprefix("ema_").startswith("speed/")
            }
    return scores


def _expect_same_config(run: Run) -> None:
    import yaml

    from ..engine.run import train_settings
    from ..lazy import resolve

    path = run.folder / "config.yaml"
    if not path.is_file():
        return
    cfg = copy.deepcopy(run.cfg)
    train_settings(cfg)
    before, now = _flat(yaml.safe_load(path.read_text(encoding="utf-8"))), _flat(resolve(cfg))
    other = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if other:
        key = other[0]
        raise UserError(
            f"{run.folder}: a run of another config: {key} was {before.get(key)}, not {now.get(key)}. "
            "Choose another folder with --output, or delete this one."
        )


def _flat(value: Any, key: str = "") -> dict[str, str]:
    """Nested values by dotted key, without the addresses of objects."""
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    if not items:
        return {key: re.sub(r" at 0x[0-9a-f]+", "", repr(value))}
    return {k: v for name, each in items for k, v in _flat(each, f"{key}.{name}".lstrip(".")).items()}


def _train(config: Path, run: Run, gpus: int, console: Console) -> None:
    if gpus == 1:
        from ..engine.loop import train

        train(run.cfg, resume=True, progress=console)
        return
    from ..engine.processes import launch_command

    arguments = ["-m", "local2global", "train", str(config), *run.overrides, "--resume"]
    if subprocess.run(launch_command(arguments, gpus), check=False).returncode:
        raise UserError("the run ended before its time; see above")


def ablate(
    config: Path,
    overrides: Sequence[str],
    seeds: int,
    output: Path | None,
    gpus: int = 1,
    rows: Sequence[str] = (),
) -> Path:
    """Train what is not trained yet and write the table after every run.

    Args:
        config: the config file.
        overrides: `key=value` and `key=a,b,c`.
        seeds: runs of each setting.
        output: the ablation's folder.
        gpus: processes of each run.
        rows: settings that are no grid, see `grid`.

    Returns:
        The table, `ablation.md`; `ablation.csv` lies beside it.

    Raises:
        UserError: bad input, before anything runs; at the end, if runs have failed.
    """
    from rich.console import Console

    console = Console(stderr=True)
    runs = plan(config, overrides, seeds, output, rows)
    for run in runs:
        scores_of(run)  # a folder of another config is refused before hours are spent
    folder = runs[0].folder.parents[1]
    make_folder(folder, "--output")
    results: dict[str, dict[int, dict[str, float]]] = {run.setting.name: {} for run in runs}
    failed = []
    for number, run in enumerate(runs, start=1):
        scores = scores_of(run)
        what = f"[{number}/{len(runs)}] {run.setting.name}, seed {run.seed}"
        console.print(
            f"{what}: {'is done' if scores is not None else run.folder}", highlight=False, soft_wrap=True
        )
        if scores is None:
            try:
                _train(config, run, gpus, console)
                scores = scores_of(run)
            except UserError as error:
                console.print(f"{what}: {error}", highlight=False, soft_wrap=True)
        if scores is None:
            failed.append(what)
            continue
        results[run.setting.name][run.seed] = scores
        command = _command(config, overrides, seeds, output, gpus, rows)
        write_tables(folder, runs, summarise(results), command)
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}. The rest is kept.")
    return folder / "ablation.md"


def _command(
    config: Path,
    overrides: Sequence[str],
    seeds: int,
    output: Path | None,
    gpus: int,
    rows: Sequence[str] = (),
) -> str:
    words = ["l2g", "ablate", str(config), *overrides]
    words += [word for row in rows for word in ("--row", row)] + ["--seeds", str(seeds)]
    words += ["--output", str(output)] if output is not None else []
    return shlex.join([*words, *(["--gpus", str(gpus)] if gpus > 1 else [])])


# --- The table ---


def summarise(results: Results) -> list[Row]:
    """Mean, spread and paired difference from the first setting, of every score of every setting."""
    rows = []
    first = next(iter(results))
    for setting, by_seed in results.items():
        names = dict.fromkeys(name for scores in by_seed.values() for name in scores)
        for name in names:
            values = {seed: scores[name] for seed, scores in by_seed.items() if name in scores}
            spread = statistics.stdev(values.values()) if len(values) > 1 else math.nan
            row = Row(setting, name, len(values), statistics.fmean(values.values()), spread)
            if setting != first:
                base = {seed: scores[name] for seed, scores in results[first].items() if name in scores}
                pairs = [values[seed] - base[seed] for seed in values if seed in base]
                row = Row(setting, name, row.seeds, row.mean, spread, *interval(pairs))
            rows.append(row)
    return rows


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """The mean of paired differences and its 95 % interval by Student's t; NaN where there are too few."""
    if not differences:
        return math.nan, math.nan, math.nan
    mean = statistics.fmean(differences)
    if len(differences) == 1:
        return mean, math.nan, math.nan
    from scipy.stats import t

    reach = float(t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences)
    reach /= math.sqrt(len(differences))
    return mean, mean - reach, mean + reach


def write_tables(folder: Path, runs: Sequence[Run], rows: Sequence[Row], command: str) -> None:
    """Write `ablation.md` and `ablation.csv` into the ablation's folder."""
    from ..config.saved import write_text

    settings = {run.setting.name: run.setting for run in runs}
    write_text(folder / "ablation.md", markdown(settings, rows, command))
    write_text(folder / "ablation.csv", csv_text(settings, rows))


def markdown(settings: Mapping[str, Setting], rows: Sequence[Row], command: str) -> str:
    """The table for people: one row a setting; the scores of the first task, and how its first score differs."""
    keys = list(next(iter(settings.values())).values)
    task = rows[0].score.rpartition("/")[0]
    scores = list(dict.fromkeys(row.score for row in rows if row.score.rpartition("/")[0] == task))
    main = scores[0]
    titles = [score.rpartition("/")[2] for score in scores]
    head = [*keys, "seeds", *titles, f"{titles[0]} against the first [95 %]", ""]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, setting in settings.items():
        own = {row.score: row for row in rows if row.setting == name}
        if main not in own:
            continue
        cells = [*setting.values.values(), str(own[main].seeds)]
        cells += [_mean(own[score]) if score in own else "-" for score in scores]
        lines.append(f"| {' | '.join([*cells, _difference(own[main]), own[main].verdict])} |")
    note = (
        "Mean ± standard deviation over seeds; differences are paired by seed, their interval is Student's t."
    )
    return "\n".join([f"`{command}`", "", *lines, "", note, ""])


def _mean(row: Row) -> str:
    return f"{row.mean:.2f}" if math.isnan(row.spread) else f"{row.mean:.2f} ± {row.spread:.2f}"


def _difference(row: Row) -> str:
    if math.isnan(row.difference):
        return "-"
    between = "" if math.isnan(row.low) else f" [{row.low:+.2f}, {row.high:+.2f}]"
    return f"{row.difference:+.2f}{between}"


def csv_text(settings: Mapping[str, Setting], rows: Sequence[Row]) -> str:
    """The table for programs: one row for every score of every setting; what does not exist is empty."""
    import csv
    import io

    keys = list(next(iter(settings.values())).values)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*keys, "score", "seeds", "mean", "spread", "difference", "low_95", "high_95", "verdict"])
    for row in rows:
        numbers = (row.mean, row.spread, row.difference, row.low, row.high)
        cells = ["" if math.isnan(number) else repr(number) for number in numbers]
        writer.writerow([*settings[row.setting].values.values(), row.score, row.seeds, *cells, row.verdict])
    return text.getvalue()
