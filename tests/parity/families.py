"""Choose a fixture's check by the class or function that its constructor names, not by its file name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from local2global.errors import UserError

from . import network, objective
from .fixtures import Comparison, Fixture, UnsupportedError

Check = Callable[[Fixture, Comparison], None]

#: (part of the class or function name, name of the family, its check); the first match is used.
FAMILIES: tuple[tuple[str, str, Check], ...] = (
    ("MultiScaleDeformableAttention", "a attention", network.attention),
    ("multi_scale_deformable_attn", "a sampling", network.sampling),
    ("MaskDINOEncoder", "b pixel encoder", network.pixel_encoder),
    ("PositionEmbeddingSine", "b grid positions", network.grid_positions),
    ("gen_sineembed_for_position", "c box positions", network.box_positions),
    ("gen_encoder_output_proposals", "c proposals", network.proposals),
    ("inverse_sigmoid", "c inverse sigmoid", network.logit),
    ("MaskDINODecoder", "e predictor", network.predictor),
    ("TransformerDecoder", "d decoder", network.decoder),
    ("HungarianMatcher", "f matcher", objective.matching),
    ("SetCriterion", "f criterion", objective.criterion),
    ("sigmoid_focal_loss", "f loss functions", objective.loss_functions),
    ("point_sample", "f point sampling", objective.point_sampling),
    ("masks_to_boxes", "g masks to boxes", objective.mask_boxes),
    ("ResNet", "h ResNet", network.resnet),
)


@dataclass(frozen=True)
class Result:
    """The result of one fixture.

    Attributes:
        name: name of the fixture.
        family: name of the checked part.
        compared: number of compared arrays.
        worst: see `Comparison.worst`.
        problems: reasons why the fixture fails; empty if it passes.
    """

    name: str
    family: str
    compared: int
    worst: tuple[float, float, float | None]
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every array agrees."""
        return not self.problems


def family_of(fixture: Fixture) -> tuple[str, Check] | None:
    """Return the family and its check, or None; boxes of masks are recognised by their outputs alone."""
    names = " ".join(str(fixture.constructor.get(key, "")) for key in ("class", "function", "functions"))
    for part, family, run in FAMILIES:
        if part in names:
            return family, run
    if not names.strip() and fixture.names("out/mask2box") + fixture.names("out/bitmask"):
        return "g masks to boxes", objective.mask_boxes
    return None


def check(fixture: Fixture) -> Result:
    """Run our module on a fixture and compare the results."""
    match = family_of(fixture)
    if match is None:
        arguments = dict(fixture.constructor)
        return Result(fixture.name, "unknown", 0, (0.0, 0.0, None), (f"no family for {arguments}",))
    family, run = match
    compare = Comparison(fixture)
    try:
        run(fixture, compare)
        problems = tuple(compare.problems())
    except (UnsupportedError, UserError) as error:
        problems = (f"cannot be run: {error}",)
    except Exception as error:  # a damaged fixture can fail in any way
        reason = next(iter(str(error).splitlines()), "")
        problems = (f"cannot be run: {type(error).__name__}: {reason}",)
    return Result(
        fixture.name, family, len(compare.outputs) + len(compare.gradients), compare.worst, problems
    )
