"""Matching, losses, the points masks are compared at, and boxes of masks, against detrex's; random draws come in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

import torch
import torch.nn.functional as F
from torch import Tensor

from local2global.boxes import box_iou, cxcywh_to_xyxy, generalized_box_iou, mask_to_box
from local2global.modeling.layers import inverse_sigmoid
from local2global.modeling.losses import (
    PointSampler,
    dice_loss,
    giou_loss,
    l1_box_loss,
    sample_points,
    sigmoid_ce_loss,
    sigmoid_focal_loss,
)
from local2global.modeling.matcher import Matcher, assign, dice_cost, mask_cost

from .fixtures import Comparison, Fixture, UnsupportedError
from .network import EDGE, EMPTY

_KINDS = ("pred_logits", "pred_boxes", "pred_masks")
Pairs = list[tuple[Tensor, Tensor]]
Target = tuple[Tensor, Tensor, Tensor]


def _matcher_of(arguments: Fixture) -> Matcher:
    arguments.expect(panoptic_on=False)
    names = ("cost_class", "cost_mask", "cost_dice", "cost_box", "cost_giou", "num_points")
    return Matcher(**{name: arguments.argument(name) for name in names})


def _targets(fixture: Fixture, count: int) -> list[Target]:
    """Labels, boxes and masks (float) of every image; the masks padded to one size."""
    found = []
    for i in range(count):
        labels, boxes, masks = (fixture[f"in/targets.{i}.{kind}"] for kind in ("labels", "boxes", "masks"))
        found.append((labels, boxes, masks.float()))
    return found


def _padded(targets: Sequence[Target]) -> list[Tensor]:
    """The masks of all images, padded at the right and the bottom to the largest."""
    height, width = (max(t[2].shape[axis] for t in targets) for axis in (-2, -1))
    return [F.pad(t[2], (0, width - t[2].shape[-1], 0, height - t[2].shape[-2])) for t in targets]


def _recorded(fixture: Fixture) -> list[Tensor]:
    """The recorded draws, in call order."""
    return [fixture[name] for name in sorted(name for name in fixture.arrays if name.startswith("rng/"))]


def _draws(fixture: Fixture) -> Iterator[Tensor]:
    """The same one by one, and a reason where they do not suffice."""
    yield from _recorded(fixture)
    raise UnsupportedError("fewer draws are recorded than asked for")


def _match(
    matcher: Matcher, predictions: Sequence[Tensor], targets: Sequence[Target], draws: Iterator[Tensor]
) -> tuple[list[Tensor], Pairs]:
    """Costs and pairs of every image; one set of points each, whether there is an instance or not."""
    costs, pairs = [], []
    for logits, boxes, masks, (labels, true_boxes, true_masks) in zip(*predictions, targets, strict=True):
        points = next(draws)
        true = sample_points(true_masks[None], points)[0]
        cost = matcher.cost(
            logits.detach(),
            boxes.detach(),
            sample_points(masks.detach()[None], points)[0],
            labels,
            true_boxes,
            true,
        )
        rows, columns = assign(cost.numpy())
        costs.append(cost)
        pairs.append((torch.from_numpy(rows), torch.from_numpy(columns)))
    return costs, pairs


def _compare_pairs(compare: Comparison, prefix: str, pairs: Pairs) -> None:
    for i, (rows, columns) in enumerate(pairs):
        compare.output(f"{prefix}.{i}.src", rows)
        compare.output(f"{prefix}.{i}.tgt", columns)


def _without_instances(fixture: Fixture, targets: list[Target]) -> list[Target]:
    """The targets of a fixture that borrows another's, with the images that are given nothing emptied."""
    return [
        target
        if len(fixture.arrays[f"out/indices.{i}.src"])
        else (target[0][:0], target[1][:0], target[2][:0])
        for i, target in enumerate(targets)
    ]


def matching(fixture: Fixture, compare: Comparison) -> None:
    """Costs and assignment; the case of images without instances takes its inputs from the fixture its note names."""
    given = fixture
    if not fixture.names("in/"):
        given = _inputs_of(fixture)
    predictions = [given[f"in/outputs.{kind}"] for kind in _KINDS]
    targets = _targets(given, len(predictions[0]))
    if given is not fixture:
        targets = _without_instances(fixture, targets)
    draws = _draws(fixture if fixture.names("rng/") else given)
    costs, pairs = _match(_matcher_of(fixture), predictions, targets, draws)
    _compare_pairs(compare, "out/indices", pairs)
    for i, cost in enumerate(costs):
        if f"out/cost.{i}" in fixture:
            compare.output(f"out/cost.{i}", cost)


def _inputs_of(fixture: Fixture) -> Fixture:
    """The fixture that another's note names ("inputs of f1"); of several the one of the likest name."""
    named = re.search(r"inputs of (\w+)", fixture.note)
    near = [
        name
        for name, other in fixture.beside.items()
        if named and name.split("_")[0] == named[1] and other.names("in/outputs.")
    ]
    if not near:
        raise UnsupportedError("no inputs, and the fixture that has them is not beside it")
    return fixture.beside[max(near, key=lambda name: SequenceMatcher(None, name, fixture.name).ratio())]


def criterion(fixture: Fixture, compare: Comparison) -> None:
    """Every loss of every set of predictions, each set matched anew, and the gradients of their sum."""
    fixture.expect(dn="no", panoptic_on=False, semantic_ce_loss=False)
    matcher = _matcher_of(Fixture(fixture.name, fixture.argument("matcher"), "", {}))
    sampler = PointSampler(
        fixture.argument("num_points"),
        fixture.argument("oversample_ratio"),
        fixture.argument("importance_sample_ratio"),
    )
    sets = [("outputs", "")]
    while f"in/outputs.aux_outputs.{len(sets) - 1}.{_KINDS[0]}" in fixture:
        sets.append((f"outputs.aux_outputs.{len(sets) - 1}", f"_{len(sets) - 1}"))
    if f"in/outputs.interm_outputs.{_KINDS[0]}" in fixture:
        sets.append(("outputs.interm_outputs", "_interm"))
    leaves = {f"{name}.{kind}": fixture.leaf(f"{name}.{kind}") for name, _ in sets for kind in _KINDS}
    targets = _targets(fixture, len(next(iter(leaves.values()))))
    share = 1 / max(1, sum(len(labels) for labels, _, _ in targets))
    draws = _draws(fixture)
    total = torch.zeros(())
    for j, (name, suffix) in enumerate(sets):
        predictions = [leaves[f"{name}.{kind}"] for kind in _KINDS]
        _, pairs = _match(matcher, predictions, targets, draws)
        if f"out/matching.{j}.0.src" in fixture:
            _compare_pairs(compare, f"out/matching.{j}", pairs)
        losses = _losses(predictions, targets, pairs)
        if "masks" in fixture.argument("losses"):  # nothing is drawn for others
            of_masks, points = _mask_losses(sampler, predictions[2], targets, pairs, draws)
            losses |= of_masks
            if f"out/point_coords.{j}" in fixture:
                compare.output(f"out/point_coords.{j}", _ordered_as(fixture[f"out/point_coords.{j}"], points))
        for term in fixture.argument("losses"):
            for loss in _TERMS[term]:
                compare.output(f"out/{loss}{suffix}", losses[loss] * share)
                total = total + losses[loss] * share
    if fixture.names("grad/"):
        total.backward()
    compare.gradients_of(leaves)


_TERMS = {"labels": ("loss_ce",), "masks": ("loss_mask", "loss_dice"), "boxes": ("loss_bbox", "loss_giou")}


def _of_pairs(values: Tensor, pairs: Pairs) -> Tensor:
    """What was predicted for the instances, image after image."""
    return torch.cat([value[rows] for value, (rows, _) in zip(values, pairs, strict=True)])


def _true(values: Sequence[Tensor], pairs: Pairs) -> Tensor:
    """Its truth."""
    return torch.cat([value[columns] for value, (_, columns) in zip(values, pairs, strict=True)])


def _losses(predictions: Sequence[Tensor], targets: Sequence[Target], pairs: Pairs) -> dict[str, Tensor]:
    """Every term of classes and boxes, summed over pairs."""
    logits, boxes, _ = predictions
    wanted = torch.zeros_like(logits)
    for i, ((rows, columns), (labels, _, _)) in enumerate(zip(pairs, targets, strict=True)):
        wanted[i, rows, labels[columns]] = 1.0
    mine, boxed = _of_pairs(boxes, pairs), _true([t[1] for t in targets], pairs)
    return {
        "loss_ce": sigmoid_focal_loss(logits, wanted).sum(),
        "loss_bbox": l1_box_loss(mine, boxed).sum(),
        "loss_giou": giou_loss(mine, boxed).sum(),
    }


def _mask_losses(
    sampler: PointSampler,
    masks: Tensor,
    targets: Sequence[Target],
    pairs: Pairs,
    draws: Iterator[Tensor],
) -> tuple[dict[str, Tensor], Tensor]:
    """Every term of masks, summed over pairs, and the points at which they were compared."""
    owned, truth = _of_pairs(masks, pairs)[:, None], _true(_padded(targets), pairs)[:, None]
    points = _uncertain(sampler, owned, draws)
    drawn, truth = sample_points(owned, points)[:, 0], sample_points(truth, points)[:, 0]
    return {
        "loss_mask": sigmoid_ce_loss(drawn, truth).sum(),
        "loss_dice": dice_loss(drawn, truth).sum(),
    }, points


def _ordered_as(theirs: Tensor, ours: Tensor) -> Tensor:
    """Our (..., P, 2) points as a set, in the order of theirs: detrex sorts by uncertainty, which no loss sees."""
    if theirs.shape != ours.shape:
        return ours
    # Draws are multiples of 2^-24: rows apart by x, then by y.
    place, source = (
        (points[..., 0].double() * 2**26 + points[..., 1]).argsort(-1) for points in (theirs, ours)
    )
    picked = ours.gather(-2, source[..., None].expand_as(ours))
    return torch.zeros_like(ours).scatter(-2, place[..., None].expand_as(ours), picked)


def _uncertain(sampler: PointSampler, logits: Tensor, draws: Iterator[Tensor]) -> Tensor:
    """The points of (M, 1, h, w) logits: from candidates, and uniform ones drawn after them if there are any."""
    uniform = sampler.num_points - int(sampler.num_points * sampler.importance_ratio)
    candidates = torch.cat([next(draws) for _ in range(2 if uniform else 1)], dim=1)
    chosen = sampler.choose(sample_points(logits.detach(), candidates)[:, 0])
    return candidates.gather(1, chosen[..., None].expand(-1, -1, 2))


def point_sampling(fixture: Fixture, compare: Comparison) -> None:
    """Bilinear samples at points, and the choice of uncertain ones."""
    logits = fixture["in/logits"]
    if "out/point_sample" in fixture:
        compare.output("out/point_sample", sample_points(logits, fixture["in/point_coords"]))
    if "out/uncertain_points" not in fixture:
        return
    draws = _recorded(fixture)
    count, drawn = fixture["out/uncertain_points"].shape[1], draws[0].shape[1]
    uniform = draws[1].shape[1] if len(draws) > 1 else 0
    # half a point more, lest the part that is kept be cut to one point less
    sampler = PointSampler(count, (drawn + 0.5) / count, (count - uniform + 0.5) / count if uniform else 1.0)
    points = _uncertain(sampler, logits, iter(draws))
    compare.output("out/uncertain_points", _ordered_as(fixture["out/uncertain_points"], points))


def loss_functions(fixture: Fixture, compare: Comparison) -> None:
    """The functions one by one; `_nb4` and `_nm6` at the end of a name say what they are divided by."""
    given = {name: fixture[f"in/{name}"] for name in fixture.names("in/")}
    for name in fixture.names("out/"):
        function, _, count = name.partition("_nb" if "_nb" in name else "_nm")
        divisor = int(count or 1)
        if function == "sigmoid_focal_loss":
            ours = sigmoid_focal_loss(given["cls_logits"], given["cls_onehot"]).mean(1).sum() / divisor
        elif function in ("dice_loss", "sigmoid_ce_loss"):
            loss = dice_loss if function == "dice_loss" else sigmoid_ce_loss
            ours = loss(given["logits"], given["labels"]).sum() / divisor
        elif function in ("batch_dice_loss", "batch_sigmoid_ce_loss"):
            cost = dice_cost if function == "batch_dice_loss" else mask_cost
            others = next(value for key, value in given.items() if re.fullmatch(r"labels\d+", key))
            ours = cost(given["logits"], others)
        elif function in ("generalized_box_iou", "box_iou"):
            overlap = box_iou if function == "box_iou" else generalized_box_iou
            ours = overlap(given["boxes1_xyxy"][:, None], given["boxes2_xyxy"][None])
        else:
            raise UnsupportedError(f"no such loss function here: {name}")
        compare.output(f"out/{name}", ours)


def mask_boxes(fixture: Fixture, compare: Comparison) -> None:
    """Boxes of masks by both of their rules: in pixels, in [0, 1], and through the sigmoid's inverse and back.

    Ours clamps what their rule makes of an empty mask as soon as it is made, theirs when it is used: such a box, in
    pixels or in [0, 1], is compared after their clamp.
    """
    for name in fixture.names("out/"):
        rule = "bitmask" if "bitmask" in name else "mask2box"
        if "mask2box" not in name and rule == "mask2box":
            raise UnsupportedError(f"no such rule here: {name}")
        theirs = fixture[f"out/{name}"]
        logits = fixture.get("in/mask_logits" if name.startswith("logits") else "in/masks")
        logits = torch.zeros(len(theirs), 1, 1) if logits is None else logits.float()
        size = torch.tensor([logits.shape[-1], logits.shape[-2]] * 2)
        boxes = mask_to_box(logits, torch.tensor(EMPTY[rule]).expand(len(logits), 4), edge=EDGE[rule])
        if name.endswith("unsigmoid"):
            boxes = inverse_sigmoid(boxes)
        elif name.endswith("sigmoid"):
            boxes = inverse_sigmoid(boxes).sigmoid()
        else:
            boxes = _unclamped(boxes, logits, theirs, size, in_pixels=not name.endswith("norm"))
        compare.output(f"out/{name}", boxes)


def _unclamped(boxes: Tensor, masks: Tensor, theirs: Tensor, size: Tensor, in_pixels: bool) -> Tensor:
    """Our boxes in their form; where a mask is empty theirs, if clamped they are what ours are."""
    form = cxcywh_to_xyxy(boxes) * size if in_pixels else boxes
    low, high = theirs[..., :2], theirs[..., 2:]
    clamped = (torch.cat(((low + high) / 2, high - low), dim=-1) / size if in_pixels else theirs).clamp(0, 1)
    empty = ~(masks > 0).flatten(1).any(dim=1, keepdim=True)
    return torch.where(empty & (clamped == boxes).all(dim=-1, keepdim=True), theirs, form)
