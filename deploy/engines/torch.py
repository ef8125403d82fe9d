"""Run modules with torch itself: eagerly, compiled, or replayed from a CUDA graph.

An engine wraps a module in memory; no file is read, for a file with a module would hold code. Importing this module
imports no torch; making an engine does.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deploy.engines.base import Engine, TensorSpec, first_line
from deploy.engines.signature import Example, batched, call, named_inputs, named_outputs
from deploy.errors import DeployError, MissingDependency
from deploy.onnx.file import missing_package

if TYPE_CHECKING:
    from torch import Tensor, nn

Mode = Literal["eager", "compiled", "cuda_graphs"]
_PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class TorchEngine(Engine):
    """A copy of a module in evaluation mode, behind the contract of every engine.

    Args:
        module: from one tensor (N, ...) or several to a tensor, or a tuple or a dict of them; it is not changed.
        example: (N, ...), or several inputs, as ``export_onnx`` takes them; the shape without N is what the engine
            accepts. Numbers with a point are float32, others keep their type.
        mode: ``eager``, ``compiled`` (by ``torch.compile``) or ``cuda_graphs`` (one captured graph per batch size).
        precision: of weights and arithmetic: ``fp32``, ``fp16`` or ``bf16``. Inputs and outputs are float32.
        device: ``cpu`` or ``cuda``.
        backend: the compiler behind ``compiled``.
        outputs: names of the outputs, in order; by default as ``export_onnx`` names them.

    Raises:
        DeployError: the mode, precision, device or module cannot be used.
        MissingDependency: torch is not installed, or CUDA is asked for and there is no GPU.
    """

    runtime = "torch"

    def __init__(
        self,
        module: nn.Module,
        example: Example,
        *,
        mode: Mode = "eager",
        precision: str = "fp32",
        device: str = "cpu",
        backend: str = "inductor",
        outputs: tuple[str, ...] | None = None,
    ) -> None:
        try:
            import torch
        except ImportError as error:
            raise missing_package("torch", "Running a module", "compress") from error
        if precision not in _PRECISIONS:
            raise DeployError(f"The precision is {precision!r}; choose one of {', '.join(_PRECISIONS)}.")
        if mode not in ("eager", "compiled", "cuda_graphs"):
            raise DeployError(f"The mode is {mode!r}; choose eager, compiled or cuda_graphs.")
        wanted = torch.device(device)
        if wanted.type == "cuda" and not torch.cuda.is_available():
            raise MissingDependency("torch finds no NVIDIA GPU here; give device='cpu'.")
        if mode == "cuda_graphs" and wanted.type != "cuda":
            raise DeployError(f"CUDA graphs need device='cuda', not {device!r}; choose the mode eager or compiled.")
        self.name = f"{type(module).__name__}.{precision}.{mode}"
        self.precision = precision
        given = {name: one.detach().cpu() for name, one in named_inputs(module, example).items()}
        given = {name: one.float() if one.is_floating_point() else one for name, one in given.items()}
        has_batch = batched(given)
        self.inputs = {name: _spec(one, free=has_batch[name]) for name, one in given.items()}
        self._example = example if isinstance(example, Mapping) else list(given.values())
        self._device, self._dtype = wanted, getattr(torch, _PRECISIONS[precision])
        self._lock = threading.Lock()
        self._graphs: dict[tuple[tuple[int, ...], ...], Any] = {}
        self._module: nn.Module | None = copy.deepcopy(module).eval().to(wanted, self._dtype)
        self._graphed = mode == "cuda_graphs"
        self._call: Callable[..., Any] | None = self._module
        if mode == "compiled":
            # One program for all batch sizes, which differ from run to run.
            self._call = torch.compile(self._module, dynamic=True, backend=backend)
        # Two rows: torch.compile would take a batch of one for a constant.
        rows = {name: torch.cat([one[:1]] * 2) if has_batch[name] else one for name, one in given.items()}
        self._names = outputs
        first = self._named(self._forward(rows))
        self.outputs = {name: _spec(value, free=value.ndim > 0 and len(value) == 2) for name, value in first.items()}

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        with self._lock:
            rows = {name: torch.from_numpy(np.array(feeds[name], order="C")) for name in self.inputs}
            values = self._named(self._forward(rows))
            # A captured graph writes to the same memory each time, and eager may give back its input.
            return {name: np.array(_plain(value).cpu().numpy(), copy=True) for name, value in values.items()}

    def close(self) -> None:
        with self._lock:
            self._module = self._call = None
            self._graphs.clear()

    def _forward(self, rows: Mapping[str, Tensor]) -> Any:
        import torch

        if self._call is None:
            raise DeployError(f"{self.name} is closed; make it again before running it.")
        with torch.no_grad():
            feeds = [one.to(self._device, self._dtype if one.is_floating_point() else None) for one in rows.values()]
            try:
                return self._replay(feeds) if self._graphed else call(self._call, self._example, feeds)
            except RuntimeError as error:
                raise DeployError(f"torch could not run {self.name} ({first_line(error)}).") from error

    def _replay(self, feeds: list[Tensor]) -> Any:
        """Run the graph of these shapes, capturing it on first use."""
        import torch

        shapes = tuple(tuple(feed.shape) for feed in feeds)
        if shapes not in self._graphs:
            static, graph = [feed.clone() for feed in feeds], torch.cuda.CUDAGraph()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # what libraries set up on their first calls cannot be captured
                for _ in range(3):
                    call(self._call, self._example, static)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                result = call(self._call, self._example, static)
            self._graphs[shapes] = (static, graph, result)
        static, graph, result = self._graphs[shapes]
        for place, feed in zip(static, feeds, strict=True):
            place.copy_(feed)
        graph.replay()
        return result

    def _named(self, result: Any) -> dict[str, Tensor]:
        assert self._module is not None
        return named_outputs(self._module, result, self._names)


def _plain(value: Tensor) -> Tensor:
    """Return float32 for numbers with a point, whole numbers as they are."""
    return value.float() if value.is_floating_point() else value


def _spec(value: Tensor, *, free: bool) -> TensorSpec:
    import torch

    kind = torch.float32 if value.is_floating_point() else value.dtype
    return TensorSpec(str(kind).removeprefix("torch."), (None, *value.shape[1:]) if free else tuple(value.shape))
