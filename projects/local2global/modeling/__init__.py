"""The model: backbone, encoder, tracker with the L2G-aligner, decoder, and its training losses."""
