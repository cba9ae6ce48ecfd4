"""Weights: checkpoints, parameter names of other projects, pickled arrays, class heads."""
