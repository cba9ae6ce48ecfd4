"""Files made from the record of a stream, one module per format."""
