"""`l2g export`: one step of a stream as an ONNX file or a torch.export file."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..errors import UserError, make_folder
from ..files import atomic_path
from ..modeling.graph import StepGraph
from ..weights.download import megabytes
from .predict import L2G

#: Operators of the ONNX file, from 2022; TensorRT and OpenVINO read them.
OPSET = 18

#: Largest side of an exported frame in pixels.
_MAX_SIDE = 8192


def export(
    output: Path, weights: str, size: str, half: bool = False, overrides: Sequence[str] = ()
) -> Iterator[str]:
    """Exports the step of a model for frames of one size, and yields the lines of the report.

    Args:
        output: a .onnx file, or a .pt2 file for torch.export.
        weights: as for `find_weights`.
        size: height x width of the frames, such as "384x640".
        half: convolutions and linear layers in float16, except those whose results rank scores or locate boxes.
        overrides: config overrides of the model.

    Raises:
        UserError: if the model cannot be exported, or packages are missing.
    """
    if output.suffix not in (".onnx", ".pt2"):
        raise UserError(f"{output}: expected a .onnx or .pt2 file")
    height, width = _parse_size(size)
    if output.suffix == ".onnx":
        _require_packages()
    model = L2G.from_pretrained(weights, "cpu", overrides)
    graph = StepGraph(model._module, height, width)
    inputs = graph.initial
    about = {
        "classes": json.dumps([str(entry["name"]) for entry in model.classes]),
        "threshold": str(graph.model.threshold),
        "producer": f"local2global {__version__}",
    }
    make_folder(output.parent, "the path of the file")
    step = _InHalf(graph) if half and output.suffix == ".pt2" else graph
    with torch.no_grad(), _quiet():
        program = torch.export.export(step, tuple(inputs.values()), strict=False)
        with atomic_path(output) as partial:
            if output.suffix == ".pt2":
                program = program.run_decompositions({})  # regions of autocast cannot be loaded
                with partial.open("wb") as file:  # torch expects paths that end in .pt2
                    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(about)})
                with partial.open("rb") as file:
                    run = torch.export.load(file).module()
            else:
                _write_onnx(graph, program, partial, about, half)
                run = _session(partial)
            difference = _compare(graph, run)
    kind = "torch.export" if output.suffix == ".pt2" else f"ONNX, opset {OPSET}"
    yield f"{output}: {kind}, {megabytes(output.stat().st_size)}{', float16 layers' if half else ''}"
    yield f"  inputs  {', '.join(f'{name} {tuple(value.shape)}' for name, value in inputs.items())}"
    yield f"  outputs {', '.join(graph.outputs)}"
    yield f"  largest difference of a class score from torch on two frames of noise: {difference:.1e}"


class _InHalf(nn.Module):
    """A module under float16 autocast."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        device = inputs[0].device.type
        with torch.autocast(device, dtype=torch.float16):
            return self.module(*inputs)


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(32 <= side <= _MAX_SIDE for side in sides):
        raise UserError(
            f"--size {text}: expected HEIGHTxWIDTH in pixels, 32 to {_MAX_SIDE} each, such as 384x640"
        )
    return sides


def _require_packages() -> None:
    names = ("onnx", "onnxscript", "onnxruntime")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export needs {', '.join(missing)}: pip install 'local2global[export]'")


def _write_onnx(graph: StepGraph, program: Any, path: Path, about: dict[str, str], half: bool) -> None:
    import onnx

    exported = torch.onnx.export(
        program,
        dynamo=True,
        input_names=list(graph.initial),
        output_names=graph.outputs,
        opset_version=OPSET,
        verbose=False,
    )
    assert exported is not None
    model = exported.model_proto
    if half:
        model = _to_half(model)
    onnx.helper.set_model_props(model, about)
    onnx.save(model, str(path))


def _to_half(model: Any) -> Any:
    """The model with float16 convolutions and linear layers.

    The code's float32 regions lose the names of their layers during export: their nodes are named after the function,
    other nodes after a layer of torch.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    layers = {"Conv", "Gemm", "MatMul"}
    float32 = [
        node.name
        for node in model.graph.node
        if node.op_type in layers
        and "torch.nn.modules" not in _namespace(node).rpartition("/")[0].split("/")[-1]
    ]
    others = sorted({node.op_type for node in model.graph.node} - layers)
    return convert_float_to_float16(model, keep_io_types=True, op_block_list=others, node_block_list=float32)


def _namespace(node: Any) -> str:
    """The modules that a node comes from, outermost first, separated by slashes."""
    return next((entry.value for entry in node.metadata_props if entry.key == "namespace"), "")


def _session(path: Path) -> Any:
    """A function that runs an ONNX file on tensors."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        arrays = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, arrays)]

    return run


def _compare(graph: StepGraph, run: Any) -> float:
    """Largest difference of a class score on two frames of noise, each after the same slots."""
    generator, largest = torch.Generator().manual_seed(0), 0.0
    frame, first, *slots = graph.initial.values()
    for _ in range(2):
        frame = torch.randint(0, 256, frame.shape, dtype=torch.uint8, generator=generator)
        expected = graph(frame, first, *slots)
        found = run(frame, first, *slots)
        largest = max(largest, float((found[0].float() - expected[0]).abs().max()))
        first, slots = torch.zeros_like(first), list(expected[2:])
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's notes about torchvision and its own deprecations."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for name in names:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
