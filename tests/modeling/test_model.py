"""The whole model at a small size: parameter counts, gradients, padding, streams, precision."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from local2global.errors import UserError
from local2global.lazy import instantiate, load_config
from local2global.modeling import criterion
from local2global.modeling.backbone import GroupNorms, ResNet
from local2global.modeling.criterion import FullSupervision
from local2global.modeling.matcher import match_clip
from local2global.modeling.model import Local2Global, fit_masks
from local2global.modeling.positions import DynamicLocalPositions, NoPositions, StaticPositions
from local2global.modeling.tracker import FromLocal, Learned
from local2global.modeling.variants import FromProposals, ImageTracker
from local2global.structures import Clip, VideoResult, padded_pixels
from waits import waits

PRETRAINING = (r"^tracker\.", r"ref_point_head")
VARIANTS = {
    "main": lambda: {},
    "baseline: no aligner, static": lambda: {"aligner": False, "positions": StaticPositions(6, 32)},
    "no aligner": lambda: {"aligner": False},
    "static": lambda: {"positions": StaticPositions(6, 32)},
    "no g_pos": lambda: {"positions": NoPositions()},
    "dynamic l_pos": lambda: {"local_positions": DynamicLocalPositions()},
    "cross first": lambda: {"cross_first": True},
    "bypass": lambda: {"first_frame": FromLocal(align=False)},
    "full supervision": lambda: {"supervision": FullSupervision()},
    "proposals": lambda: {"first_frame": FromProposals()},
    "learned": lambda: {"first_frame": Learned(6, 32)},
    "pre-training": lambda: {"first_frame": Learned(6, 32), "trainable": PRETRAINING},
}


def count(module):
    return sum(p.numel() for p in module.parameters())


def total(losses):
    return sum(losses.values())


@pytest.fixture(scope="module")
def paper(root):
    """The paper's model for the 40 classes of YouTube-VIS, on the meta device."""
    config = load_config(str(root / "configs/common/models/l2g_r50.py"))
    config.model.classes = [{"id": i + 1, "name": str(i)} for i in range(40)]
    with torch.device("meta"):
        return instantiate(config.model)


def test_sizes_are_the_papers(paper):
    """55.2 M, of which 52.0 M are MaskDINO's and 3.2 M the aligner with l_pos of 100 slots."""
    assert count(paper) == 55_223_404
    assert count(paper.segmenter) == 52_037_484
    assert count(paper.tracker.aligner) == 3_160_320
    assert count(paper.tracker) == 3_160_320 + 100 * 256
    frozen = {name for name, p in paper.named_parameters() if not p.requires_grad}
    assert frozen == {
        "segmenter.label_enc.weight",
        "segmenter.backbone.stem.conv1.conv.weight",
    }


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("length", [1, 3])
def test_every_trainable_parameter_has_a_gradient_after_one_step(tiny, make_clip, name, length):
    """DistributedDataParallel requires it by default."""
    if name == "bypass" and length == 1:
        pytest.skip("a bypassed aligner has nothing to do in clips of one frame")
    model = tiny(**VARIANTS[name]()).train()
    clip = make_clip([[1] * length, [1] * (length - 1) + [0]])
    total(model([clip])).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_trainable_parameter_has_a_gradient_without_instances(tiny, make_clip, name):
    model = tiny(**VARIANTS[name]()).train()
    losses = model([make_clip(torch.zeros(0, 3))])
    assert all(value.isfinite() for value in losses.values())
    total(losses).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_without_an_aligner_there_is_no_l_pos(tiny):
    model = tiny(aligner=False)
    assert not [name for name in model.state_dict() if "local_positions" in name or "aligner" in name]


def test_only_parameters_named_by_trainable_are_trained(tiny):
    model = tiny(first_frame=Learned(6, 32), trainable=PRETRAINING)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    expected = {n for n, _ in model.named_parameters() if n.startswith("tracker.") or "ref_point_head" in n}
    assert trained == expected


def test_a_trainable_pattern_without_a_match_raises(tiny):
    with pytest.raises(ValueError, match="alinger"):
        tiny(trainable=["alinger"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"threshold": 2}, "model.threshold=2: expected a number from 0 to 1"),
        ({"threshold": float("nan")}, "model.threshold=nan: expected"),
        ({"threshold": "/home"}, "model.threshold=/home: expected"),
        ({"test_size": (0, 0)}, r"model.test_size=\(0, 0\): expected \[short edge, long edge\]"),
    ],
)
def test_invalid_settings_of_the_model_are_refused_by_key(tiny, change, problem):
    with pytest.raises(UserError, match=problem):
        tiny(**change)


def test_a_model_without_classes_is_refused(tiny):
    model = tiny()
    with pytest.raises(UserError, match=r"model\.classes: empty"):
        Local2Global(model.segmenter, model.tracker, model.criterion, [])


def test_label_enc_is_frozen_even_if_trainable_matches_it(tiny):
    assert not tiny(trainable=["."]).segmenter.label_enc.weight.requires_grad


def test_clips_of_different_lengths_raise(tiny, make_clip):
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        tiny().train()([make_clip([[1, 1]]), make_clip([[1, 1, 1]])])


def test_a_clip_without_targets_raises_in_training(tiny, make_clip):
    with pytest.raises(ValueError, match="no targets"):
        tiny().train()([dataclasses.replace(make_clip(), targets=None)])


def run(model, clip):
    """The training loop without losses: all frames are encoded together, then decoded one by one."""
    answers, past = [], None
    for features in model.encode(list(clip.frames)).split(len(clip)):
        answers.append(model.step(features, past))
        past = answers[-1].queries
    return answers


def same(one, other, atol=1e-5):
    for name in ("logits", "boxes", "masks"):
        looser = 10 if name == "masks" else 1  # a mask is a sum over all channels
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=atol * looser, rtol=1e-5)
    torch.testing.assert_close(one.queries.embed, other.queries.embed, atol=atol, rtol=1e-5)
    torch.testing.assert_close(one.queries.boxes, other.queries.boxes, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_a_stream_predicts_what_a_clip_does(tiny, make_clip, name):
    model, clip = tiny(**VARIANTS[name]()).eval(), make_clip([[1, 1, 1, 1]])
    for one, other in zip(model.stream(iter(clip.frames)), run(model, clip), strict=True):
        same(one, other)


@torch.no_grad()
def test_a_clip_in_a_batch_predicts_what_it_does_alone(tiny, make_clip):
    model = tiny().eval()
    clips = [make_clip([[1, 1, 1]], seed=i) for i in range(2)]
    features = model.encode([f for c in clips for f in c.frames]).split(3)
    alone, past = run(model, clips[1]), None
    for t, step in enumerate(features):
        answer = model.step(step, past)
        past = answer.queries
        torch.testing.assert_close(answer.logits[1:], alone[t].logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(answer.masks[1:], alone[t].masks, atol=1e-4, rtol=1e-5)


def test_a_result_is_yielded_before_the_next_frame_is_read(tiny, make_clip):
    model, read = tiny().eval(), []

    def frames():
        for t, frame in enumerate(make_clip([[1, 1, 1]]).frames):
            read.append(t)
            yield frame

    for t, _ in enumerate(model.stream(frames())):
        assert read == list(range(t + 1))


def test_two_streams_of_one_model_are_independent(tiny, make_clip):
    model = tiny().eval()
    one, other = make_clip([[1, 1, 1]], seed=1), make_clip([[1, 1, 1]], seed=2)
    apart = list(model.stream(one.frames)), list(model.stream(other.frames))
    before = set(vars(model)), {n: b.clone() for n, b in model.named_buffers()}
    together = zip(model.stream(one.frames), model.stream(other.frames), strict=True)
    for t, pair in enumerate(together):
        same(pair[0], apart[0][t], atol=0)
        same(pair[1], apart[1][t], atol=0)
    assert set(vars(model)) == before[0]
    assert all(torch.equal(b, before[1][n]) for n, b in model.named_buffers())


def test_a_stream_builds_no_autograd_graph(tiny, make_clip):
    (answer,) = tiny().eval().stream(make_clip([[1]]).frames)
    assert not answer.logits.requires_grad
    assert not answer.queries.embed.requires_grad


def test_evaluation_gives_one_result_per_clip(tiny, make_clip):
    model = tiny(threshold=0.0).eval()
    clips = [
        Clip(make_clip([[1, 1]]).frames, (30, 50), video_id=7),
        Clip(list(make_clip([[1, 1, 1]]).frames), (64, 96), video_id=9),
    ]
    results = model(clips)
    assert all(isinstance(r, VideoResult) for r in results)
    assert [(r.video_id, r.size, r.length) for r in results] == [(7, (30, 50), 2), (9, (64, 96), 3)]


def test_gradients_flow_between_frames_through_query_content_only(tiny, make_clip):
    """A loss on the last frame reaches the first frame's features, but not through boxes alone."""
    model, clip = tiny().train(), make_clip([[1, 1, 1]])
    steps = model.encode(list(clip.frames)).split(3)
    steps = [
        dataclasses.replace(
            s, memory=s.memory.detach().requires_grad_(), mask_features=s.mask_features.detach()
        )
        for s in steps
    ]
    answers, past = [], None
    for step in steps:
        answers.append(model.step(step, past))
        past = answers[-1].queries
        assert not past.boxes.requires_grad
    reach = torch.autograd.grad(answers[-1].logits.sum(), steps[0].memory, retain_graph=True)[0]
    assert reach.abs().max() > 0
    cut = answers[0].queries
    cut = dataclasses.replace(cut, embed=cut.embed.detach())
    alone = model.step(steps[1], cut).logits.sum()
    assert torch.autograd.grad(alone, steps[0].memory, allow_unused=True)[0] is None


def test_local_content_is_detached(tiny, make_clip):
    """The token scorer gets gradients from local predictions, and none from final predictions."""
    model, clip = tiny().train(), make_clip([[1]])
    answer = model.step(model.encode(list(clip.frames)), None)
    scorer = model.segmenter.enc_output.weight
    final = answer.layers[-1].mask_embed.sum() + answer.logits.sum() + answer.boxes.sum()
    assert torch.autograd.grad(final, scorer, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(answer.local.logits.sum(), scorer)[0].any()


def losses_and_slots(model, clips, monkeypatch):
    """Losses, and the slots that the criterion assigned to each clip."""
    slots = []

    def record(*args):
        slots.append(match_clip(*args))
        return slots[-1]

    with monkeypatch.context() as patch:
        patch.setattr(criterion, "match_clip", record)
        losses = model(clips)
    return losses, [assigned.tolist() for assigned in slots]


def test_bfloat16_gives_the_same_matches_and_losses_within_two_percent(tiny, make_clip, monkeypatch):
    model = tiny(scale=0.02).train()
    clips = [make_clip([[1, 1, 1], [0, 1, 1]], seed=10 + i, key=(0, 0, i)) for i in range(2)]
    full, slots = losses_and_slots(model, clips, monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        half, half_slots = losses_and_slots(model, clips, monkeypatch)
    assert half_slots == slots
    assert all(value.dtype == torch.float32 for value in half.values())
    for name, value in full.items():
        assert half[name].item() == pytest.approx(value.item(), rel=0.02), name
    total(half).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_losses_depend_on_the_clips_key_not_on_the_global_seed(tiny, make_clip):
    model = tiny().train()
    torch.manual_seed(1)
    one = model([make_clip(key=(0, 3, 1))])
    torch.manual_seed(2)
    assert model([make_clip(key=(0, 3, 1))]) == one
    assert model([make_clip(key=(0, 3, 2))]) != one


def test_losses_do_not_depend_on_the_order_of_clips(tiny, make_clip):
    model = tiny().train()
    clips = [make_clip([[1, 1, 1], [0, 1, 1]], seed=i, key=(0, 0, i)) for i in range(2)]
    one, other = model(clips), model(clips[::-1])
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-4, rtol=1e-4)


def test_noise_in_padding_after_the_encoder_does_not_change_losses(tiny, make_clip, monkeypatch):
    """Noise in padded tokens and mask pixels has no effect on proposals, aligner, decoder, boxes, costs or losses."""
    model = tiny().train()
    clips = [make_clip([[1, 1]], key=(0, 0, 0)), make_clip([[1, 1], [1, 1]], size=(40, 56), key=(0, 0, 1))]
    clean, slots = losses_and_slots(model, clips, monkeypatch)
    encode = type(model.segmenter).encode

    def noisy(self, images, valid):
        features = encode(self, images, valid)
        memory, masks = features.memory, features.mask_features
        hidden = padded_pixels(features.extent, *features.mask_features.shape[-2:])[:, None]
        assert features.padding.any()
        assert hidden.any()
        return dataclasses.replace(
            features,
            memory=memory + 1e3 * torch.randn_like(memory) * features.padding[..., None],
            mask_features=masks + 1e3 * torch.randn_like(masks) * hidden,
        )

    monkeypatch.setattr(type(model.segmenter), "encode", noisy)
    noise, noisy_slots = losses_and_slots(model, clips, monkeypatch)
    assert noisy_slots == slots
    for name, value in clean.items():
        torch.testing.assert_close(noise[name], value, atol=1e-5 * max(1, value.item()), rtol=0)


@torch.no_grad()
def test_no_mask_equals_an_empty_mask(tiny, make_clip):
    """Frames without padding give the same bits with padding None and with a mask that is False everywhere."""
    model = tiny().eval()
    (frame,) = make_clip([[1]], size=(64, 96)).frames
    free = model.encode([frame])
    assert free.padding is None
    image = ((frame.float() - model.pixel_mean) / model.pixel_std)[None]
    masked = model.segmenter.encode(image, torch.ones(1, 2))
    assert masked.padding is not None
    assert not masked.padding.any()
    for name in ("memory", "mask_features", "extent", "valid_ratios"):
        assert torch.equal(getattr(free, name), getattr(masked, name))
    one, other = model.step(free, None), model.step(masked, None)
    for name in ("logits", "boxes", "masks"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert torch.equal(one.queries.embed, other.queries.embed)


def without_group_norm(model):
    """The model with every GroupNorm replaced by the identity."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return model


@torch.no_grad()
def padding_effect(model, clip):
    """Largest change of tokens, mask features and logits inside the frame if the batch has a larger frame."""
    (frame,), large = clip.frames, torch.zeros(3, 96, 160, dtype=torch.uint8)
    alone, both = model.encode([frame]), model.encode([frame, large])
    hidden = padded_pixels(both.extent, *both.mask_features.shape[-2:])[0]
    inside = both.memory[0, ~both.padding[0]], both.mask_features[0][:, ~hidden]
    tokens = (inside[0] - alone.memory[0]).abs().max().item()
    masks = (inside[1] - alone.mask_features[0].flatten(1)).abs().max().item()
    one, two = model.step(alone, None), model.step(both, None)
    return tokens, masks, (two.logits[:1] - one.logits).abs().max().item()


def test_padding_changes_tokens_through_group_norm_only(tiny, make_clip):
    """The toy backbone's patches do not overlap and attention is masked."""
    clip = make_clip([[1]])
    with_norm, without = (
        padding_effect(tiny().eval(), clip),
        padding_effect(without_group_norm(tiny()).eval(), clip),
    )
    assert with_norm[0] > 1e-2
    assert without[0] < 1e-4


@torch.no_grad()
def test_padding_also_changes_masks_through_the_fpn(tiny, make_clip, monkeypatch):
    """Bilinear upsampling and a 3x3 convolution read across the frame's edge; without them there is no change."""
    clip, model = make_clip([[1]]), without_group_norm(tiny()).eval()
    assert padding_effect(model, clip)[1] > 1e-2
    model.segmenter.encoder.layer_1 = nn.Conv2d(32, 32, 1)
    bilinear = nn.functional.interpolate
    monkeypatch.setattr(nn.functional, "interpolate", lambda x, size, **_: bilinear(x, size, mode="nearest"))
    assert max(padding_effect(model, clip)) < 1e-4


def test_loss_names_do_not_depend_on_the_batch(tiny, make_clip):
    model = tiny().train()
    assert set(model([make_clip()])) == set(model([make_clip(torch.zeros(0, 1))]))


def test_a_frame_is_normalised_and_padded_to_the_divisor(tiny):
    seen = []
    model = tiny()
    encode = model.segmenter.encode
    model.segmenter.encode = lambda images, valid: seen.append((images, valid)) or encode(images, valid)
    white = torch.full((3, 33, 64), 255, dtype=torch.uint8)
    features = model.encode([torch.zeros(3, 40, 60, dtype=torch.uint8), white])
    images, valid = seen[0]
    assert images.shape == (2, 3, 64, 64)
    black = torch.tensor([-123.675 / 58.395, -116.28 / 57.12, -103.53 / 57.375])
    torch.testing.assert_close(images[0, :, 0, 0], black)
    assert not images[0, :, 40:].any()
    assert not images[0, :, :, 60:].any()
    torch.testing.assert_close(valid, torch.tensor([[60 / 64, 40 / 64], [1.0, 33 / 64]]))
    assert features.colours.shape == (2, 3, *features.mask_features.shape[-2:])
    torch.testing.assert_close(features.colours[0, :, :10, :15], torch.zeros(3, 10, 15))
    torch.testing.assert_close(features.colours[1, :, :8], torch.ones(3, 8, 16))


def test_a_resnet_trains_end_to_end(tiny, make_clip):
    sizes = [16, 16, 32, 32]
    backbone = ResNet([1, 1, 1, 1], sizes, 8, "basic", GroupNorms(), freeze_stem=False)
    channels = {f"res{i + 2}": c for i, c in enumerate(sizes)}
    model = tiny(backbone=backbone, channels=channels).train()
    total(model([make_clip([[1, 1]])])).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


class _ValueReads(TorchDispatchMode):
    """Records operators that return a tensor's value, or a shape that depends on a value, to the host."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if waits(name, args):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("supervision", [FullSupervision(), None], ids=["all frames", "some frames"])
def test_a_training_step_reads_no_tensor_value(tiny, make_clip, supervision):
    """On a GPU, a step waits for the matching costs only.

    Skipped frames are drawn on the host, once for the normalizer and once for the losses.
    """
    model = tiny(supervision=supervision).train()
    clips = [make_clip(), make_clip(visible=((0, 1, 1), (0, 0, 0), (1, 1, 0)), key=(0, 0, 1), seed=1)]
    with _ValueReads() as asked:
        total(model(clips)).backward()
    assert asked.names == ["_local_scalar_dense"] * (0 if supervision else 2 * len(clips))


@pytest.mark.parametrize("tracker", [None, ImageTracker()])
def test_a_stream_starts_from_given_masks(tiny, make_clip, tracker):
    """The first frame predicts the given masks in slots 0 and 1; later frames are segmented."""
    model = tiny().eval()
    model.tracker = tracker or model.tracker
    clip = make_clip()
    objects = clip.targets.masks[:, 0]
    first, second, _ = model.stream(clip.frames, objects=objects)
    expected = fit_masks(objects, model.encode([clip.frames[0]]))
    assert torch.equal(first.masks[0, :2] > 0, expected)
    assert first.masks.shape == second.masks.shape == (1, 6, 16, 24)
    size = clip.frames.shape[-1] / 4
    assert abs(first.queries.boxes[0, 0, 2] * size - expected[0].any(0).sum()) < 1e-4


def test_given_masks_fill_the_pixels_that_they_cover_by_half(tiny):
    """A 6 x 4 object on a frame of 32 x 32: its second column of mask pixels is covered by half, a speck by .0625."""
    features = tiny().encode([torch.zeros(3, 32, 32, dtype=torch.uint8)])
    objects = torch.zeros(2, 32, 32, dtype=torch.bool)
    objects[0, 4:8, 4:10] = objects[1, 20, 21] = True
    masks = fit_masks(objects, features)
    assert masks.nonzero().tolist() == [[0, 1, 1], [0, 1, 2], [1, 5, 5]]


def test_objects_that_cannot_start_a_stream_are_refused(tiny):
    model, frame = tiny().eval(), torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    full = torch.ones(7, 64, 96, dtype=torch.bool)
    with pytest.raises(ValueError, match="7 objects are given, the model has 6 slots"):
        next(model.stream(frame, objects=full))
    with pytest.raises(ValueError, match="no pixel on the first frame"):
        next(model.stream(frame, objects=~full))
    slots = next(model.stream(frame)).queries
    with pytest.raises(ValueError, match="not both"):
        next(model.stream(frame, slots, full[:1]))
