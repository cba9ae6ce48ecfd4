"""Number for number: our modules on inputs, weights and draws of the real detrex, against its answers."""
