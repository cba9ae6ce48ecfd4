"""Which check a fixture is for: found by its constructor's class or function, never by its file's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from local2global.errors import UserError

from . import network, objective
from .fixtures import Comparison, Fixture, UnsupportedError

Check = Callable[[Fixture, Comparison], None]

#: (what the class or functions must name, what the family is called, its check); the first that fits decides.
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
    """One fixture's row.

    Attributes:
        name: the fixture.
        family: what it checks.
        compared: arrays that were compared.
        worst: see `Comparison.worst`.
        problems: why it fails; empty if it agrees.
    """

    name: str
    family: str
    compared: int
    worst: tuple[float, float, float | None]
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether it agrees as a whole."""
        return not self.problems


def family_of(fixture: Fixture) -> tuple[str, Check] | None:
    """The family and its check, or None.  A fixture of no masks has no constructor; its outputs name the rules."""
    named = " ".join(str(fixture.constructor.get(key, "")) for key in ("class", "function", "functions"))
    for sign, family, run in FAMILIES:
        if sign in named:
            return family, run
    if not named.strip() and fixture.names("out/mask2box") + fixture.names("out/bitmask"):
        return "g masks to boxes", objective.mask_boxes
    return None


def check(fixture: Fixture) -> Result:
    """Run a fixture through our module."""
    found = family_of(fixture)
    if found is None:
        about = dict(fixture.constructor)
        return Result(fixture.name, "unknown", 0, (0.0, 0.0, None), (f"no family for {about}",))
    family, run = found
    compare = Comparison(fixture)
    try:
        run(fixture, compare)
        problems = tuple(compare.problems())
    except (UnsupportedError, UserError) as error:
        problems = (f"cannot be run: {error}",)
    except Exception as error:  # arguments and arrays may be wrong in any way there is
        reason = next(iter(str(error).splitlines()), "")
        problems = (f"cannot be run: {type(error).__name__}: {reason}",)
    return Result(
        fixture.name, family, len(compare.outputs) + len(compare.gradients), compare.worst, problems
    )
