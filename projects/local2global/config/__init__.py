"""Config files: lookup, overrides, the saved `config.yaml`, and the callables that a yaml file may name."""
