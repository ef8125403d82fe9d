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
from deploy.errors import DeployError, MissingDependency
from deploy.onnx.file import missing_package

if TYPE_CHECKING:
    from torch import Tensor, nn

Mode = Literal["eager", "compiled", "cuda_graphs"]
_PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class TorchEngine(Engine):
    """A copy of a module in evaluation mode, behind the contract of every engine.

    Args:
        module: from one tensor (N, ...) to one tensor or a tuple of them; it is not changed.
        example: (N, ...) float32; its shape without N is what the engine accepts.
        mode: ``eager``, ``compiled`` (by ``torch.compile``) or ``cuda_graphs`` (one captured graph per batch size).
        precision: of weights and arithmetic: ``fp32``, ``fp16`` or ``bf16``. Inputs and outputs are float32.
        device: ``cpu`` or ``cuda``.
        backend: the compiler behind ``compiled``.
        outputs: names of the outputs, in order.

    Raises:
        DeployError: the mode, precision, device or module cannot be used.
        MissingDependency: torch is not installed, or CUDA is asked for and there is no GPU.
    """

    runtime = "torch"

    def __init__(
        self,
        module: nn.Module,
        example: Tensor,
        *,
        mode: Mode = "eager",
        precision: str = "fp32",
        device: str = "cpu",
        backend: str = "inductor",
        outputs: tuple[str, ...] = ("logits",),
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
        self.inputs = {"image": TensorSpec("float32", (None, *example.shape[1:]))}
        self._device, self._dtype = wanted, getattr(torch, _PRECISIONS[precision])
        self._lock = threading.Lock()
        self._graphs: dict[int, Any] = {}
        self._module: nn.Module | None = copy.deepcopy(module).eval().to(wanted, self._dtype)
        self._graphed = mode == "cuda_graphs"
        self._call: Callable[..., Any] | None = self._module
        if mode == "compiled":
            # One program for all batch sizes, which differ from run to run.
            self._call = torch.compile(self._module, dynamic=True, backend=backend)
        # Two rows: torch.compile would take a batch of one for a constant.
        first = self._as_tuple(self._forward(torch.cat([example.detach().cpu().float()[:1]] * 2)))
        if len(first) != len(outputs):
            raise DeployError(f"{self.name} gives {len(first)} tensors but {len(outputs)} names: {outputs}.")
        self.outputs = {
            name: TensorSpec("float32", (None, *value.shape[1:])) for name, value in zip(outputs, first, strict=True)
        }

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        with self._lock:
            values = self._as_tuple(self._forward(torch.from_numpy(np.ascontiguousarray(feeds["image"]))))
            # A captured graph writes to the same memory each time, and eager may give back its input.
            return {
                name: np.array(value.float().cpu().numpy(), copy=True)
                for name, value in zip(self.outputs, values, strict=True)
            }

    def close(self) -> None:
        with self._lock:
            self._module = self._call = None
            self._graphs.clear()

    def _forward(self, rows: Tensor) -> Any:
        import torch

        if self._call is None:
            raise DeployError(f"{self.name} is closed; make it again before running it.")
        with torch.inference_mode():
            feed = rows.to(self._device, self._dtype)
            try:
                return self._replay(feed) if self._graphed else self._call(feed)
            except RuntimeError as error:
                raise DeployError(f"torch could not run {self.name} ({first_line(error)}).") from error

    def _replay(self, feed: Tensor) -> Any:
        """Run the graph of this batch size, capturing it on first use."""
        import torch

        if len(feed) not in self._graphs:
            static, graph = feed.clone(), torch.cuda.CUDAGraph()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # what libraries set up on their first calls cannot be captured
                for _ in range(3):
                    self._call(static)  # type: ignore[misc]
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                result = self._call(static)  # type: ignore[misc]
            self._graphs[len(feed)] = (static, graph, result)
        static, graph, result = self._graphs[len(feed)]
        static.copy_(feed)
        graph.replay()
        return result

    @staticmethod
    def _as_tuple(values: Any) -> tuple[Tensor, ...]:
        return tuple(values) if isinstance(values, tuple | list) else (values,)
