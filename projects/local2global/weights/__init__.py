"""Weights: checkpoints, parameter names of other projects, pickles, class heads."""
