"""The engine on a linear regression: schedule, accumulation, precision, EMA, checks, resume, processes."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from local2global.engine.loop import evaluate, train
from local2global.engine.processes import launch_command
from local2global.engine.run_folder import is_run_of, lock_results, refuse_run
from local2global.engine.trainer import Trainer, endless
from local2global.errors import UserError
from local2global.files import locked_folder
from local2global.weights.checkpoint import load_checkpoint
from local2global.weights.find import find_weights
from loopback import FileServer

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

import fake_run  # noqa: E402

torch.set_num_threads(1)


def run(folder, *overrides, resume=False, overwrite=False):
    """Train; return the console output and the scores."""
    output = io.StringIO()
    console = Console(file=output, width=200)
    scores = train(fake_run.config(folder, *overrides), resume=resume, overwrite=overwrite, progress=console)
    return output.getvalue(), scores


def weights(folder, name="model_final.pth", key="model"):
    return load_checkpoint(folder / name)[key]


def environment():
    path = os.pathsep.join([str(HERE), str(HERE.parent / "projects"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def test_learning_rate_is_the_base_times_the_schedule_at_iteration_over_max_iter(tmp_path):
    run(tmp_path)
    rates = [entry["lr"] for entry in fake_run.curve(tmp_path)]
    assert rates == pytest.approx([0.05] * 6 + [0.005] * 4)


def test_total_loss_is_the_sum_of_every_entry(tmp_path):
    run(tmp_path, "model.noise=0.1")
    for entry in fake_run.curve(tmp_path):
        parts = sum(value for name, value in entry.items() if name.startswith("loss_"))
        assert entry["total_loss"] == pytest.approx(parts, abs=1e-6)


def test_the_model_converges_and_is_scored(tmp_path):
    output, scores = run(
        tmp_path, "train.max_iter=200", "train.log_period=50", "train.checkpointer.period=500"
    )
    assert scores["line"]["error"] < 0.2
    assert scores["speed"]["frames_per_second"] > 0
    assert "iteration 50/200" in output
    assert "error" in output
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["iteration"] for entry in entries] == [49, 99, 149, 199, 199]
    assert entries[-1]["line/error"] == pytest.approx(scores["line"]["error"])


def test_evaluation_runs_each_period_and_once_at_the_end(tmp_path):
    run(tmp_path, "train.eval_period=5", "train.log_period=100")
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["iteration"] for entry in entries if "line/error" in entry] == [4, 9]


def test_two_accumulated_batches_equal_one_batch_of_twice_the_size(tmp_path):
    """Batches 0 and 1 of two clips each against one batch of the same four clips."""
    run(tmp_path / "parts", "train.max_iter=1", "train.accumulate=2", "dataloader.train.batch=2")
    torch.manual_seed(3)
    start = fake_run.Model()
    clips = [fake_run.sample(3, iteration, index) for iteration in range(2) for index in range(2)]
    optimizer = torch.optim.AdamW(start.parameters(), lr=0.05, betas=(0.9, 0.99))
    sum(start(clips).values()).backward()
    optimizer.step()
    for name, value in start.state_dict().items():
        torch.testing.assert_close(weights(tmp_path / "parts")[name], value)


def test_the_gradient_norm_of_the_whole_model_is_clipped(tmp_path):
    plain = ("train.max_iter=1", "optimizer._target_=torch.optim.SGD", "optimizer.lr=1.0")
    cfg = fake_run.config(tmp_path, *plain, "train.clip_grad.enabled=True")
    del cfg.optimizer.betas
    cfg.train.clip_grad.params = {"max_norm": 0.01, "norm_type": 2}
    train(cfg, progress=Console(quiet=True))
    torch.manual_seed(3)
    start = fake_run.Model()
    moved = [weights(tmp_path)[name] - value for name, value in start.named_parameters()]
    assert torch.cat([step.flatten() for step in moved]).norm().item() == pytest.approx(0.01, rel=1e-3)
    assert fake_run.curve(tmp_path)[0]["grad_norm"] > 0.01


def test_the_weight_average_is_exponential(tmp_path):
    every = ("train.checkpointer.period=1", "train.max_iter=2")
    _, scores = run(tmp_path, *every, "train.model_ema.enabled=True", "train.model_ema.decay=0.75")
    torch.manual_seed(3)
    first = fake_run.Model().layer.weight.detach()
    second, third = (weights(tmp_path, f"model_000000{i}.pth")["layer.weight"] for i in range(2))
    expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
    torch.testing.assert_close(weights(tmp_path, key="ema_state")["layer.weight"], expected)
    assert scores["ema_line"]["error"] != scores["line"]["error"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_trains(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    lean = ("train.max_iter=30", "train.amp.enabled=True", "train.checkpointer.period=100")
    run(
        tmp_path,
        *lean,
        f"train.amp.dtype={dtype}",
        "train.clip_grad.enabled=True",
        "train.clip_grad.params.max_norm=9",
    )
    losses = [entry["total_loss"] for entry in fake_run.curve(tmp_path)]
    assert losses[-1] < losses[0]
    full = tmp_path / "full"
    run(full, *lean[:1])
    assert losses != [entry["total_loss"] for entry in fake_run.curve(full)]
    assert bool(weights(tmp_path, key="scaler")) == (dtype == "float16")


NOISY = ("model.noise=0.1", "train.model_ema.enabled=True", "train.eval_period=3", "train.accumulate=2")


def test_a_run_resumed_after_sigkill_equals_the_uninterrupted_run_bit_for_bit(tmp_path):
    run(tmp_path / "whole", *NOISY)
    broken = tmp_path / "broken"
    script = [sys.executable, str(HERE / "fake_run.py"), str(broken), *NOISY, "model.events.14=SIGKILL"]
    assert subprocess.run(script, env=environment(), capture_output=True, check=False).returncode == -9
    assert [entry["iteration"] for entry in fake_run.curve(broken)] == list(range(7))
    assert (broken / "last_checkpoint").read_text() == "model_0000003.pth"
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 7, "total_l')
    run(broken, *NOISY, resume=True)
    assert fake_run.entries(broken) == fake_run.entries(tmp_path / "whole")
    for key in ("model", "ema_state"):
        ours, theirs = weights(broken, key=key), weights(tmp_path / "whole", key=key)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_curriculum_with_accumulation_switches_loaders_and_resumes_at_the_same_iteration(tmp_path):
    """Batches of two, from iteration 5 on of six, two per step.  Interrupted in iteration 3, before the switch."""
    loaders = [{"_target_": "fake_run.Loader", "batch": batch, "seed": 3} for batch in (2, 6)]
    curriculum = {"_target_": "local2global.data.loader.Curriculum", "loaders": loaders, "starts": [0, 5]}

    def trained(folder, *overrides, resume=False):
        cfg = fake_run.config(folder, *NOISY, *overrides)
        cfg.dataloader.train = curriculum
        train(cfg, resume=resume, progress=Console(quiet=True))
        return fake_run.curve(folder)

    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", "model.events.7=SIGINT")
    assert (tmp_path / "parts" / "last_checkpoint").read_text() == "model_0000003.pth"
    assert trained(tmp_path / "parts", resume=True) == whole
    loaders[1]["batch"] = 2
    constant = trained(tmp_path / "constant")
    assert [a == b for a, b in zip(whole, constant, strict=True)] == [True] * 5 + [False] * 5


def test_resume_keeps_a_drawn_seed(tmp_path):
    run(tmp_path, "train.seed=-1", "train.max_iter=4")
    seed = json.loads((tmp_path / "versions.json").read_text())["seed"]
    assert seed >= 0
    run(tmp_path, "train.seed=-1", resume=True)
    assert json.loads((tmp_path / "versions.json").read_text())["seed"] == seed


def test_resume_of_a_finished_run_only_evaluates(tmp_path):
    _, scores = run(tmp_path)
    log = (tmp_path / "metrics.jsonl").read_text()
    output, again = run(tmp_path, resume=True)
    assert "nothing left to train" in output
    assert again["line"] == scores["line"]
    assert (tmp_path / "metrics.jsonl").read_text() == log
    assert len(fake_run.curve(tmp_path)) == 10


def test_sigint_finishes_the_step_and_saves_a_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "model.events.5=SIGINT")
    assert (tmp_path / "last_checkpoint").read_text() in ("model_0000005.pth", "model_0000006.pth")
    run(tmp_path, resume=True)
    assert [entry["iteration"] for entry in fake_run.curve(tmp_path)] == list(range(10))


@pytest.mark.parametrize(
    ("period", "last", "message"),
    [(3, "model_0000002.pth", "interrupted; saved"), (0, "model_final.pth", "interrupted in the last eval")],
)
def test_sigint_ends_an_evaluation_after_the_video(tmp_path, period, last, message):
    """In an evaluation without a checkpoint before it, one is saved; the last one is repeated by a resume."""
    marker, output = tmp_path / "marker", io.StringIO()
    cfg = fake_run.config(tmp_path / "run", f"train.eval_period={period}")
    cfg.dataloader.evaluator = {"_target_": "fake_run.InterruptedEvaluator", "marker": str(marker)}
    with pytest.raises(KeyboardInterrupt):
        train(cfg, progress=Console(file=output, width=300))
    assert message in output.getvalue()
    assert (tmp_path / "run" / "last_checkpoint").read_text() == last
    marker.write_text("resumed")
    assert "error" in train(cfg, resume=True, progress=Console(quiet=True))["line"]
    assert [entry["iteration"] for entry in fake_run.curve(tmp_path / "run")] == list(range(10))


def test_a_non_finite_loss_is_named_and_not_saved(tmp_path):
    with pytest.raises(UserError, match=r"iteration 5: loss_size is nan, .*video 100 \(key 3/5/0\)") as error:
        run(tmp_path, "model.events.5=nan")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.glob("*.pth*")) == ["model_0000003.pth"]
    assert [entry["iteration"] for entry in fake_run.curve(tmp_path)] == list(range(5))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_itr=3", "no key 'train.max_itr'. Did you mean 'train.max_iter'"),
        ("train.amp.enable=True", "no key 'train.amp.enable'. Did you mean 'train.amp.enabled'"),
        ("train.log_period=0", "train.log_period=0: expected a positive whole number"),
        ("train.amp.enabled='no'", "train.amp.enabled=no: expected true or false"),
        ("train.model_ema.decay=high", "train.model_ema.decay=high: expected a number"),
        ("train.output_dir=3", "train.output_dir=3: expected text"),
        ("train.ddp=3", "train.ddp=3: expected keys broadcast_buffers"),
        ("train.amp.dtype=int8", "train.amp.dtype=int8: expected one of float16"),
        ("train.device=toaster", "train.device=toaster"),
        ("train.output_dir=' '", "train.output_dir=' ': expected a folder"),
        ("train.seed=abc", "train.seed=abc: expected a whole number"),
        ("train.seed=1.5", "train.seed=1.5: expected a whole number"),
        (f"train.seed={1 << 64}", "expected a smaller number"),
        ("train.model_ema.decay=2", "train.model_ema.decay=2: expected a number from 0 up to, but not, 1"),
        ("train.model_ema.decay=.nan", "train.model_ema.decay=nan: expected a number from 0"),
        ("train.clip_grad.params.max_norm=-1", "max_norm=-1: expected a positive number"),
        ("train.eval_period=often", "train.eval_period=often: expected a whole number, 0 or more"),
        ("train.checkpointer.max_to_keep=-1", "train.checkpointer.max_to_keep=-1: expected a whole number"),
        ("optimizer.lr=fast", "invalid config: optimizer: "),
        ("model.nois=1", "model: Model has no parameter 'nois'. Did you mean 'noise'?"),
        ("train.init_checkpoint=nowhere.pth", "nowhere.pth: no such weights"),
        ("train.output_dir=/dev/null/run", "/dev/null/run: this folder cannot be created (Not a directory)"),
        ("model=null", "the config has no 'model'"),
        ("lr_multiplier=3", "lr_multiplier=3: expected a schedule, a component with a _target_"),
        ("dataloader.train=3", "dataloader.train=3: expected a loader, a component with a _target_"),
        ("dataloader.train=null", "the config has no 'dataloader.train'"),
    ],
)
def test_invalid_settings_are_refused_before_any_file_is_written(tmp_path, override, message):
    with pytest.raises(UserError) as error:
        run(tmp_path / "run", override)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_missing_wandb_is_reported_with_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        run(tmp_path, "train.wandb.enabled=True")


def test_fast_dev_run_is_twenty_iterations(tmp_path):
    run(tmp_path, "train.fast_dev_run.enabled=True", "train.max_iter=500", "train.log_period=7")
    assert len(fake_run.curve(tmp_path)) == 20


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run(tmp_path, "train.checkpointer.period=2", "train.checkpointer.max_to_keep=2")
    names = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert names == ["model_0000007.pth", "model_0000009.pth", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_higher_iteration_numbers_do_not_displace_new_checkpoints(tmp_path):
    """A run resumed from an older checkpoint than its last one."""
    run(tmp_path, "train.checkpointer.period=2")
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    (tmp_path / "model_0000009.pth").rename(tmp_path / "model_0099999.pth")
    run(tmp_path, "train.checkpointer.period=5", "train.checkpointer.max_to_keep=1", resume=True)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["model_0000009.pth", "model_final.pth"]


def test_overwrite_removes_the_checkpoints_and_curves_of_the_earlier_run(tmp_path):
    """A numbered checkpoint alone is an earlier run, too."""
    run(tmp_path, "train.checkpointer.period=2")
    boards = {path.name for path in tmp_path.glob("events*")}
    with pytest.raises(UserError, match="iteration 3"):
        run(tmp_path, "model.events.3=nan", overwrite=True)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == []
    assert not boards & {path.name for path in tmp_path.glob("events*")}
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "model_0000004.pth").touch()
    with pytest.raises(UserError, match="holds an earlier run"):
        run(tmp_path)


def test_initial_weights_are_loaded_where_they_fit_and_reported(tmp_path):
    state = {"layer.weight": torch.full((1, 3), 5.0), "head.bias": torch.zeros(2)}
    torch.save(state, tmp_path / "start.pth")
    start = ("train.max_iter=1", f"train.init_checkpoint={tmp_path / 'start.pth'}")
    with pytest.raises(UserError, match=r"only some of layer fits \(layer\.bias\).*train\.init_partial=true"):
        run(tmp_path / "run", *start)
    output, _ = run(tmp_path / "run", *start, "train.init_partial=true")
    assert weights(tmp_path / "run")["layer.weight"].min() > 4.9
    report = (tmp_path / "run" / "load_report.txt").read_text()
    assert "head: 1 unexpected" in report
    assert "weights " + str(tmp_path / "start.pth") + ": 1 of 3 tensors loaded, 1 not used" in output
    assert "\nrandom  layer\n" in output


def test_initial_weights_are_downloaded_from_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv("L2G_CACHE", str(tmp_path / "cache"))
    torch.save(
        {"layer.weight": torch.full((1, 3), 5.0), "layer.bias": torch.zeros(1)}, tmp_path / "start.pth"
    )
    with FileServer({"/start.pth": (tmp_path / "start.pth").read_bytes()}) as server:
        run(tmp_path / "run", "train.max_iter=1", f"train.init_checkpoint={server.url('/start.pth')}")
    assert weights(tmp_path / "run")["layer.weight"].min() > 4.9


def test_a_run_writes_config_versions_and_curves_and_leaves_the_given_config_unchanged(tmp_path):
    cfg = fake_run.config(tmp_path)
    before = cfg.copy()
    train(cfg, progress=Console(quiet=True))
    assert cfg == before
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert versions["seed"] == 3
    assert versions["torch"] == torch.__version__
    assert "max_iter: 10" in (tmp_path / "config.yaml").read_text()
    assert list(tmp_path.glob("events.out.tfevents*"))


def test_raw_and_averaged_weights_keep_separate_results(tmp_path):
    """Both evaluations of a run with EMA write results.json, each into its own folder."""
    evaluator = ("dataloader.evaluator._target_=fake_run.WritingEvaluator",)
    results = f"dataloader.evaluator.output_dir={tmp_path / 'inference'}"
    ema = ("train.model_ema.enabled=True", "train.model_ema.decay=0.5")
    _, scores = run(tmp_path, *evaluator, results, *ema)
    for folder, task in (("inference", "line"), ("inference/ema", "ema_line")):
        written = json.loads((tmp_path / folder / "results.json").read_text())
        assert written["error"] == scores[task]["error"]


def test_an_evaluation_of_averaged_weights_spares_the_results_of_raw_weights(tmp_path):
    """`l2g eval` after a training writes to the folders that the training used."""
    folder = tmp_path / "inference"
    shared = ["dataloader.evaluator._target_=fake_run.WritingEvaluator", "train.model_ema.enabled=True"]
    shared += [f"dataloader.evaluator.output_dir={folder}", "train.model_ema.decay=0.5"]
    run(tmp_path, *shared)
    raw, averaged = (path.read_text() for path in (folder / "results.json", folder / "ema" / "results.json"))
    assert raw != averaged
    for path in (folder / "results.json", folder / "ema" / "results.json"):
        path.unlink()
    final = f"train.init_checkpoint={tmp_path / 'model_final.pth'}"
    only = "train.model_ema.use_ema_weights_for_eval_only=True"
    evaluate(fake_run.config(tmp_path, *shared, final, only), progress=Console(quiet=True))
    assert not (folder / "results.json").exists()
    assert (folder / "ema" / "results.json").read_text() == averaged


def test_a_dataset_that_the_truth_describes_again_is_built_once(tmp_path):
    """As an interpolation, and as the copy that a saved config.yaml holds."""
    for truth in ("${..test.dataset}", {"_target_": "fake_run.Dataset", "videos": 2}):
        cfg = fake_run.config(tmp_path, "train.max_iter=1")
        cfg.dataloader.test = {
            "_target_": "fake_run.LoaderOf",
            "dataset": {"_target_": "fake_run.Dataset", "videos": 2},
        }
        cfg.dataloader.evaluator = {"_target_": "fake_run.EvaluatorOf", "truth": truth}
        fake_run.Dataset.built = 0
        scores = evaluate(cfg, fake_run.Model(), progress=Console(quiet=True))
        assert fake_run.Dataset.built == 1
        assert set(scores) == {"line", "speed"}
        cfg.train.model_ema = {"enabled": True}
        fake_run.Dataset.built = 0
        scores = train(cfg, overwrite=True, progress=Console(quiet=True))
        assert fake_run.Dataset.built == 1
        assert set(scores) == {"line", "speed", "ema_line", "ema_speed"}


def test_evaluate_restores_every_modules_mode(tmp_path):
    model = fake_run.Model().train()
    model.layer.eval()
    scores = evaluate(fake_run.config(tmp_path), model, progress=Console(quiet=True))
    assert set(scores) == {"line", "speed"}
    assert model.training
    assert not model.layer.training


def test_evaluate_uses_the_averaged_weights_if_the_config_says_so(tmp_path):
    _, scores = run(tmp_path, "train.model_ema.enabled=True", "train.model_ema.decay=0.5")
    final = (f"train.init_checkpoint={tmp_path / 'model_final.pth'}",)
    ema = ("train.model_ema.enabled=True", "train.model_ema.use_ema_weights_for_eval_only=True")
    quiet = Console(quiet=True)
    assert evaluate(fake_run.config(tmp_path, *final), progress=quiet)["line"] == scores["line"]
    assert evaluate(fake_run.config(tmp_path, *final, *ema), progress=quiet)["line"] == scores["ema_line"]


def test_averaged_weights_have_the_names_of_the_state_dict(tmp_path):
    ema = ("train.model_ema.enabled=True", "train.model_ema.decay=0.5", "model._target_=fake_run.Renamed")
    _, scores = run(tmp_path, *ema)
    assert set(weights(tmp_path, key="ema_state")) == {"w", "layer.bias", "scale"}
    final = (
        f"train.init_checkpoint={tmp_path / 'model_final.pth'}",
        "train.model_ema.use_ema_weights_for_eval_only=True",
    )
    alone = evaluate(fake_run.config(tmp_path, *ema, *final), progress=Console(quiet=True))
    assert alone["line"] == scores["ema_line"]


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    run(tmp_path, "train.seed=1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="holds an earlier run"):
        run(tmp_path, "train.seed=2")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    run(tmp_path, "train.seed=2", overwrite=True)
    assert json.loads((tmp_path / "versions.json").read_text())["seed"] == 2
    assert len(fake_run.curve(tmp_path)) == 10


def test_a_training_in_the_folder_of_a_running_one_is_refused(tmp_path):
    """The message names the other process; the files of its run are unchanged."""
    run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with locked_folder(tmp_path, "--output"):
        for options in ({"overwrite": True}, {"resume": True}, {}):
            with pytest.raises(
                UserError, match=rf"process {os.getpid()} on .*another with train\.output_dir"
            ):
                run(tmp_path, **options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("results", "locked", "setting"),
    [
        ("inference", ".", r"train\.output_dir"),
        ("inference", "inference", ""),
        ("../scores", "../scores", r"dataloader\.evaluator\.output_dir"),
    ],
)
def test_an_evaluation_beside_a_training_or_another_evaluation_is_refused(tmp_path, results, locked, setting):
    """An evaluation locks the run's folder if its results lie inside, else the folder of its results."""
    run_folder = tmp_path / "run"
    cfg = fake_run.config(run_folder, f"dataloader.evaluator.output_dir={run_folder / results}")
    with locked_folder(run_folder / locked, "--output"):
        if not setting:
            with lock_results(cfg):
                assert (run_folder / ".lock").is_file()
            return
        with (
            pytest.raises(UserError, match=rf"process {os.getpid()} on .*another with {setting}"),
            lock_results(cfg),
        ):
            pass
    with lock_results(fake_run.config(tmp_path / "unused")):  # its evaluator writes nothing
        assert not (tmp_path / "unused").exists()


def test_a_checkpoint_that_does_not_fit_the_disk_ends_the_run_with_the_older_one_valid(tmp_path, monkeypatch):
    free = iter([1 << 30, 1 << 10])
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=next(free)))
    with pytest.raises(UserError, match=r"model_0000007\.pth needs .* MB left.*are unchanged"):
        run(tmp_path)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    assert [path.name for path in tmp_path.glob("*.l2g-tmp")] == []
    monkeypatch.undo()
    run(tmp_path, resume=True)
    assert len(fake_run.curve(tmp_path)) == 10


def test_a_run_killed_before_its_final_checkpoint_is_repaired_by_resume(tmp_path):
    """The period divides the number of iterations, and the process is killed between the last two files."""
    run(tmp_path, "train.checkpointer.period=5")
    expected = weights(tmp_path)
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    output, scores = run(tmp_path, "train.checkpointer.period=5", resume=True)
    assert "nothing left to train" in output
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path).items())
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert "line" in scores


def test_a_run_killed_during_an_evaluation_evaluates_again(tmp_path):
    """The checkpoint precedes the evaluation: without a repetition its scores would be lost."""
    periods = ("train.checkpointer.period=4", "train.eval_period=4")
    run(tmp_path / "whole", *periods)
    broken = tmp_path / "broken"
    with pytest.raises(ZeroDivisionError):
        run(broken, *periods, "dataloader.evaluator._target_=fake_run.FailingEvaluator")
    assert (broken / "last_checkpoint").read_text() == "model_0000003.pth"
    run(broken, *periods, resume=True)

    def scored(folder):
        entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [(e["iteration"], e.get("line/error")) for e in entries]

    assert scored(broken) == scored(tmp_path / "whole")
    assert fake_run.curve(broken) == fake_run.curve(tmp_path / "whole")


def test_diverged_weights_are_not_saved(tmp_path):
    """Without gradient clipping, a finite loss can follow from ruined weights."""
    with pytest.raises(
        UserError, match=r"iteration \d+: (model: layer\.weight has a value|loss_square is|the sum)"
    ):
        run(tmp_path, "optimizer.lr=1e30", "train.checkpointer.period=1")
    assert not list(tmp_path.glob("*.pth*"))


def test_a_refused_run_leaves_an_earlier_run_in_its_folder_unchanged(tmp_path):
    run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="no such weights"):
        run(tmp_path, "train.init_checkpoint=nowhere.pth", "train.max_iter=99", overwrite=True)
    torch.save({"alien": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth: weights of another model"):
        run(tmp_path, f"train.init_checkpoint={tmp_path / 'other.pth'}", overwrite=True)
    (tmp_path / "other.pth").unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_damaged_last_checkpoint_is_refused_with_the_name_of_the_previous_one(tmp_path):
    run(tmp_path)
    final = tmp_path / "model_final.pth"
    final.write_bytes(final.read_bytes()[:500])
    with pytest.raises(UserError, match=r"model_final\.pth: damaged, .*\. To resume from model_0000007\.pth"):
        run(tmp_path, resume=True)
    (tmp_path / "last_checkpoint").write_text("model_0000007.pth")
    assert "at iteration 8" in run(tmp_path, resume=True)[0]


def test_resume_without_the_text_file_continues_from_the_newest_checkpoint(tmp_path):
    """A run killed between its first checkpoint and `last_checkpoint` keeps that checkpoint."""
    run(tmp_path)
    for name in ("last_checkpoint", "model_final.pth", "model_0000007.pth"):
        (tmp_path / name).unlink()
    assert "at iteration 4" in run(tmp_path, resume=True)[0]
    (tmp_path / "last_checkpoint").unlink()
    assert "model_final.pth, at iteration 10" in run(tmp_path, resume=True)[0]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a\0b", b"../run/model_final.pth", b"a\nb", None])
def test_a_damaged_text_file_of_the_last_checkpoint_is_refused(tmp_path, content):
    run(tmp_path)
    marker = tmp_path / "last_checkpoint"
    marker.unlink()
    marker.mkdir() if content is None else marker.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    for read in (lambda: run(tmp_path, resume=True), lambda: find_weights(tmp_path)):
        with pytest.raises(UserError, match=r"last_checkpoint: damaged\. Write the name"):
            read()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "line", [b"\0\0\xff\n", b"[1]\n", b"{}\n", b'{"iteration": "3"}\n', b"[" * 5000 + b"\n", b'{"iter']
)
def test_damaged_lines_of_the_metrics_are_dropped_by_a_resumed_run(tmp_path, line):
    run(tmp_path, "train.eval_period=4")
    before = fake_run.entries(tmp_path)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(line)
    (tmp_path / "last_checkpoint").write_text("model_0000007.pth")
    run(tmp_path, "train.eval_period=4", resume=True)
    assert fake_run.entries(tmp_path) == before


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("iteration", "7", "its 'iteration' is damaged"),
        ("iteration", -1, "its 'iteration' is damaged"),
        ("iteration", True, "its 'iteration' is damaged"),
        ("iteration", 1 << 80, "its 'iteration' is damaged"),
        ("seed", None, "its 'seed' is damaged"),
        ("random", "x", "its 'random' is damaged"),
        ("random", [{}], "its 'random' is damaged"),
        ("random", [{"python": 3}], "its 'random' is damaged"),
        ("optimizer", [], "its 'optimizer' is damaged"),
        ("optimizer", {}, "its optimizer does not fit"),
        ("optimizer", {"state": 3, "param_groups": [3]}, "its optimizer does not fit"),
        ("model", None, "its 'model' is damaged"),
    ],
)
def test_a_checkpoint_with_a_damaged_entry_is_refused_and_changes_no_file(tmp_path, key, value, problem):
    run(tmp_path)
    content = load_checkpoint(tmp_path / "model_0000007.pth")
    torch.save({**content, key: value}, tmp_path / "model_final.pth")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=rf"model_final\.pth: .*{problem}"):
        run(tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_resuming_with_another_optimizer_is_refused(tmp_path):
    """SGD would accept AdamW's state without a word, and AdamW fail on SGD's in its first step."""
    sgd = ("optimizer._target_=fake_run.sgd", "train.max_iter=20")
    run(tmp_path / "adamw")
    run(tmp_path / "sgd", *sgd)
    for folder, options in (("adamw", sgd), ("sgd", ("train.max_iter=30",))):
        with pytest.raises(UserError, match="another kind of optimizer"):
            run(tmp_path / folder, *options, resume=True)


def test_other_commands_refuse_the_folder_of_a_run_as_their_output(tmp_path):
    refuse_run(tmp_path, "--output")
    refuse_run(tmp_path / "new", "--output")
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"holds a training run\. Choose another folder with --output"):
        refuse_run(tmp_path, "--output")


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(UserError, match="give one of them"):
        run(tmp_path, resume=True, overwrite=True)


def test_resuming_another_model_is_refused_and_changes_no_file(tmp_path):
    run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"model_final\.pth: weights of another model"):
        run(tmp_path, "model._target_=fake_run.Renamed", "train.max_iter=20", resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_error_of_the_model_names_the_iteration_and_the_clips(tmp_path):
    with pytest.raises(UserError, match=r"^iteration 5: the pred.*, in clips of video 100 \(key 3/5/0\)"):
        run(tmp_path, "model.events.5=refuse")


def test_a_finite_loader_is_refused(tmp_path):
    with pytest.raises(UserError, match="ended after 2 batches; it must be endless"):
        run(tmp_path, "dataloader.train._target_=fake_run.Finite")


def test_two_processes_equal_one_with_the_same_global_batch_and_stop_together(tmp_path):
    """A run of two processes, then a run in which only the first process has a non-finite loss."""
    lean = ("train.max_iter=5", "train.clip_grad.enabled=True")
    run(tmp_path / "one", *lean)
    clean, bad = [str(tmp_path / "two"), *lean], [str(tmp_path / "bad"), "model.events.2=nan"]
    script = [str(HERE / "fake_run.py"), *clean, "--then", *bad]
    done = subprocess.run(
        launch_command(script, 2), env=environment(), capture_output=True, text=True, check=False, timeout=90
    )
    one, two = fake_run.curve(tmp_path / "one"), fake_run.curve(tmp_path / "two")
    assert [e["total_loss"] for e in two] == pytest.approx([e["total_loss"] for e in one], rel=1e-5)
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], value)
    assert len(list((tmp_path / "two").glob("events*"))) == 1
    assert len(load_checkpoint(tmp_path / "two" / "model_final.pth")["random"]) == 2
    assert done.returncode == 1
    assert "torch/distributed/run.py" not in done.stderr
    assert "iteration 2: loss_size is nan, in clips of video 100 (key 3/2/0), video 101" in done.stderr


@pytest.mark.parametrize(
    ("number", "victim", "code", "message"),
    [
        (2, "launcher", 130, ""),
        (9, "launcher", -9, "the launcher was killed"),
        (9, "child", 1, r"was killed by signal 9\. Continue with --resume"),
    ],
)
def test_processes_end_together(tmp_path, number, victim, code, message):
    """SIGINT saves a checkpoint; if the launcher or a process is killed, the others end, without a traceback."""
    script = [
        str(HERE / "fake_run.py"),
        str(tmp_path / "run"),
        "train.max_iter=100000",
        "train.log_period=50",
    ]
    script += ["train.checkpointer.period=100000"]
    launcher = subprocess.Popen(
        launch_command(script, 2), env=environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 90
    log = tmp_path / "run" / "metrics.jsonl"
    while time.monotonic() < deadline and not (log.is_file() and log.stat().st_size):
        time.sleep(0.1)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(launcher.pid if victim == "launcher" else int(children[-1]), number)
    _, errors = launcher.communicate(timeout=60)  # ends when every process has closed the pipe
    assert launcher.returncode == code
    assert re.search(message, errors)
    assert "Traceback" not in errors
    assert (tmp_path / "run" / "last_checkpoint").is_file() == (number == 2)


def test_a_full_disk_leaves_the_older_checkpoint_and_no_partial_file(tmp_path, monkeypatch):
    fsync = os.fsync

    def full(number):
        fsync(number)
        if "model_0000007" in os.readlink(f"/proc/self/fd/{number}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"model_0000007\.pth: cannot be written \(No space left"):
            run(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    run(tmp_path, resume=True)
    assert len(fake_run.curve(tmp_path)) == 10


@pytest.mark.parametrize(
    ("log_period", "message"),
    [
        (1, r"metrics\.jsonl: the file was deleted"),
        (100, r"run: the output folder was deleted, so model_0000007"),
    ],
)
def test_a_run_ends_when_its_folder_is_deleted(tmp_path, log_period, message):
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=message) as error:
        run(folder, f"model.events.5={folder}", f"train.log_period={log_period}")
    assert "\n" not in str(error.value)
    assert not folder.exists()


def test_workers_that_a_signal_ends_within_a_step_are_one_line(tmp_path, monkeypatch):
    """SIGTERM to a process group: torch raises the death of a worker anywhere in the step."""

    def step(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGCHLD)  # without the effect of torch's handler
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(UserError, match=r"^a signal ended the training.*--resume"):
        run(tmp_path)


def test_launch_command_needs_an_address_for_several_machines():
    assert "--standalone" in launch_command(["x.py"], 4)
    command = launch_command(["x.py"], 4, machines=2, machine_rank=1, dist_url="tcp://head:29500")
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=head", "--master-port=29500"} <= set(command)
    with pytest.raises(UserError, match="tcp://HOST:PORT"):
        launch_command(["x.py"], 4, machines=2)


def test_a_folder_is_recognised_as_a_run_of_the_same_model_and_data(tmp_path):
    """`l2g demo` resumes or replaces its own run and refuses others."""
    cfg = fake_run.config(tmp_path)
    assert not is_run_of(tmp_path, cfg)
    run(tmp_path)
    assert is_run_of(tmp_path, fake_run.config(tmp_path, "train.max_iter=5"))
    assert not is_run_of(tmp_path, fake_run.config(tmp_path, "model.noise=0.1"))
    (tmp_path / "config.yaml").unlink()
    assert not is_run_of(tmp_path, cfg)


def test_a_killed_data_loading_worker_is_reported_in_one_line():
    def batches():
        yield "batch"
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    stream = endless(batches())
    assert next(stream) == "batch"
    with pytest.raises(UserError, match=r"^a data-loading worker was killed after 1 batches.*--resume"):
        next(stream)
