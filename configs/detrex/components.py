"""detrex's ResNet, MaskDINOEncoder and decoder layers behind this package's interfaces.

They have the arguments of `PixelEncoder` and `Decoder` and their parameter names on disk, so weights can be exchanged.
Needs detectron2 and detrex, with its `projects`, on the path, and on a GPU their compiled operators.
"""

import re
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from local2global.errors import UserError
from local2global.lazy import LazyCall as L
from local2global.modeling.decoder import Decoder
from local2global.modeling.encoder import unpadded
from local2global.structures import FrameFeatures, padded_pixels
from local2global.weights.names import DECODER, PIXEL_DECODER, rename

try:
    from detectron2.layers import ShapeSpec
    from detrex.modeling.backbone import BasicStem, ResNet
    from projects.maskdino.modeling.pixel_decoder.maskdino_encoder import MaskDINOEncoder
    from projects.maskdino.modeling.transformer_decoder.dino_decoder import DeformableTransformerDecoderLayer
except ImportError as error:
    raise UserError(f"configs/detrex needs detectron2 and detrex on the path ({error})") from error


def use_detrex(model):
    """Replace the parts of `configs/common/models/l2g_r50.py` by detrex's, in place."""
    model.segmenter.backbone = L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
        stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=False, norm="FrozenBN"),
        out_features=["res2", "res3", "res4", "res5"],
        freeze_at=1,
    )
    model.segmenter.encoder._target_ = DetrexEncoder
    model.segmenter.decoder._target_ = DetrexDecoder


class DetrexEncoder(MaskDINOEncoder):
    """detrex's pixel encoder as a `PixelEncoder`.

    `forward_features` is detrex's and does not mask padding; `forward` runs the same modules with padding masked.
    """

    def __init__(
        self, channels, dim, num_heads, num_layers, dim_feedforward, num_levels, checkpointing=False
    ):
        super().__init__(
            {name: ShapeSpec(channels=c, stride=4 * 2**i) for i, (name, c) in enumerate(channels.items())},
            transformer_dropout=0.0,
            transformer_nheads=num_heads,
            transformer_dim_feedforward=dim_feedforward,
            transformer_enc_layers=num_layers,
            conv_dim=dim,
            mask_dim=dim,
            norm="GN",
            transformer_in_features=["res3", "res4", "res5"],
            common_stride=4,
            num_feature_levels=3,
            total_num_feature_levels=num_levels,
            feature_order="low2high",
        )
        if checkpointing:
            for layer in self.transformer.encoder.layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        _rename_on_disk(self, PIXEL_DECODER)

    def forward(self, maps, valid):
        """As `PixelEncoder.forward`; detrex's layers need masks even if no frame is padded."""
        maps = {name: x.float() for name, x in maps.items()}
        some = next(iter(maps.values()))
        with torch.autocast(some.device.type, enabled=False):
            if valid is None:
                return replace(self._encode(maps, some.new_ones(len(some), 2)), padding=None)
            return self._encode(maps, valid)

    def _encode(self, maps, valid):
        sources = self._project(maps)
        shapes = [tuple(x.shape[-2:]) for x in sources]
        counts = [unpadded(valid, *shape).ceil() for shape in shapes]
        padding = [padded_pixels(c, *shape) for c, shape in zip(counts, shapes, strict=True)]
        positions = [
            self.pe_layer(x, mask) + embed[:, None, None]
            for x, mask, embed in zip(sources, padding, self.transformer.level_embed, strict=True)
        ]
        padding = [mask.flatten(1) for mask in padding]
        whole = valid.new_ones(len(valid), len(shapes), 2)  # references are in [0, 1] of the padded map
        tokens = self.transformer.encoder(
            _flatten(sources),
            *_layout(shapes, valid.device),
            valid_ratios=whole,
            pos=_flatten(positions),
            padding_mask=torch.cat(padding, 1),
        )
        levels = list(tokens.split([height * width for height, width in shapes], dim=1))
        fine = self._to_stride_4(maps, levels[0].transpose(1, 2).unflatten(-1, shapes[0]))
        return FrameFeatures(
            memory=torch.cat(levels[::-1], 1),
            shapes=tuple(shapes[::-1]),
            padding=torch.cat(padding[::-1], 1),
            mask_features=fine,
            extent=unpadded(valid, *fine.shape[-2:]),
            valid_ratios=valid[:, None].expand(-1, len(shapes), -1),
        )

    def _project(self, maps):
        names = self.transformer_in_features[::-1]
        sources = [proj(maps[name]) for proj, name in zip(self.input_proj, names, strict=False)]
        coarsest = maps[names[-1]]
        for proj in self.input_proj[len(names) :]:
            coarsest = proj(coarsest)
            sources.append(coarsest)
        return sources

    def _to_stride_4(self, maps, finest):
        for name, lateral, output in zip(
            self.in_features[: self.num_fpn_levels][::-1], self.lateral_convs, self.output_convs, strict=True
        ):
            side = lateral(maps[name])
            finest = output(
                side + F.interpolate(finest, side.shape[-2:], mode="bilinear", align_corners=False)
            )
        return self.mask_features(finest)


class DetrexDecoderLayer(DeformableTransformerDecoderLayer):
    """detrex's decoder layer, called as a `DecoderLayer`."""

    def __init__(self, dim, num_heads, num_levels, num_points, dim_feedforward):
        super().__init__(dim, dim_feedforward, 0.0, "relu", num_levels, num_heads, num_points)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and not re.search("sampling_offsets|attention_weights", name):
                nn.init.xavier_uniform_(parameter)
        _rename_on_disk(self, DECODER, inside="layers.0.")

    def forward(self, x, pos, references, memory, shapes, padding, attn_mask=None):
        """(B, N, C) queries at (B, N, L, 4) references to (B, N, C)."""
        spatial_shapes, starts = _layout(shapes, x.device)
        out = super().forward(
            tgt=x.transpose(0, 1).float(),
            tgt_query_pos=pos.transpose(0, 1),
            tgt_reference_points=references.transpose(0, 1),
            memory=memory.transpose(0, 1).float(),
            memory_key_padding_mask=padding,
            memory_level_start_index=starts,
            memory_spatial_shapes=spatial_shapes,
            self_attn_mask=attn_mask,
        )
        return out.transpose(0, 1)


class DetrexDecoder(Decoder):
    """Our decoder with detrex's layers; detrex's decoder does not return the raw outputs that pass between frames."""

    def __init__(self, dim, num_heads, num_layers, dim_feedforward, num_levels, num_points=4):
        super().__init__(dim, num_heads, num_layers, dim_feedforward, num_levels, num_points)
        arguments = (dim, num_heads, num_levels, num_points, dim_feedforward)
        self.layers = nn.ModuleList(DetrexDecoderLayer(*arguments) for _ in range(num_layers))


def _flatten(maps):
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)


def _layout(shapes, device):
    """(L, 2) heights and widths of the levels, and (L,) index of their first tokens."""
    sizes = torch.tensor(shapes, device=device)
    ends = sizes.prod(1).cumsum(0)
    return sizes, torch.cat((ends.new_zeros(1), ends[:-1]))


def _rename_on_disk(module, rows, inside=""):
    """Save and load a module's tensors under our names.

    `rows` rename the tensors of a parent, in which the module's names begin with `inside`.
    """
    names = {theirs: rename(inside + theirs, rows).removeprefix(inside) for theirs in module.state_dict()}

    def saved(_, state, prefix, __):
        renamed = {prefix + ours: state.pop(prefix + theirs) for theirs, ours in names.items()}
        state.update(renamed)

    def loaded(state, prefix, *_):
        renamed = {
            prefix + theirs: state.pop(prefix + ours)
            for theirs, ours in names.items()
            if prefix + ours in state
        }
        state.update(renamed)

    module._register_state_dict_hook(saved)
    module._register_load_state_dict_pre_hook(loaded)
