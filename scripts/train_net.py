#!/usr/bin/env python
"""Counterpart of detrex's tools/train_net.py: the same flags and configs, without detectron2, on CPU and GPU.

python scripts/train_net.py --config-file configs/demo/l2g_tiny.py --num-gpus 1 train.max_iter=100
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from local2global.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The flags of detrex's script."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--config-file", required=True, metavar="FILE", help="a LazyConfig file")
    flags.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint in train.output_dir"
    )
    flags.add_argument("--overwrite", action="store_true", help="replace an earlier run in train.output_dir")
    flags.add_argument("--eval-only", action="store_true", help="evaluate train.init_checkpoint")
    flags.add_argument("--num-gpus", type=int, default=1, help="processes on this machine (also on CPU)")
    flags.add_argument("--num-machines", type=int, default=1)
    flags.add_argument("--machine-rank", type=int, default=0, help="rank of this machine")
    flags.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0")
    flags.add_argument("opts", nargs=argparse.REMAINDER, help="key=value overrides")
    return flags


def run(arguments: argparse.Namespace) -> int:
    """Train or evaluate, in several processes if asked to; return the exit code."""
    started = "WORLD_SIZE" in os.environ
    if not started and arguments.num_gpus * arguments.num_machines > 1:
        from local2global.engine.processes import launch_command

        script = [str(Path(__file__).resolve()), *sys.argv[1:]]
        machines = (arguments.num_machines, arguments.machine_rank, arguments.dist_url)
        command = launch_command(script, arguments.num_gpus, *machines)
        # torchrun replaces this process, so that Ctrl-C reaches the training processes.
        os.execv(command[0], command)

    from local2global.engine.loop import evaluate, train
    from local2global.engine.metrics import print_table
    from local2global.engine.run_folder import lock_results
    from local2global.lazy import load_config

    cfg = load_config(arguments.config_file, arguments.opts)
    if not arguments.eval_only:
        train(cfg, resume=arguments.resume, overwrite=arguments.overwrite)
        return 0
    with lock_results(cfg):
        scores = evaluate(cfg)
    if scores:
        print_table(scores)
    return 0


def main() -> int:
    """Run and report errors caused by user input in one line."""
    try:
        return run(parser().parse_args())
    except UserError as error:
        sys.stderr.write(f"train_net: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
