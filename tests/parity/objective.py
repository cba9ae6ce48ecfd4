"""Checks of matching, losses, point sampling and boxes of masks; recorded random draws are replayed."""

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
    """Labels, boxes and float masks of every image."""
    targets = []
    for i in range(count):
        labels, boxes, masks = (fixture[f"in/targets.{i}.{kind}"] for kind in ("labels", "boxes", "masks"))
        targets.append((labels, boxes, masks.float()))
    return targets


def _padded(targets: Sequence[Target]) -> list[Tensor]:
    """The masks of all images, padded at the right and bottom to the largest."""
    height, width = (max(t[2].shape[axis] for t in targets) for axis in (-2, -1))
    return [F.pad(t[2], (0, width - t[2].shape[-1], 0, height - t[2].shape[-2])) for t in targets]


def _recorded(fixture: Fixture) -> list[Tensor]:
    """All recorded draws in call order."""
    return [fixture[name] for name in sorted(name for name in fixture.arrays if name.startswith("rng/"))]


def _draws(fixture: Fixture) -> Iterator[Tensor]:
    """Yield the recorded draws in call order.

    Raises:
        UnsupportedError: when more draws are requested than were recorded.
    """
    yield from _recorded(fixture)
    raise UnsupportedError("more random draws are needed than were recorded")


def _match(
    matcher: Matcher, predictions: Sequence[Tensor], targets: Sequence[Target], draws: Iterator[Tensor]
) -> tuple[list[Tensor], Pairs]:
    """Cost matrix and matched pairs of every image; each image uses one set of points, even without instances."""
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
    """Targets of another fixture, without the instances of images whose expected assignment is empty."""
    return [
        target
        if len(fixture.arrays[f"out/indices.{i}.src"])
        else (target[0][:0], target[1][:0], target[2][:0])
        for i, target in enumerate(targets)
    ]


def matching(fixture: Fixture, compare: Comparison) -> None:
    """Compare costs and assignment; a fixture without inputs uses those of the fixture that its note names."""
    source = fixture if fixture.names("in/") else _inputs_of(fixture)
    predictions = [source[f"in/outputs.{kind}"] for kind in _KINDS]
    targets = _targets(source, len(predictions[0]))
    if source is not fixture:
        targets = _without_instances(fixture, targets)
    draws = _draws(fixture if fixture.names("rng/") else source)
    costs, pairs = _match(_matcher_of(fixture), predictions, targets, draws)
    _compare_pairs(compare, "out/indices", pairs)
    for i, cost in enumerate(costs):
        if f"out/cost.{i}" in fixture:
            compare.output(f"out/cost.{i}", cost)


def _inputs_of(fixture: Fixture) -> Fixture:
    """The fixture that a note names ("inputs of f1"); the most similar name if several match."""
    match = re.search(r"inputs of (\w+)", fixture.note)
    candidates = [
        name
        for name, other in fixture.beside.items()
        if match and name.split("_")[0] == match[1] and other.names("in/outputs.")
    ]
    if not candidates:
        raise UnsupportedError("the fixture has no inputs, and no other fixture of the folder has them")
    return fixture.beside[max(candidates, key=lambda name: SequenceMatcher(None, name, fixture.name).ratio())]


def criterion(fixture: Fixture, compare: Comparison) -> None:
    """Compare every loss of every set of predictions and the gradients of their sum; each set is re-matched."""
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
    scale = 1 / max(1, sum(len(labels) for labels, _, _ in targets))
    draws = _draws(fixture)
    total = torch.zeros(())
    for j, (name, suffix) in enumerate(sets):
        predictions = [leaves[f"{name}.{kind}"] for kind in _KINDS]
        _, pairs = _match(matcher, predictions, targets, draws)
        if f"out/matching.{j}.0.src" in fixture:
            _compare_pairs(compare, f"out/matching.{j}", pairs)
        losses = _losses(predictions, targets, pairs)
        if "masks" in fixture.argument("losses"):  # only mask losses draw points
            mask_losses, points = _mask_losses(sampler, predictions[2], targets, pairs, draws)
            losses |= mask_losses
            if f"out/point_coords.{j}" in fixture:
                compare.output(f"out/point_coords.{j}", _ordered_as(fixture[f"out/point_coords.{j}"], points))
        for term in fixture.argument("losses"):
            for loss in _TERMS[term]:
                compare.output(f"out/{loss}{suffix}", losses[loss] * scale)
                total = total + losses[loss] * scale
    if fixture.names("grad/"):
        total.backward()
    compare.gradients_of(leaves)


_TERMS = {"labels": ("loss_ce",), "masks": ("loss_mask", "loss_dice"), "boxes": ("loss_bbox", "loss_giou")}


def _of_pairs(values: Tensor, pairs: Pairs) -> Tensor:
    """Predictions matched to instances, concatenated over images."""
    return torch.cat([value[rows] for value, (rows, _) in zip(values, pairs, strict=True)])


def _targets_of(values: Sequence[Tensor], pairs: Pairs) -> Tensor:
    """Targets in the same order as `_of_pairs`."""
    return torch.cat([value[columns] for value, (_, columns) in zip(values, pairs, strict=True)])


def _losses(predictions: Sequence[Tensor], targets: Sequence[Target], pairs: Pairs) -> dict[str, Tensor]:
    """Class and box losses, summed over pairs."""
    logits, boxes, _ = predictions
    onehot = torch.zeros_like(logits)
    for i, ((rows, columns), (labels, _, _)) in enumerate(zip(pairs, targets, strict=True)):
        onehot[i, rows, labels[columns]] = 1.0
    src_boxes, tgt_boxes = _of_pairs(boxes, pairs), _targets_of([t[1] for t in targets], pairs)
    return {
        "loss_ce": sigmoid_focal_loss(logits, onehot).sum(),
        "loss_bbox": l1_box_loss(src_boxes, tgt_boxes).sum(),
        "loss_giou": giou_loss(src_boxes, tgt_boxes).sum(),
    }


def _mask_losses(
    sampler: PointSampler,
    masks: Tensor,
    targets: Sequence[Target],
    pairs: Pairs,
    draws: Iterator[Tensor],
) -> tuple[dict[str, Tensor], Tensor]:
    """Mask losses, summed over pairs, and the points at which masks were compared."""
    src_masks, tgt_masks = _of_pairs(masks, pairs)[:, None], _targets_of(_padded(targets), pairs)[:, None]
    points = _uncertain(sampler, src_masks, draws)
    src, tgt = sample_points(src_masks, points)[:, 0], sample_points(tgt_masks, points)[:, 0]
    return {
        "loss_mask": sigmoid_ce_loss(src, tgt).sum(),
        "loss_dice": dice_loss(src, tgt).sum(),
    }, points


def _ordered_as(theirs: Tensor, ours: Tensor) -> Tensor:
    """Our (..., P, 2) points in the order of theirs; detrex sorts by uncertainty, which no loss depends on."""
    if theirs.shape != ours.shape:
        return ours
    # Draws are multiples of 2^-24, so that this key sorts by x, then by y.
    target, source = (
        (points[..., 0].double() * 2**26 + points[..., 1]).argsort(-1) for points in (theirs, ours)
    )
    ordered = ours.gather(-2, source[..., None].expand_as(ours))
    return torch.zeros_like(ours).scatter(-2, target[..., None].expand_as(ours), ordered)


def _uncertain(sampler: PointSampler, logits: Tensor, draws: Iterator[Tensor]) -> Tensor:
    """The uncertain points of (M, 1, h, w) logits; uniform points, if any, are drawn after the candidates."""
    uniform = sampler.num_points - int(sampler.num_points * sampler.importance_ratio)
    candidates = torch.cat([next(draws) for _ in range(2 if uniform else 1)], dim=1)
    chosen = sampler.choose(sample_points(logits.detach(), candidates)[:, 0])
    return candidates.gather(1, chosen[..., None].expand(-1, -1, 2))


def point_sampling(fixture: Fixture, compare: Comparison) -> None:
    """Compare bilinear samples at points and the selection of uncertain points."""
    logits = fixture["in/logits"]
    if "out/point_sample" in fixture:
        compare.output("out/point_sample", sample_points(logits, fixture["in/point_coords"]))
    if "out/uncertain_points" not in fixture:
        return
    draws = _recorded(fixture)
    count, num_candidates = fixture["out/uncertain_points"].shape[1], draws[0].shape[1]
    uniform = draws[1].shape[1] if len(draws) > 1 else 0
    # Half a point more, so that rounding down does not lose a point.
    sampler = PointSampler(
        count, (num_candidates + 0.5) / count, (count - uniform + 0.5) / count if uniform else 1.0
    )
    points = _uncertain(sampler, logits, iter(draws))
    compare.output("out/uncertain_points", _ordered_as(fixture["out/uncertain_points"], points))


def loss_functions(fixture: Fixture, compare: Comparison) -> None:
    """Compare the loss functions; a suffix `_nb4` or `_nm6` of a name is the divisor."""
    inputs = {name: fixture[f"in/{name}"] for name in fixture.names("in/")}
    for name in fixture.names("out/"):
        function, _, count = name.partition("_nb" if "_nb" in name else "_nm")
        divisor = int(count or 1)
        if function == "sigmoid_focal_loss":
            ours = sigmoid_focal_loss(inputs["cls_logits"], inputs["cls_onehot"]).mean(1).sum() / divisor
        elif function in ("dice_loss", "sigmoid_ce_loss"):
            loss = dice_loss if function == "dice_loss" else sigmoid_ce_loss
            ours = loss(inputs["logits"], inputs["labels"]).sum() / divisor
        elif function in ("batch_dice_loss", "batch_sigmoid_ce_loss"):
            cost = dice_cost if function == "batch_dice_loss" else mask_cost
            others = next(value for key, value in inputs.items() if re.fullmatch(r"labels\d+", key))
            ours = cost(inputs["logits"], others)
        elif function in ("generalized_box_iou", "box_iou"):
            overlap = box_iou if function == "box_iou" else generalized_box_iou
            ours = overlap(inputs["boxes1_xyxy"][:, None], inputs["boxes2_xyxy"][None])
        else:
            raise UnsupportedError(f"unknown loss function: {name}")
        compare.output(f"out/{name}", ours)


def mask_boxes(fixture: Fixture, compare: Comparison) -> None:
    """Compare boxes of masks by both upstream rules: in pixels, in [0, 1], as inverse sigmoid and back.

    Our function clamps the box of an empty mask at once, detrex clamps it when it is used. Such a box is compared
    after detrex's clamp.
    """
    for name in fixture.names("out/"):
        rule = "bitmask" if "bitmask" in name else "mask2box"
        if "mask2box" not in name and rule == "mask2box":
            raise UnsupportedError(f"unknown rule: {name}")
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
    """Our boxes in detrex's format; detrex's own box for an empty mask, if it clamps to ours."""
    form = cxcywh_to_xyxy(boxes) * size if in_pixels else boxes
    low, high = theirs[..., :2], theirs[..., 2:]
    clamped = (torch.cat(((low + high) / 2, high - low), dim=-1) / size if in_pixels else theirs).clamp(0, 1)
    empty = ~(masks > 0).flatten(1).any(dim=1, keepdim=True)
    return torch.where(empty & (clamped == boxes).all(dim=-1, keepdim=True), theirs, form)
