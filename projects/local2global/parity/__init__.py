"""Number for number: our modules on inputs, weights and draws of the real detrex and detectron2, against their answers."""
