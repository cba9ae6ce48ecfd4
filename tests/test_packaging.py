"""The shipped configs by name: from a checkout, and from an installed package without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from local2global.config.find import find_config_file
from local2global.configs import FOLDER
from local2global.lazy import load_config

ROOT = Path(__file__).resolve().parents[1]
OWN_CONFIG = """
from local2global.configs.demo.l2g_tiny import dataloader, lr_multiplier, model, optimizer, train
optimizer.lr = optimizer.lr / 2
"""


def test_configs_of_a_checkout_are_found_outside_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert FOLDER == ROOT / "configs"
    for name in ("demo/l2g_tiny.py", "configs/demo/l2g_tiny.py", "demo/l2g_tiny"):
        assert find_config_file(name) == ROOT / "configs" / "demo" / "l2g_tiny.py"


def test_configs_of_the_current_folder_have_priority(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "l2g_tiny.py").write_text("model = dict(size=1)\n")
    monkeypatch.chdir(tmp_path)
    assert find_config_file("demo/l2g_tiny.py").resolve() == tmp_path / "demo" / "l2g_tiny.py"


def test_a_config_elsewhere_imports_shipped_configs_by_name(tmp_path):
    """Nothing is cached: a second load halves the shipped value again, not the first result."""
    (tmp_path / "mine.py").write_text(OWN_CONFIG)
    shipped = load_config(find_config_file("demo/l2g_tiny.py"))
    for _ in range(2):
        mine = load_config(tmp_path / "mine.py", ["model.tracker=bypass"])
        assert mine.optimizer.lr == shipped.optimizer.lr / 2
    assert mine.keys() >= {"dataloader", "lr_multiplier", "model", "optimizer", "train"}


def test_a_missing_shipped_config_names_the_nearest(tmp_path):
    (tmp_path / "mine.py").write_text("from local2global.configs.demo.l2g_tyni import model\n")
    with pytest.raises(ValueError, match=r"no such file\. Did you mean .*l2g_tiny\.py"):
        load_config(tmp_path / "mine.py")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The python of a new environment in which a copy of the checkout, deleted since, was installed.

    The environment sees the packages of this one, but no editable installation.
    """
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    for name in ("projects", "configs"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, source / name)
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    # A build without isolation needs setuptools, which the running environment has.
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(source)]
    site = Path(
        subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
    )
    (site / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(pip, check=True, env=clean_environment())
    shutil.rmtree(source)
    return python


def clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["train", "demo/l2g_tiny.py", "--dry-run"], "cfg.model"),
        (["train", "configs/ytvis2021/l2g_r50.py", "--dry-run"], "cfg.model"),
        (["train", "mine.py", "--dry-run", "model.tracker=bypass"], "cfg.model"),
        (["tables"], "OVIS"),
    ],
)
def test_an_installed_package_needs_no_repository(installed, tmp_path, arguments, output):
    (tmp_path / "mine.py").write_text(OWN_CONFIG)
    command = [installed.with_name("l2g"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert output.removeprefix("cfg.") in done.stdout
