"""Config files: overrides, the saved `config.yaml`, and what a config from a stranger may build."""
