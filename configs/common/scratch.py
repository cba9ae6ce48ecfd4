"""Training from scratch on a CPU: learning rate 1e-3 for all layers, warm-up and cosine, gradients clipped at 1."""

from .optim import AdamW as optimizer
from .schedule import lr_multiplier_short as lr_multiplier
from .train import train

optimizer.lr = 1e-3
optimizer.params.backbone_multiplier = 1.0
train.clip_grad.params.max_norm = 1.0
