"""Converters of other dataset formats into the supported layouts: one file per format, one function each."""
