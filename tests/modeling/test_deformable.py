"""Deformable attention and its fast sums against the `grid_sample` definition."""

import pytest
import torch

from local2global.modeling import deformable
from local2global.modeling.deformable import DeformableAttention, sample_definition
from local2global.modeling.ops import blocks, deformable_sample

SHAPES = [(5, 7), (3, 4), (1, 2)]
TOKENS = sum(h * w for h, w in SHAPES)


def attend_by_grid(module, query, references, value, shapes, padding=None):
    """`DeformableAttention.forward`, written from Zhu et al., Eq. 3, and section A.3 for boxes."""
    heads, levels, points = module.num_heads, module.num_levels, module.num_points
    values = module.value_proj(value)
    if padding is not None:
        values = values * (~padding)[..., None]
    offsets = module.sampling_offsets(query).unflatten(-1, (heads, levels, points, 2))
    weights = module.attention_weights(query).unflatten(-1, (heads, levels * points)).softmax(-1)
    if references.shape[-1] == 2:
        size = torch.tensor([(w, h) for h, w in shapes], dtype=query.dtype)
        locations = references[:, :, None, :, None] + offsets / size[:, None]
    else:
        box = references[:, :, None, :, None]
        locations = box[..., :2] + offsets / points * box[..., 2:] / 2
    values = values.unflatten(-1, (heads, -1))
    return module.output_proj(
        sample_definition(values, shapes, *locations.unbind(-1), weights.unflatten(-1, (levels, points)))
    )


@pytest.fixture
def attention(stirred):
    return stirred(DeformableAttention(8, 2, 3, 4), 0.4)


def inputs(coordinates, batch=2, queries=6):
    query = torch.randn(batch, queries, 8)
    references = torch.rand(batch, queries, 3, coordinates) * 1.6 - 0.3
    value = torch.randn(batch, TOKENS, 8)
    return [x.requires_grad_() for x in (query, references, value)]


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_grid_sample_forward_and_backward(attention, coordinates, padded):
    """References reach beyond the frame on every side."""
    padding = torch.rand(2, TOKENS) < 0.4 if padded else None
    one, other = inputs(coordinates), None
    other = [x.detach().clone().requires_grad_() for x in one]
    ours, theirs = attention(*one, SHAPES, padding), attend_by_grid(attention, *other, SHAPES, padding)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)
    weight = torch.randn_like(ours)
    of_ours = torch.autograd.grad((ours * weight).sum(), [*one, *attention.parameters()])
    of_theirs = torch.autograd.grad((theirs * weight).sum(), [*other, *attention.parameters()])
    for a, b in zip(of_ours, of_theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * max(1, b.abs().max().item()), rtol=0)


def test_points_far_outside_read_zero(attention):
    query, _, value = inputs(2)
    out = attention(query, torch.full((2, 6, 3, 2), 1e6), value, SHAPES)
    torch.testing.assert_close(out, attention.output_proj.bias.expand(2, 6, 8))


def test_a_point_at_a_pixel_centre_reads_that_pixel():
    """Level 0 is 2 x 3; (x, y) = (2.5 / 3, 1.5 / 2) is row 1, column 2: token 5."""
    values = torch.arange(6.0).view(1, 6, 1, 1)
    x, y = torch.full((1, 1, 1, 1, 1), 2.5 / 3), torch.full((1, 1, 1, 1, 1), 1.5 / 2)
    torch.testing.assert_close(
        deformable_sample(values, [(2, 3)], x, y, torch.ones_like(x)), torch.tensor([[[5.0]]])
    )


def test_the_corner_of_a_map_reads_a_quarter_of_its_pixel():
    values = torch.tensor([8.0, 1, 1, 1, 1, 1]).view(1, 6, 1, 1)
    corner = torch.zeros(1, 1, 1, 1, 1)
    assert deformable_sample(values, [(2, 3)], corner, corner, torch.ones_like(corner)).item() == 2.0


def test_padded_tokens_are_not_read(attention):
    padding = torch.rand(2, TOKENS) < 0.4
    query, references, value = inputs(4)
    noisy = value + padding[..., None] * 1e4
    torch.testing.assert_close(
        attention(query, references, noisy, SHAPES, padding),
        attention(query, references, value, SHAPES, padding),
    )


def test_a_level_reads_its_own_tokens_only():
    """With weights on one level only, tokens of other levels have no effect."""
    values = torch.randn(1, TOKENS, 1, 2)
    x, y = torch.rand(1, 4, 1, 3, 2), torch.rand(1, 4, 1, 3, 2)
    weights = torch.zeros(1, 4, 1, 3, 2)
    weights[:, :, :, 1] = 0.5
    changed = values.clone()
    changed[:, :35] = 99
    changed[:, 47:] = 99
    torch.testing.assert_close(
        deformable_sample(changed, SHAPES, x, y, weights), deformable_sample(values, SHAPES, x, y, weights)
    )


def test_gradcheck_in_float64():
    generator = torch.Generator().manual_seed(3)
    shapes = [(3, 4), (1, 4)]

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    values = (rand(2, 16, 2, 3) - 0.5).requires_grad_()
    x, y = ((rand(2, 3, 2, 2, 2) * 1.4 - 0.2).requires_grad_() for _ in "xy")
    weights = rand(2, 3, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, a, b, w: deformable_sample(v, shapes, a, b, w), (values, x, y, weights), atol=1e-6
    )


@pytest.mark.parametrize("frozen", ["values", "places"])
def test_only_required_gradients_are_computed(frozen):
    values, weights = torch.randn(1, TOKENS, 1, 2), torch.rand(1, 3, 1, 3, 2)
    x, y = torch.rand(1, 3, 1, 3, 2), torch.rand(1, 3, 1, 3, 2)
    asked = [x, y, weights] if frozen == "values" else [values]
    for tensor in asked:
        tensor.requires_grad_()
    deformable_sample(values, SHAPES, x, y, weights).sum().backward()
    given = [values, x, y, weights]
    assert [tensor.grad is not None for tensor in given] == [
        any(tensor is a for a in asked) for tensor in given
    ]


@pytest.mark.parametrize("side", [(3, 4), (1, 4), (3, 1), (1, 1)])
def test_gradients_at_pixel_centres_and_beyond_edges_equal_grid_samples(side):
    """Bilinear weights have a kink there, and a new model samples exactly there."""
    height, width = side
    y, x = torch.meshgrid(
        (torch.arange(-3, 2 * height + 5) / 2 + 0.5) / height,
        (torch.arange(-3, 2 * width + 5) / 2 + 0.5) / width,
        indexing="ij",
    )
    x, y = (axis.reshape(1, -1, 1, 1, 1).clone().requires_grad_() for axis in (x, y))
    values = torch.randn(1, height * width, 1, 2, requires_grad=True)
    weights = torch.rand(x.shape).requires_grad_()
    cotangent = torch.randn(1, x.shape[1], 2)
    ours = deformable_sample(values, [side], x, y, weights)
    theirs = sample_definition(values, [side], x, y, weights)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    given = (values, x, y, weights)
    for one, other in zip(
        torch.autograd.grad(ours, given, cotangent),
        torch.autograd.grad(theirs, given, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_blocks_of_queries_give_the_same_sum(monkeypatch):
    """Without gradients, a CPU computes the queries in blocks."""
    monkeypatch.setattr(blocks, "BLOCK", 3)
    values, weights = torch.randn(2, TOKENS, 2, 4), torch.rand(2, 7, 2, 3, 2)
    x, y = torch.rand(2, 7, 2, 3, 2), torch.rand(2, 7, 2, 3, 2)
    expected = sample_definition(values, SHAPES, x, y, weights)
    with torch.no_grad():
        torch.testing.assert_close(
            deformable_sample(values, SHAPES, x, y, weights), expected, atol=1e-5, rtol=1e-5
        )


def test_nan_locations_give_nan_and_read_no_memory_outside_the_table():
    values, place = torch.ones(1, 6, 1, 1), torch.full((1, 1, 1, 1, 1), torch.nan)
    assert deformable_sample(values, [(2, 3)], place, place, torch.ones_like(place)).isnan().all()


def test_locations_are_float32_under_autocast(attention, monkeypatch):
    """Locations and attention weights are float32 under autocast; only the values are rounded."""
    seen = []

    def spy(values, shapes, x, y, weights):
        seen.append((x, y, values.dtype))
        return deformable_sample(values, shapes, x, y, weights)

    monkeypatch.setattr(deformable, "deformable_sample", spy)
    query, references, value = inputs(4)
    full = attention(query, references, value, SHAPES)
    with torch.autocast("cpu", torch.bfloat16):
        half = attention(query, references, value, SHAPES)
    (x, y, dtype), (half_x, half_y, half_dtype) = seen
    assert (dtype, half_dtype) == (torch.float32, torch.bfloat16)
    assert half_x.dtype == half_y.dtype == torch.float32
    assert torch.equal(x, half_x)
    assert torch.equal(y, half_y)
    torch.testing.assert_close(half.float(), full, atol=0.05, rtol=0.05)
    half.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in attention.parameters())


def test_initial_offsets_point_in_all_directions():
    """Point p of head h of 4 starts p + 1 pixels away: right, down, left, up."""
    module = DeformableAttention(8, 4, 2, 3)
    bias = module.sampling_offsets.bias.detach().view(4, 2, 3, 2)
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    expected = directions[:, None, None] * torch.tensor([1.0, 2, 3]).view(1, 1, 3, 1).expand(1, 2, 3, 1)
    torch.testing.assert_close(bias, expected, atol=1e-5, rtol=0)
    assert not module.sampling_offsets.weight.any()
    assert not module.attention_weights.weight.any()


def test_a_width_not_divisible_by_the_heads_raises():
    with pytest.raises(ValueError, match="10 is not divisible by num_heads 4"):
        DeformableAttention(10, 4)
