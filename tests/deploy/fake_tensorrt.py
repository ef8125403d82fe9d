"""A TensorRT that has the names and arguments of the committed facts and nothing else, and a CUDA to run it on.

Its one network gives twice its input. What the facts do not name does not exist here: using it fails the test.
"""

import ctypes
import enum
import itertools
import json

import numpy as np

SUCCESS = enum.IntEnum("Error", {"cudaSuccess": 0, "cudaErrorNoDevice": 100, "cudaErrorMemoryAllocation": 2})


class Strict:
    """An object of the API: of `behaviour` only what the facts give its class can be reached, called as they say."""

    def __init__(self, facts, kind, behaviour):
        object.__setattr__(self, "_known", facts["classes"][kind])
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "behaviour", behaviour)

    def __getattr__(self, name):
        if name not in self._known:
            raise AttributeError(f"{self._kind} has no {name}")
        value = getattr(self.behaviour, name)
        return checked(self._known[name], name, value) if callable(value) and self._known[name] is not None else value

    def __setattr__(self, name, value):
        if name not in self._known:
            raise AttributeError(f"{self._kind} has no {name}")
        setattr(self.behaviour, name, value)


def checked(overloads, name, function):
    def call(*arguments, **named):
        if overloads:
            counts = [(sum(not p.endswith("=") for p in one), len(one)) for one in overloads]
            given = len(arguments) + len(named)
            assert any(least <= given <= most for least, most in counts), f"{name} takes {overloads}, got {given}"
            assert any(set(named) <= {p.rstrip("=") for p in one} for one in overloads), f"{name}: {sorted(named)}"
        return function(*arguments, **named)

    return call


class Thing:
    """Attributes by keyword."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class FakeApi:
    """The module, for one runtime and version of the facts."""

    def __init__(self, facts, *, shape=(-1, 1, 16, 16), broken=()):
        self._facts = facts
        self.__version__ = facts["version"]
        self.shape, self.broken, self.calls = shape, set(broken), []
        for name, members in facts["enums"].items():
            setattr(self, name, enum.IntEnum(name, {member: k for k, member in enumerate(members)}))
        self.ILogger = type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2})
        self.IProfiler = type("IProfiler", (), {})

    def _make(self, kind, **behaviour):
        return Strict(self._facts, kind, Thing(**behaviour))

    def Builder(self, logger):  # noqa: N802
        return self._make(
            "Builder",
            create_network=lambda flags=0: self._network(flags),
            create_builder_config=self._config,
            create_optimization_profile=lambda: self._make(
                "IOptimizationProfile", shapes=(s := {}), set_shape=lambda name, *dims: s.update({name: dims})
            ),
            build_serialized_network=lambda network, config: self._built(logger, config),
        )

    def _network(self, flags):
        assert flags == 1 << int(self.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        tensor = self._make("ITensor", name="image", shape=self.shape)
        return self._make("INetworkDefinition", num_inputs=1, get_input=lambda index: tensor)

    def OnnxParser(self, network, logger):  # noqa: N802
        fault = self._make("ParserError", desc=lambda: "no such operator")
        return self._make(
            "OnnxParser",
            parse=lambda model: "parse" not in self.broken,
            num_errors=1,
            get_error=lambda index: fault,
        )

    def _config(self):
        state = self.state = {"profiles": [], "cache": None, "capabilities": {}, "limits": {}}

        def create_timing_cache(data):
            return self._make("ITimingCache", serialize=lambda: data + b"+")

        def set_timing_cache(cache, ignore):
            state["cache"] = cache
            return "cache" not in self.broken

        return self._make(
            "IBuilderConfig",
            num_compute_capabilities=0,
            profiling_verbosity=None,
            get_flag=lambda flag: flag.name == "TF32",
            set_compute_capability=lambda capability, index: state["capabilities"].update({index: capability}),
            set_memory_pool_limit=lambda pool, size: state["limits"].update({pool.name: size}),
            add_optimization_profile=lambda profile: state["profiles"].append(profile.behaviour.shapes),
            create_timing_cache=create_timing_cache,
            set_timing_cache=set_timing_cache,
            get_timing_cache=lambda: state["cache"],
        )

    def _built(self, logger, config):
        if "build" in self.broken:
            logger.log(self.ILogger.ERROR, "FP32 GEMM is not supported")
            return None
        (shapes,) = self.state["profiles"]
        return b"plan" + json.dumps({"profile": shapes["image"]}).encode()

    def Runtime(self, logger):  # noqa: N802
        def deserialize(data):
            if "load" in self.broken:
                logger.log(self.ILogger.ERROR, "the engine is of another device")
                return None
            return self._engine(json.loads(bytes(data)[4:])["profile"])

        return self._make("Runtime", deserialize_cuda_engine=deserialize)

    def _engine(self, profile):
        names, modes = ["image", "doubled"], [self.TensorIOMode.INPUT, self.TensorIOMode.OUTPUT]
        kind = self.DataType.BF16 if "dtype" in self.broken else self.DataType.FLOAT
        layers = {"Layers": ["doubling"] if "verbosity" in self.broken else [{"Name": "doubling", "LayerType": "x"}]}
        inspector = self._make("EngineInspector", get_engine_information=lambda format: json.dumps(layers))
        return self._make(
            "ICudaEngine",
            num_io_tensors=2,
            get_tensor_name=names.__getitem__,
            get_tensor_mode=lambda name: modes[names.index(name)],
            get_tensor_dtype=lambda name: kind,
            get_tensor_shape=lambda name: self.shape,
            get_tensor_profile_shape=lambda name, index: profile,
            create_execution_context=lambda *a: None if "memory" in self.broken else self._context(),
            create_engine_inspector=lambda: inspector,
        )

    def _context(self):
        state = {"shape": None, "addresses": {}}
        context = None

        def set_input_shape(name, shape):
            state["shape"] = tuple(shape)
            return "shape" not in self.broken

        def execute(stream):
            assert stream != 0, "the default stream makes TensorRT synchronise the device"
            if "run" in self.broken:
                return False
            count = int(np.prod(state["shape"]))
            source, target = (
                np.ctypeslib.as_array((ctypes.c_float * count).from_address(state["addresses"][name]))
                for name in ("image", "doubled")
            )
            target[:] = 2 * source
            if context.behaviour.profiler is not None:
                context.behaviour.profiler.report_layer_time("doubling", 0.25)
            return True

        context = self._make(
            "IExecutionContext",
            profiler=None,
            set_input_shape=set_input_shape,
            get_tensor_shape=lambda name: state["shape"],
            set_tensor_address=lambda name, memory: state["addresses"].update({name: memory}),
            execute_async_v3=execute,
        )
        return context


class FakeCuda:
    """`cuda.bindings.runtime` on the memory of this process; counts what is not given back."""

    cudaMemcpyKind = enum.IntEnum("cudaMemcpyKind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2})  # noqa: N815
    cudaDeviceAttr = enum.IntEnum(  # noqa: N815
        "cudaDeviceAttr", {"cudaDevAttrComputeCapabilityMajor": 75, "cudaDevAttrComputeCapabilityMinor": 76}
    )

    def __init__(self, *, devices=1, capability=(8, 6), memory=1 << 30):
        self.devices, self.capability, self.memory = devices, capability, memory
        self.blocks, self.streams, self.allocations = {}, set(), 0
        self._numbers = itertools.count(7)

    def cudaGetDeviceCount(self):  # noqa: N802
        return (SUCCESS.cudaSuccess, self.devices) if self.devices else (SUCCESS.cudaErrorNoDevice, None)

    def cudaGetDevice(self):  # noqa: N802
        return SUCCESS.cudaSuccess, 0

    def cudaDeviceGetAttribute(self, attribute, device):  # noqa: N802
        return SUCCESS.cudaSuccess, self.capability[int(attribute) - 75]

    def cudaStreamCreate(self):  # noqa: N802
        self.streams.add(number := next(self._numbers))
        return SUCCESS.cudaSuccess, number

    def cudaStreamDestroy(self, stream):  # noqa: N802
        self.streams.remove(stream)
        return (SUCCESS.cudaSuccess,)

    def cudaStreamSynchronize(self, stream):  # noqa: N802
        assert stream in self.streams
        return (SUCCESS.cudaSuccess,)

    def cudaMalloc(self, size):  # noqa: N802
        if size + sum(map(len, self.blocks.values())) > self.memory:
            return SUCCESS.cudaErrorMemoryAllocation, None
        block = (ctypes.c_char * size)()
        self.blocks[ctypes.addressof(block)] = block
        self.allocations += 1
        return SUCCESS.cudaSuccess, ctypes.addressof(block)

    def cudaFree(self, address):  # noqa: N802
        del self.blocks[address]
        return (SUCCESS.cudaSuccess,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):  # noqa: N802
        assert stream in self.streams
        device = target if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice else source
        assert size <= len(self.blocks[device])
        ctypes.memmove(target, source, size)
        return (SUCCESS.cudaSuccess,)
