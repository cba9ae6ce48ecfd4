"""Training and evaluation: loop, trainer, hooks, settings, run folder, processes, EMA, optimizer groups, metrics."""
