"""From frame predictions to results: instances, panoptic maps, files."""
