"""Run ONNX files with ONNX Runtime: on the CPU, and with CUDA or TensorRT where it was built with them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deploy.engines.base import Engine, TensorSpec, check_threads, first_line, precision_of
from deploy.engines.onnxruntime.amx_rewrite import has_amx, shift_weights, space_to_depth
from deploy.engines.unreported import unreported
from deploy.errors import DeployError, MissingDependency
from deploy.onnx.opsets import too_new
from deploy.onnx.wire import check_qdq, has_fp16_constants, read_model

_PROVIDERS = {
    "onnxruntime": "CPUExecutionProvider",
    "onnxruntime_cuda": "CUDAExecutionProvider",
    "onnxruntime_tensorrt": "TensorrtExecutionProvider",
}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class OnnxRuntimeEngine(Engine):
    """An ONNX file on one of ONNX Runtime's providers, with every graph optimisation on.

    Args:
        path: an ONNX file.
        threads: how many threads one run may use on the CPU; 0 takes as many as cores may be used.
        runtime: ``onnxruntime`` (the CPU), ``onnxruntime_cuda`` or ``onnxruntime_tensorrt``.
        sha256: the hash that the file must have.
        profile: where ONNX Runtime writes its profile of every run, as the beginning of a path; by default nowhere.

    Raises:
        DeployError: the file is missing, is not an ONNX model, uses an operator the runtime lacks, or is
            quantised in a way that TensorRT would misread.
        MissingDependency: ONNX Runtime is not installed, this build of it has no such provider, or the provider
            finds no GPU.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        runtime: str = "onnxruntime",
        sha256: str | None = None,
        profile: Path | None = None,
    ) -> None:
        try:
            with unreported():
                import onnxruntime as ort
        except ImportError as error:
            raise MissingDependency(
                "The package onnxruntime cannot be imported here; get it with `pip install onnxruntime`."
            ) from error
        threads = check_threads(threads)
        data, wire = read_model(path, sha256)
        provider = _PROVIDERS[runtime]
        if provider not in ort.get_available_providers():
            raise MissingDependency(
                f"ONNX Runtime {ort.__version__} here has no {provider} (it has "
                f"{', '.join(ort.get_available_providers())}); replace it with the package onnxruntime-gpu."
            )
        if runtime == "onnxruntime_tensorrt":
            check_qdq(path, wire)
        self.runtime = runtime
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4  # errors are raised anyway
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        # Tensors in another file are found from the path alone, so such a file runs as it is.
        fixed = bool(wire.outside)
        model, disabled, self.kernels = _rewrite(data, fixed=fixed) if runtime == "onnxruntime" else (data, [], None)
        given = str(path) if fixed else model
        try:
            session = ort.InferenceSession(given, options, providers=[provider], disabled_optimizers=disabled)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            said = too_new(str(error), path) or f"cannot load {path} ({first_line(error)}); export it again."
            raise DeployError(f"ONNX Runtime {ort.__version__} {said}") from error
        # A provider that finds no GPU leaves the network to the CPU with no more than a line in the log.
        if session.get_providers()[0] != provider:
            raise MissingDependency(
                f"ONNX Runtime's {provider} cannot start here (no usable GPU or CUDA library); "
                "load the file with the runtime onnxruntime instead."
            )
        self.name = path.name.removesuffix(".onnx")
        self.path = path
        try:
            self.precision = precision_of(path, data, session.get_modelmeta().custom_metadata_map)
            self.inputs = {node.name: _spec(node.type, node.shape) for node in session.get_inputs()}
            self.outputs = {node.name: _spec(node.type, node.shape) for node in session.get_outputs()}
        except UnicodeDecodeError as error:
            raise DeployError(f"{path} has names or properties that are not UTF-8; export it again.") from error
        self._session: ort.InferenceSession | None = session

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = self._session
        if session is None:
            raise DeployError(f"{self.name} is closed; load it again before running it.")
        names = list(self.outputs)
        try:
            values = session.run(names, dict(feeds))
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise DeployError(f"ONNX Runtime could not run {self.name} ({first_line(error)}).") from error
        return dict(zip(names, values, strict=True))

    def end_profile(self) -> Path:
        """Stop profiling and return the file that ONNX Runtime wrote, one event for each node of each run."""
        if self._session is None:
            raise DeployError(f"{self.name} is closed; load it again before running it.")
        return Path(self._session.end_profiling())

    def run_apart(self, feeds: Mapping[str, np.ndarray]) -> tuple[float, float, float] | None:
        """Run once on a GPU and return the milliseconds of copying in, of the network and of copying out.

        None on the CPU, where nothing is copied.

        Raises:
            DeployError: the feeds do not fit, or the engine is closed.
        """
        if self.runtime == "onnxruntime":
            return None
        self._check(feeds)
        return self._apart(feeds, "cuda")

    def _apart(self, feeds: Mapping[str, np.ndarray], device: str) -> tuple[float, float, float]:
        import onnxruntime as ort

        if self._session is None:
            raise DeployError(f"{self.name} is closed; load it again before running it.")
        binding = self._session.io_binding()
        # Memory is taken before the clock runs, as an engine that runs again and again has it already.
        held = {name: ort.OrtValue.ortvalue_from_numpy(array, device, 0) for name, array in feeds.items()}
        marks = [time.perf_counter()]
        for name, array in feeds.items():
            held[name].update_inplace(np.ascontiguousarray(array))
            binding.bind_ortvalue_input(name, held[name])
        binding.synchronize_inputs()
        for name in self.outputs:
            binding.bind_output(name, device)
        marks.append(time.perf_counter())
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise DeployError(f"ONNX Runtime cannot run {self.name} ({first_line(error)}).") from error
        binding.synchronize_outputs()
        marks.append(time.perf_counter())
        binding.copy_outputs_to_cpu()
        marks.append(time.perf_counter())
        copied_in, ran, copied_out = (1e3 * (end - start) for start, end in itertools.pairwise(marks))
        return copied_in, ran, copied_out

    def close(self) -> None:
        self._session = None


def load(path: Path, *, threads: int = 1, sha256: str | None = None) -> OnnxRuntimeEngine:
    """Load ``path`` with ONNX Runtime on the CPU; see ``OnnxRuntimeEngine``."""
    return OnnxRuntimeEngine(path, threads=threads, sha256=sha256)


def load_cuda(path: Path, *, threads: int = 1, sha256: str | None = None) -> OnnxRuntimeEngine:
    """Load ``path`` with ONNX Runtime's CUDA provider; see ``OnnxRuntimeEngine``."""
    return OnnxRuntimeEngine(path, threads=threads, runtime="onnxruntime_cuda", sha256=sha256)


def load_tensorrt(path: Path, *, threads: int = 1, sha256: str | None = None) -> OnnxRuntimeEngine:
    """Load ``path`` with ONNX Runtime's TensorRT provider; see ``OnnxRuntimeEngine``."""
    return OnnxRuntimeEngine(path, threads=threads, runtime="onnxruntime_tensorrt", sha256=sha256)


def _rewrite(data: bytes, *, fixed: bool) -> tuple[bytes, list[str], str | None]:
    """Prepare the file ``data`` for the CPU provider.

    Args:
        data: an ONNX file.
        fixed: whether the file has to stay as it is.

    Returns:
        The file, or a faster one that computes the same; the names of the optimisers to disable; and
        what was done, in words.
    """
    faster = data
    done: list[str] = []
    if has_amx() and not fixed:
        for rewrite, effect in (
            (shift_weights, "long int8 convolutions by AMX"),
            (space_to_depth, "the first on 2 x 2 pixels"),
        ):
            if (changed := rewrite(faster)) is not None:
                faster, done = changed, [*done, effect]
    disabled: list[str] = []
    if has_fp16_constants(data):
        # ONNX Runtime 1.31 fuses a transpose and an fp16 product into a node that it has no kernel for, and aborts.
        disabled.append("MatmulTransposeFusion")
        done.append("no MatmulTransposeFusion, which fp16 does not survive")
    return faster, disabled, ", ".join(done) or None


def _spec(kind: str, shape: list[int | str | None]) -> TensorSpec:
    if kind not in _DTYPES:
        raise DeployError(f"The model has an input or output of type {kind}; export it with one of {sorted(_DTYPES)}.")
    return TensorSpec(_DTYPES[kind], tuple(d if isinstance(d, int) else None for d in shape))
