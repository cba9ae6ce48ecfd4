"""Parity of our modules with recorded inputs, weights, random draws and results of the real detrex."""
