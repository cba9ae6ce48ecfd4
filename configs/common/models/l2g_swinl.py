"""The paper's model with Swin-L (windows of 12, pre-trained at 384) instead of ResNet-50.

Needs transformers: `pip install "local2global[swin]"`.
"""

from local2global.lazy import LazyCall as L
from local2global.modeling.swin import Swin

from .l2g_r50 import model

model.segmenter.backbone = L(Swin)()
model.segmenter.encoder.channels = dict(res2=192, res3=384, res4=768, res5=1536)
