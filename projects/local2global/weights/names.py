"""Parameter names of other projects: one table, read in both directions.

A row is (our name, their name, further names of the same tensor).  `*` matches one number, `**` the rest of a name, and
`#` (their names only) the number of every layer that shares the parameter.  Our names are those of `state_dict`; the
backbone has detectron2's names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import UserError

Row = tuple[str, ...]

_FFN: tuple[Row, ...] = (
    ("layers.*.ffn.linear1.**", "layers.*.linear1.**"),
    ("layers.*.ffn.linear2.**", "layers.*.linear2.**"),
)

#: detrex's `MSDeformAttnTransformerEncoder` and FPN in MaskDINO's `pixel_decoder`.
PIXEL_DECODER: tuple[Row, ...] = (
    ("input_proj.**", "input_proj.**"),
    ("level_embed", "transformer.level_embed"),
    ("layers.*.self_attn.**", "transformer.encoder.layers.*.self_attn.**"),
    ("layers.*.norm.**", "transformer.encoder.layers.*.norm1.**"),
    *((ours, f"transformer.encoder.{theirs}") for ours, theirs in _FFN),
    ("layers.*.ffn.norm.**", "transformer.encoder.layers.*.norm2.**"),
    ("adapter_1.**", "adapter_1.**"),
    ("layer_1.**", "layer_1.**"),
    ("mask_features.**", "mask_features.**"),
)

#: detrex's `TransformerDecoder` in MaskDINO's `predictor`.
DECODER: tuple[Row, ...] = (
    ("layers.*.cross_attn.**", "layers.*.cross_attn.**"),
    ("layers.*.norm.**", "layers.*.norm1.**"),
    ("layers.*.self_attn.norm.**", "layers.*.norm2.**"),
    ("layers.*.self_attn.attention.**", "layers.*.self_attn.**"),
    *_FFN,
    ("layers.*.ffn.norm.**", "layers.*.norm3.**"),
    ("norm.**", "norm.**"),
    ("ref_point_head.**", "ref_point_head.**"),
    ("bbox_embed.**", "bbox_embed.#.**"),
)


def _inside(rows: Iterable[Row], ours: str, theirs: str) -> tuple[Row, ...]:
    """Rows with prefixes: the names of a submodule as names of the whole model."""
    return tuple((ours + row[0], *(theirs + name for name in row[1:])) for row in rows)


#: detrex's `MaskDINODecoder`: two-stage proposals, heads, decoder.
PREDICTOR: tuple[Row, ...] = (
    ("enc_output.**", "enc_output.**"),
    ("enc_output_norm.**", "enc_output_norm.**"),
    ("class_embed.**", "class_embed.**"),
    ("mask_embed.**", "mask_embed.**"),
    ("label_enc.**", "label_enc.**"),
    ("decoder.norm.**", "decoder_norm.**", "decoder.norm.**"),
    *(row for row in _inside(DECODER, "decoder.", "decoder.") if row[0] != "decoder.norm.**"),
)

_HEAD = "sem_seg_head."
_MASKDINO: tuple[Row, ...] = (
    ("segmenter.backbone.**", "backbone.**"),
    *_inside(PIXEL_DECODER, "segmenter.encoder.", f"{_HEAD}pixel_decoder."),
    *_inside(PREDICTOR, "segmenter.", f"{_HEAD}predictor."),
)


def _resnet(
    stage: str, conv: str, norm: str, shortcut: tuple[str, str], start: int, stem: tuple[str, str]
) -> tuple[Row, ...]:
    """Rows of a ResNet with other names and other first numbers of stages, convolutions and norms."""
    rows: list[Row] = [("stem.conv1.norm.**", stem[1]), ("stem.conv1.**", stem[0])]
    for i in range(4):
        block = stage.format(i + start)
        for j in range(3):
            rows.append((f"res{i + 2}.*.conv{j + 1}.norm.**", block + norm.format(j + start)))
            rows.append((f"res{i + 2}.*.conv{j + 1}.**", block + conv.format(j + start)))
        rows.append((f"res{i + 2}.*.shortcut.norm.**", block + shortcut[1]))
        rows.append((f"res{i + 2}.*.shortcut.**", block + shortcut[0]))
    return tuple(rows)


#: transformers' ResNet.
HF_RESNET = _resnet(
    "encoder.stages.{}.layers.*.",
    "layer.{}.convolution.**",
    "layer.{}.normalization.**",
    ("shortcut.convolution.**", "shortcut.normalization.**"),
    0,
    ("embedder.embedder.convolution.**", "embedder.embedder.normalization.**"),
)
_BLOCK = "encoder.layers.*.blocks.*."

#: transformers' Swin, whose attention has two namings by version.  Our names are those of the official code, where
#: queries, keys and values form one matrix `attn.qkv`; `modeling/swin.py` splits and joins it.
HF_SWIN: tuple[Row, ...] = (
    ("patch_embed.proj.**", "swin.embeddings.patch_embeddings.projection.**"),
    ("patch_embed.norm.**", "swin.embeddings.norm.**"),
    *(
        (f"layers.*.blocks.*.{ours}", *(f"swin.{_BLOCK}{name}" for name in theirs))
        for ours, *theirs in (
            ("norm1.**", "layernorm_before.**"),
            ("norm2.**", "layernorm_after.**"),
            ("attn.q.**", "attention.q_proj.**", "attention.self.query.**"),
            ("attn.k.**", "attention.k_proj.**", "attention.self.key.**"),
            ("attn.v.**", "attention.v_proj.**", "attention.self.value.**"),
            ("attn.proj.**", "attention.o_proj.**", "attention.output.dense.**"),
            (
                "attn.relative_position_bias_table",
                "attention.relative_position_bias.relative_position_bias_table",
                "attention.self.relative_position_bias_table",
            ),
            (
                "attn.relative_position_index",
                "attention.relative_position_bias.relative_position_index",
                "attention.self.relative_position_index",
            ),
            ("mlp.fc1.**", "mlp.fc1.**", "intermediate.dense.**"),
            ("mlp.fc2.**", "mlp.fc2.**", "output.dense.**"),
        )
    ),
    ("layers.*.downsample.**", "swin.encoder.layers.*.downsample.**"),
    *((f"norm{i}.**", f"hidden_states_norms.stage{i + 1}.**") for i in range(4)),
)
_TORCHVISION = _resnet(
    "layer{}.*.",
    "conv{}.**",
    "bn{}.**",
    ("downsample.0.**", "downsample.1.**"),
    1,
    ("conv1.**", "bn1.**"),
)


#: The parameters of Mask2Former that MaskDINO also has.  Its three levels are ordered from coarse to fine.  Its masked
#: cross-attention and its softmax class head, with a class "no object", have no counterpart.
_MASK2FORMER: tuple[Row, ...] = (
    ("segmenter.backbone.**", "backbone.**"),
    *(
        (f"segmenter.encoder.input_proj.{2 - i}.**", f"{_HEAD}pixel_decoder.input_proj.{i}.**")
        for i in range(3)
    ),
    *(
        row
        for row in _inside(PIXEL_DECODER, "segmenter.encoder.", f"{_HEAD}pixel_decoder.")
        if "input_proj" not in row[0]
    ),
    *_inside(
        (
            ("mask_embed.**", "mask_embed.**"),
            ("decoder.norm.**", "decoder_norm.**"),
            ("decoder.layers.*.self_attn.attention.**", "transformer_self_attention_layers.*.self_attn.**"),
            ("decoder.layers.*.self_attn.norm.**", "transformer_self_attention_layers.*.norm.**"),
            ("decoder.layers.*.ffn.norm.**", "transformer_ffn_layers.*.norm.**"),
            ("decoder.layers.*.ffn.linear1.**", "transformer_ffn_layers.*.linear1.**"),
            ("decoder.layers.*.ffn.linear2.**", "transformer_ffn_layers.*.linear2.**"),
        ),
        "segmenter.",
        f"{_HEAD}predictor.",
    ),
)


@dataclass(frozen=True)
class Project:
    """The parameter names of one project.

    Attributes:
        name: shown in reports.
        sign: regular expression; a checkpoint belongs to the first project whose expression matches one of its names.
        rows: see the module's docstring.
        dropped: (regular expression, reason) of tensors that are not used.
        kind: "image" for a whole image segmenter, "backbone" otherwise.
    """

    name: str
    sign: str
    rows: tuple[Row, ...]
    dropped: tuple[tuple[str, str], ...] = ()
    kind: str = "backbone"


_EVERYWHERE = (
    (r"num_batches_tracked$", "counters of training batches"),
    (r"relative_position_index$", "indices computed from the window size"),
    (r"^pixel_(mean|std)$", "pixel statistics, which the config sets"),
    (r"^criterion\.empty_weight$", "constants of another loss"),
    (r"(^|\.)(stem\.)?(fc|classifier|head)\.", "image classifiers"),
)
_BACKBONE_ALONE = (("segmenter.backbone.**", "**"),)

MASKDINO = Project(
    "MaskDINO",
    r"^sem_seg_head\.predictor\.enc_output\.",
    (
        *_MASKDINO,
        # The official code registers its shared box head three times, detrex once.
        (
            "segmenter.decoder.bbox_embed.**",
            f"{_HEAD}predictor._bbox_embed.**",
            f"{_HEAD}predictor.bbox_embed.#.**",
        ),
    ),
    _EVERYWHERE,
    "image",
)
DETREX = Project("detrex's MaskDINO", MASKDINO.sign, _MASKDINO, _EVERYWHERE, "image")
PROJECTS: tuple[Project, ...] = (
    MASKDINO,
    Project(
        "Mask2Former",
        r"^sem_seg_head\.predictor\.transformer_cross_attention_layers\.",
        _MASK2FORMER,
        (
            *_EVERYWHERE,
            (r"\.(query_feat|query_embed|static_query)\.", "learned queries, replaced by local queries"),
        ),
        "image",
    ),
    Project(
        "detectron2 detector",
        r"^backbone\.bottom_up\.",
        (("segmenter.backbone.**", "backbone.bottom_up.**"),),
        (*_EVERYWHERE, (r"^(proposal_generator|roi_heads|backbone\.fpn_)", "parts of a detector")),
    ),
    Project("detectron2 ResNet", r"^stem\.conv1\.weight$", _BACKBONE_ALONE, _EVERYWHERE),
    Project("Swin", r"^layers\.0\.blocks\.0\.attn\.qkv\.weight$", _BACKBONE_ALONE, _EVERYWHERE),
    Project(
        "backbone",
        r"^backbone\.(stem\.conv1|patch_embed\.proj)\.weight$",
        (("segmenter.backbone.**", "backbone.**"),),
        _EVERYWHERE,
    ),
    Project(
        "torchvision ResNet",
        r"^layer1\.0\.conv1\.weight$",
        _inside(_TORCHVISION, "segmenter.backbone.", ""),
        _EVERYWHERE,
    ),
    Project(
        "transformers ResNet",
        r"^(resnet\.)?embedder\.embedder\.convolution\.weight$",
        (
            *_inside(HF_RESNET, "segmenter.backbone.", "resnet."),
            *_inside(HF_RESNET, "segmenter.backbone.", ""),
        ),
        _EVERYWHERE,
    ),
)


def recognise(names: Iterable[str]) -> Project | None:
    """The project that a list of names belongs to; None for our names and unknown ones."""
    names = list(names)
    return next((p for p in PROJECTS if any(re.search(p.sign, name) for name in names)), None)


@dataclass(frozen=True)
class Translation:
    """A translated state dict.

    Attributes:
        state: tensors by their new names.
        unknown: names without a row.
    """

    state: dict[str, Tensor]
    unknown: tuple[str, ...]


def to_ours(theirs: Mapping[str, Tensor], rows: Iterable[Row], source: str = "state") -> Translation:
    """Translate a state dict to our names.

    Raises:
        UserError: if two copies of a shared tensor, such as a head stored once per layer, differ.
    """
    readers = [(_reader(name), row[0]) for row in rows for name in row[1:]]
    state: dict[str, Tensor] = {}
    unknown = []
    for name, value in theirs.items():
        ours = next(
            (_fill(ours, match.groups()) for reader, ours in readers if (match := reader.match(name))), None
        )
        if ours is None:
            unknown.append(name)
        elif ours not in state:
            state[ours] = value
        elif not torch.equal(state[ours], value):
            raise UserError(
                f"{source}: {name} differs from the tensor it shares its weights with ({ours} here)."
            )
    return Translation(state, tuple(unknown))


def to_theirs(ours: Mapping[str, Tensor], rows: Iterable[Row], copies: int = 1) -> Translation:
    """Translate a state dict to their names; a tensor shared by layers is written `copies` times."""
    writers = [(_reader(row[0]), row[1:]) for row in rows]
    state: dict[str, Tensor] = {}
    unknown = []
    for name, value in ours.items():
        row = next(
            ((match.groups(), names) for reader, names in writers if (match := reader.match(name))), None
        )
        if row is None:
            unknown.append(name)
            continue
        groups, templates = row
        for template in templates:
            for i in range(copies if "#" in template else 1):
                state[_fill(template.replace("#", str(i)), groups)] = value
    return Translation(state, tuple(unknown))


def rename(name: str, rows: Iterable[Row]) -> str:
    """Translate one name to ours.

    Raises:
        KeyError: if no row matches.
    """
    for row in rows:
        for theirs in row[1:]:
            if found := _reader(theirs).match(name):
                return _fill(row[0], found.groups())
    raise KeyError(name)


@lru_cache(maxsize=4096)
def _reader(template: str) -> re.Pattern[str]:
    """A regular expression for the names of a template, with one group per wildcard."""
    pattern = re.escape(template).replace(r"\*\*", "(.+)").replace(r"\*", r"(\d+)").replace(r"\#", r"\d+")
    return re.compile(f"{pattern}$")


def _fill(template: str, groups: Iterable[str]) -> str:
    filling = iter(groups)
    return re.sub(r"\*\*|\*", lambda _: next(filling), template)
