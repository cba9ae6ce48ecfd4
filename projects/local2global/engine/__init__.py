"""Training and evaluation: the loop, the trainer, the run folder, processes, EMA, optimiser groups, metrics."""
