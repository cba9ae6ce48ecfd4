"""A stream's step, recorded for one size of frame: on a GPU a CUDA graph, a thousand small kernels in one launch.

The step is traced into a list of operators.  What depends on weights and sizes alone (folded norms, weights in half
precision, position embeddings) is computed while it is recorded and kept; the rest is captured, and replayed for every
frame.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

#: Tensors to tensors; no input is written to.
Step = Callable[..., Sequence[Tensor]]

#: Sizes of frames whose recordings are kept: each holds memory for one frame's step.
SIZES_KEPT = 4
WARM_UPS = (
    3  # on a stream of their own, before a capture: libraries choose and allocate when they are first called
)


class Replay(Protocol):
    """What a step became: `outputs` hold its results for what `inputs` hold, once it is called."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]

    def __call__(self) -> None:
        """Overwrites the outputs."""


class CudaGraph:
    """A step captured on the inputs' device."""

    def __init__(self, step: Step, inputs: Sequence[Tensor]) -> None:
        self.inputs = inputs
        with torch.cuda.device(inputs[0].device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    step(*inputs)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            # Of this thread alone: others, which decode or write masks, may go on using the device.  On this device's
            # stream: torch's own is one for the whole process, of the device that captured first.
            with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
                self.outputs = step(*inputs)

    def __call__(self) -> None:
        """Enqueues the whole step."""
        self._graph.replay()


@dataclass(frozen=True)
class _Recording:
    """A replay, and the step that it is of: a CUDA graph reads what was computed ahead, but does not keep it alive."""

    replay: Replay
    step: Step


class Recorder:
    """Calls a step, recording it anew for every size, type and precision of its inputs, and when weights change.

    Weights may be written to in place or be loaded into.  A module or a weight that is exchanged, as
    `load_state_dict(..., assign=True)` does, is not noticed.

    Args:
        fuse: have `torch.compile` fuse what is recorded: fewer kernels, after a minute or more.
        capture: makes a replay of a step.
    """

    def __init__(
        self, fuse: bool = True, capture: Callable[[Step, Sequence[Tensor]], Replay] = CudaGraph
    ) -> None:
        self.fuse, self.capture = fuse, capture
        self._kept: OrderedDict[Any, _Recording] = OrderedDict()
        self._weights: list[Tensor] = []
        self._state: Any = None

    def __reduce__(self) -> Any:
        """A copy begins without recordings, which belong to the weights of this one."""
        return type(self), (self.fuse, self.capture)

    def __call__(self, module: nn.Module, step: Step, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The step's results, the caller's own; without gradients.

        Args:
            module: whose weights the step reads.
            step: traceable: no output's shape depends on a value, and nothing asks for one.
            inputs: all of them; the first says where the step runs.
        """
        place = inputs[0].device
        half = torch.get_autocast_dtype(place.type) if torch.is_autocast_enabled(place.type) else None
        key = (half, *((one.shape, one.dtype) for one in inputs))
        if self._state is None or self._state != _state(self._weights):
            self._kept.clear()
            self._weights = [*module.parameters(), *module.buffers()]
            self._state = _state(self._weights)
        kept = self._kept.pop(key, None)
        if kept is None:
            while len(self._kept) >= SIZES_KEPT:
                self._kept.popitem(last=False)
            kept = self._record(step, inputs)
        self._kept[key] = kept
        replay = kept.replay
        for own, given in zip(replay.inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        replay()
        return tuple(one.clone() for one in replay.outputs)  # the next frame overwrites them

    def _record(self, step: Step, inputs: Sequence[Tensor]) -> _Recording:
        with torch.inference_mode(False), torch.no_grad():
            own = [torch.empty_like(one).copy_(one) for one in inputs]
            step(*own)  # what is decided at a first call, as which kernel to trust, is decided now
            pure = torch.func.functionalize(lambda *given: step(*given))
            traced = make_fx(pure)(*own)
            # autocast has been at work while tracing
            with torch.autocast(own[0].device.type, enabled=False):
                rest: Any = known_ahead(traced)
                rest = torch.compile(rest, dynamic=False) if self.fuse else rest
                return _Recording(self.capture(rest, own), rest)


def known_ahead(traced: GraphModule) -> GraphModule:
    """Computes what depends on no input.

    Args:
        traced: without operators that write to their inputs.

    Returns:
        The rest, which reads what is kept.
    """
    known: dict[Node, Any] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            known[node] = getattr(traced, str(node.target))
        elif node.op == "call_function" and all(given in known for given in node.all_input_nodes):
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    for number, (node, value) in enumerate(known.items()):
        if node.op != "get_attr" and any(user not in known for user in node.users):
            traced.register_buffer(f"known_{number}", value, persistent=False)
            with traced.graph.inserting_before(node):
                node.replace_all_uses_with(traced.graph.get_attr(f"known_{number}"))
    traced.graph.eliminate_dead_code()
    return GraphModule(traced, traced.graph)  # without the attributes that nothing reads any more


def _state(weights: Sequence[Tensor]) -> list[tuple[int, int]]:
    """A tensor's version counts what is written into it, its address changes where it is moved."""
    return [(one.data_ptr(), -1 if one.is_inference() else one._version) for one in weights]
