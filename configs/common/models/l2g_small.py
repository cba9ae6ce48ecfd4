"""A Local2Global between `l2g_tiny` and the paper's model, for real frames on a CPU: wider, with more slots."""

from .l2g_tiny import model

DIM = 96

model.segmenter.backbone.update(depths=[1, 1, 2, 1], hidden_sizes=[48, 96, 160, 192], embedding_size=32)
model.segmenter.encoder.update(
    channels=dict(res2=48, res3=96, res4=160, res5=192), dim=DIM, dim_feedforward=256
)
model.segmenter.decoder.update(dim=DIM, dim_feedforward=256)
model.segmenter.update(num_queries=16, dim=DIM)
model.tracker.aligner.update(dim=DIM, dim_feedforward=256)
model.tracker.local_positions.dim = DIM
model.criterion.matcher.num_points = 2048
model.criterion.sampler.num_points = 2048
