"""What a network can be run by, each as a call from a tensor on the device to a float32 tensor there.

`prepare` makes a contender, or raises `Skip` with one sentence about why it is not here. What a machine may lack is
imported when its contender is made.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

Call = Callable[[torch.Tensor], torch.Tensor]
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Skip(Exception):  # noqa: N818
    """Why a contender does not run here."""


@dataclass(frozen=True)
class Contender:
    """A way to run a network: `runtime` in `precision`."""

    runtime: str
    precision: str

    def __str__(self):
        return f"{self.runtime} {self.precision}"


# In the order of what a reader misses most, for the time may end before the list does; the first is the reference.
CONTENDERS = tuple(
    Contender(runtime, precision)
    for runtime, precision in (
        ("torch eager", "fp32"),
        ("torch eager", "fp16"),
        ("torch CUDA graph", "fp16"),
        ("onnxruntime CUDA", "fp32"),
        ("onnxruntime CUDA", "fp16"),
        ("tensorrt", "fp16"),
        ("tensorrt", "int8"),
        ("tensorrt_rtx", "fp16"),
        ("tensorrt_rtx", "int8"),
        ("torch CUDA graph", "fp32"),
        ("torch eager", "bf16"),
        ("torch compiled", "fp16"),
        ("torch compiled", "fp32"),
        ("onnxruntime CUDA", "int8"),
        ("tensorrt", "fp32"),
        ("tensorrt_rtx", "fp32"),
    )
)


def prepare(contender, network, folder, device, batches):
    """The call of `contender` on `network`; files go to `folder`, every batch in `batches` has to work."""
    runtime, precision = contender.runtime, contender.precision
    if runtime.startswith("torch "):
        return _torch(network.module, runtime.removeprefix("torch "), precision, device)
    if contender == Contender("onnxruntime CUDA", "int8"):
        raise Skip("ONNX Runtime's CUDA provider has no int8 kernels: it would time fp32 with conversions")
    path = _file(network, precision, folder, signed=runtime.startswith("tensorrt"))
    if runtime == "onnxruntime CUDA":
        return onnxruntime_call(path, device)
    return _tensorrt(path, runtime, folder, device, batches)


def _torch(module, mode, precision, device):
    module = copy.deepcopy(module).eval().to(device, TYPES[precision])
    if precision != "fp32":
        module = module.to(memory_format=torch.channels_last)  # the layout that half precision's fast kernels read

    def eager(x):
        x = x.to(TYPES[precision])
        return module(x if precision == "fp32" else x.contiguous(memory_format=torch.channels_last)).float()

    if mode == "eager":
        return eager
    if mode == "compiled":
        return torch.compile(eager, dynamic=True)
    if device.type != "cuda":
        raise Skip(f"a CUDA graph needs a GPU, not {device}")
    return graphed(eager)


def graphed(call):
    """`call` captured once for each shape and replayed; the answer lives until the next call of that shape."""
    graphs = {}

    def replay(x):
        if x.shape not in graphs:
            static, graph, side = x.clone(), torch.cuda.CUDAGraph(), torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # what libraries set up on their first calls cannot be captured
                for _ in range(3):
                    call(static)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                answer = call(static)
            graphs[x.shape] = static, graph, answer
        static, graph, answer = graphs[x.shape]
        static.copy_(x)
        graph.replay()
        return answer

    return replay


def _file(network, precision, folder, signed):
    """The ONNX file of `network` in `precision`, made at its first use."""
    try:
        from deploy.errors import DeployError
        from deploy.exporting.torch_to_onnx import export_onnx
        from deploy.quantization.half import fp16_from_fp32
        from deploy.quantization.int8 import int8_from_fp32, signed_from_unsigned
    except ModuleNotFoundError as error:
        raise Skip(f"Exporting to ONNX needs the package {error.name}") from None

    stem = f"{network.architecture}-{network.variant}"
    fp32, path = folder / f"{stem}.fp32.onnx", folder / f"{stem}.{precision}.onnx"
    rows = np.random.default_rng(0).standard_normal((16, *network.shape)).astype(np.float32)
    try:
        if not fp32.is_file():
            export_onnx(network.module, torch.from_numpy(rows[:2]), fp32)
        if precision == "fp16" and not path.is_file():
            fp16_from_fp32(fp32, path)
        if precision == "int8":
            path = path if path.is_file() else int8_from_fp32(fp32, path, list(rows))
            if signed:
                path = signed_from_unsigned(path, path.with_suffix(".trt.onnx"))
    except DeployError as error:
        raise Skip(str(error)) from None
    return path


def onnxruntime_call(path, device):
    """ONNX Runtime on the device's memory: no copy to the host and back."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise Skip("onnxruntime cannot be imported") from None
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in ort.get_available_providers():
        raise Skip(f"ONNX Runtime {ort.__version__} here has no {provider}; onnxruntime-gpu has")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # TF32 off, as in torch's eager convolutions here: fp32 means fp32.
    settings = {"use_tf32": "0"} if device.type == "cuda" else {}
    session = ort.InferenceSession(str(path), options, providers=[(provider, settings)])
    if session.get_providers()[0] != provider:
        raise Skip(f"ONNX Runtime's {provider} cannot start here (no usable CUDA or cuDNN library)")
    (given,), (wanted,) = session.get_inputs(), session.get_outputs()
    index = device.index or 0
    answers = {}

    def call(x):
        x = x.contiguous()
        if len(x) not in answers:
            shape = [len(x), *wanted.shape[1:]]
            answers[len(x)] = torch.empty(shape, device=device)
        answer, binding = answers[len(x)], session.io_binding()
        binding.bind_input(given.name, device.type, index, np.float32, list(x.shape), x.data_ptr())
        binding.bind_output(wanted.name, device.type, index, np.float32, list(answer.shape), answer.data_ptr())
        session.run_with_iobinding(binding)
        return answer

    return call


def _tensorrt(path, runtime, folder, device, batches):
    if device.type != "cuda":
        raise Skip(f"{runtime} needs a GPU, not {device}")
    try:
        from deploy.engines.tensorrt.building import engine_from_onnx, import_api
        from deploy.errors import DeployError
    except ImportError as error:
        raise Skip(f"the package {error.name} is not installed, which building an engine needs") from None
    try:
        trt = import_api(runtime)
        target = f"sm{torch.cuda.get_device_capability(device)[0]}{torch.cuda.get_device_capability(device)[1]}"
        known = getattr(trt, "ComputeCapability", None)  # TensorRT itself builds for the GPU that it is on, and asks
        profile = (min(batches), sorted(batches)[len(batches) // 2], max(batches))
        chosen = None if known is None else target
        return tensorrt_call(
            trt, engine_from_onnx(path, folder, target=chosen, profile=profile, runtime=runtime), device
        )
    except DeployError as error:
        raise Skip(str(error)) from None


def tensorrt_call(trt, engine_path, device):
    """An engine of TensorRT or TensorRT-RTX on tensors of torch, in torch's stream."""
    log = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(log).deserialize_cuda_engine(Path(engine_path).read_bytes())
    if engine is None:
        raise Skip(f"{trt.__name__} {trt.__version__} cannot load the engine that it built")
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
    given = next(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
    (wanted,) = [name for name in names if name != given]
    answers = {}

    def call(x):
        x = x.contiguous()
        context.set_input_shape(given, tuple(x.shape))
        if x.shape not in answers:
            answers[x.shape] = torch.empty(tuple(context.get_tensor_shape(wanted)), device=device)
        context.set_tensor_address(given, x.data_ptr())
        context.set_tensor_address(wanted, answers[x.shape].data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream(device).cuda_stream):
            raise RuntimeError(f"{trt.__name__} could not run {Path(engine_path).name}")
        return answers[x.shape]

    return call
