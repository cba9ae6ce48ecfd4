"""The Triton kernel against the bags: in Triton's interpreter, or on a GPU if there is one."""

from __future__ import annotations

import logging

import pytest
import torch
from torch._subclasses.fake_tensor import is_fake
from torch.fx.experimental.proxy_tensor import make_fx

from local2global.modeling import ops
from local2global.modeling.ops.bags import sample_bags

pytest.importorskip("triton", reason="no Triton here: the kernel is not tested")

from local2global.modeling.ops import triton_kernel

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = ((5, 7), (3, 4), (1, 2))


def inputs(batch=2, queries=7, heads=3, depth=5, shapes=SHAPES, points=3, dtype=torch.float32):
    """Odd sizes; some locations beyond every edge."""
    tokens, places = sum(h * w for h, w in shapes), (batch, queries, heads, len(shapes), points)
    wide = torch.promote_types(dtype, torch.float32)
    given = [torch.randn(batch, tokens, heads, depth, dtype=wide).to(dtype)]
    given += [torch.rand(places, dtype=wide) * 1.6 - 0.3 for _ in "xy"]
    given += [torch.rand(places, dtype=wide)]
    return [tensor.to(DEVICE).requires_grad_() for tensor in given]


def kernel(*given, shapes=SHAPES):
    return triton_kernel.sample(*given, ops.level_table(shapes, given[1]))


def bags(values, *points, shapes=SHAPES):
    return sample_bags(values, shapes, *points)


def compared(given, shapes=SHAPES, tolerance=1e-5):
    found = []
    for function in (kernel, bags):
        out = function(*given, shapes=shapes)
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        found.append((out, *torch.autograd.grad(out, given, cotangent)))
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        scale = max(1, other.abs().max().item()) if other.numel() else 1
        torch.testing.assert_close(one.float(), other.float(), atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize(("queries", "heads", "depth"), [(1, 1, 1), (4, 3, 5), (5, 2, 8)])
def test_sum_and_gradients_are_those_of_the_bags(heads, depth, queries):
    """Full and partial blocks of queries and of channels."""
    compared(inputs(heads=heads, depth=depth, queries=queries))


@pytest.mark.parametrize("side", [(1, 4), (3, 1), (1, 1)])
def test_maps_of_one_row_or_column(side):
    compared(inputs(shapes=(side, (2, 3))), shapes=(side, (2, 3)))


def test_many_queries_use_larger_blocks(monkeypatch):
    monkeypatch.setattr(triton_kernel, "BUSY", 1)
    compared(inputs(queries=21, heads=1, points=1))


@pytest.mark.parametrize("missing", ["queries", "batch"])
def test_empty_inputs_give_empty_outputs(missing):
    given = inputs(**{missing: 0})
    out = kernel(*given)
    assert out.numel() == 0
    assert all(not g.any() for g in torch.autograd.grad(out.sum(), given))


@torch.no_grad()
def test_a_traced_step_contains_the_kernel_as_one_operator():
    """A tracer records the operator, not the interpreter's steps."""
    given = [one.detach() for one in inputs()]
    traced = make_fx(torch.func.functionalize(lambda *four: kernel(*four)))(*given)
    assert [str(n.target) for n in traced.graph.nodes].count("local2global.sample.default") == 1
    torch.testing.assert_close(traced(*given), kernel(*given))


def test_bfloat16_values_are_summed_in_float32():
    """Only inputs and outputs are rounded to bfloat16."""
    compared(inputs(dtype=torch.bfloat16, queries=3, points=8), tolerance=2**-7)


def test_bfloat16_weights_and_strided_locations():
    values, x, y, weights = inputs(depth=8)
    places = torch.stack((x, y), dim=-1).detach().requires_grad_()
    out = kernel(values, places[..., 0], places[..., 1], weights.bfloat16())
    torch.testing.assert_close(out, bags(values, x, y, weights.bfloat16().float()), atol=1e-5, rtol=1e-5)
    out.sum().backward()
    assert places.grad.any()


@pytest.mark.parametrize("far", [1e6, -1e30, float("inf")])
def test_locations_far_outside_read_zero(far):
    values, x, y, weights = inputs()
    with torch.no_grad():
        x[:, 0], y[:, 1] = far, far
        out = kernel(values, x, y, weights)
        assert not out[:, :2].any()
        torch.testing.assert_close(out, bags(values, x, y, weights))


def test_nan_locations_give_nan_and_read_no_memory_outside_the_map():
    values, x, y, weights = inputs()
    with torch.no_grad():
        x[0, 3], y[1, 2] = torch.nan, torch.nan
        out = kernel(values, x, y, weights)
        assert torch.equal(out.isnan(), bags(values, x, y, weights).isnan())


def test_gradients_at_pixel_centres_equal_the_bags():
    """At pixel centres, where a new model samples, and one pixel beyond the edges."""
    height, width = 3, 4
    y, x = torch.meshgrid(
        (torch.arange(-3, 2 * height + 5) / 2 + 0.5) / height,
        (torch.arange(-3, 2 * width + 5) / 2 + 0.5) / width,
        indexing="ij",
    )
    x, y = (axis.reshape(1, -1, 1, 1, 1).clone().to(DEVICE).requires_grad_() for axis in (x, y))
    values = torch.randn(1, height * width, 1, 2, device=DEVICE, requires_grad=True)
    compared([values, x, y, torch.rand_like(x).requires_grad_()], ((height, width),), 1e-4)


def test_gradcheck():
    shapes = ((2, 3),)
    given = inputs(1, 1, 2, 2, shapes, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda *a: kernel(*a, shapes=shapes), given, atol=1e-6, fast_mode=True)


def test_torch_opcheck(monkeypatch):
    """Schema, autograd registration and fake tensors; the interpreter cannot run fake tensors."""
    launch = triton_kernel._launch

    def only_real(kernel, values, x, given):
        if DEVICE.type == "cuda" or not is_fake(torch.utils._pytree.tree_leaves(values)[0]):
            launch(kernel, values, x, given)

    monkeypatch.setattr(triton_kernel, "_launch", only_real)
    given = (*inputs(batch=1, queries=2), ops.level_table(SHAPES, torch.zeros((), device=DEVICE)))
    torch.library.opcheck(
        triton_kernel.sample,
        given,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_the_check_accepts_the_kernel():
    assert ops.checked_kernel(DEVICE, torch.float32) is triton_kernel.sample
    assert ops.checked_kernel(DEVICE, torch.bfloat16) is triton_kernel.sample


def test_a_failing_or_wrong_kernel_is_disabled_with_one_warning(monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("no such instruction\non this device")

    right = triton_kernel.sample
    for wrong, reason in ((fails, "no such instruction"), (lambda *a: right(*a) * 1.01, "relative error")):
        caplog.clear()
        monkeypatch.setattr(triton_kernel, "sample", wrong)
        with caplog.at_level(logging.WARNING):
            assert ops.checked_kernel(DEVICE, torch.float32) is None
        (record,) = caplog.records
        assert reason in record.getMessage()
        assert "on this device" not in record.getMessage()


def test_the_environment_disables_the_kernel(monkeypatch):
    monkeypatch.setenv("L2G_TRITON", "0")
    assert ops.checked_kernel(DEVICE, torch.float32) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [100, 6885])
def test_on_a_gpu_at_the_models_size(dtype, queries):
    """One encoder layer and one decoder layer at 480x864; and `deformable_sample` chooses the kernel."""
    shapes = ((8, 14), (15, 27), (30, 54), (60, 108))
    given = inputs(1, queries, 8, 32, shapes, 4, dtype)
    on_cpu = [tensor.detach().float().cpu().requires_grad_() for tensor in given]
    ours, theirs = ops.deformable_sample(*given[:1], shapes, *given[1:]), bags(*on_cpu, shapes=shapes)
    assert ops._gpu_kernel(given[0]) is triton_kernel.sample
    cotangent = torch.randn(theirs.shape)
    found = (ours, *torch.autograd.grad(ours, given, cotangent.to(ours)))
    wanted = (theirs, *torch.autograd.grad(theirs, on_cpu, cotangent.to(ours).float().cpu()))
    for one, other in zip(found, wanted, strict=True):
        limit = 2e-2 if dtype == torch.bfloat16 else 1e-4
        assert (one.float().cpu() - other).abs().max() <= limit * other.abs().max()
