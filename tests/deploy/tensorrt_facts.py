"""Reads the names and arguments of TensorRT's Python API off the real bindings, and writes `tensorrt_facts.json`.

    python tests/deploy/tensorrt_facts.py [WHEEL...]

Each WHEEL is a `tensorrt_cu*_bindings` one (`pip download --no-deps tensorrt_cu13_bindings==11.4.*`). It needs
libraries that no package index has, so it is imported against empty stand-ins, which is enough to list it; a C
compiler makes those. TensorRT-RTX is read off the package that is installed. A version without a wheel stays as it is.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

FACTS = Path(__file__).with_suffix(".json")
CLASSES = [
    "Builder",
    "EngineInspector",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProfiler",
    "ITensor",
    "ITimingCache",
    "OnnxParser",
    "ParserError",
    "Runtime",
]
ENUMS = [
    "BuilderFlag",
    "ComputeCapability",
    "DataType",
    "LayerInformationFormat",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "ProfilingVerbosity",
    "TensorIOMode",
]
_SYMBOLS = [
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
]


def facts(api):
    """What the API object has: enum members, and each class's attributes (None) and methods (one list of arguments an
    overload, `name=` where it may be left out)."""
    classes = {name: members(getattr(api, name)) for name in CLASSES if hasattr(api, name)}
    enums = {name: sorted(getattr(api, name).__members__) for name in ENUMS if hasattr(api, name)}
    return {"version": api.__version__, "classes": classes, "enums": enums}


def members(kind):
    found = {}
    for name in dir(kind):
        value = getattr(kind, name)
        if name == "__init__" or not name.startswith("_"):
            found[name] = overloads(name, value.__doc__ or "") if callable(value) else None
    return found


def overloads(name, text):
    """The arguments that pybind11's docstring tells, `self` left out; none for `(*args, **kwargs)`."""
    found = []
    for line in re.findall(rf"^(?:\d+\. )?{name}\((.*)\)(?: -> .*)?$", text, re.M):
        if line.startswith("self: "):
            parts = re.findall(r"(?:^|, )(\w+): (?:[^,\[]|\[[^]]*(?:\[[^]]*\])?[^]]*\])*", line)
            optional = set(re.findall(r"(\w+): [^,=]* = ", line))
            found.append([part + "=" * (part in optional) for part in parts if part != "self"])
    return found


def from_wheel(wheel):
    """The facts of a bindings wheel, whose package is imported in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--one", wheel], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def import_wheel(wheel):
    folder = Path(tempfile.mkdtemp())
    zipfile.ZipFile(wheel).extractall(folder)
    (library,) = folder.glob("tensorrt*_bindings/tensorrt*.so")
    source = folder / "stand_in.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _SYMBOLS))
    for needed in set(re.findall(rb"libnv[a-z_]+\.so\.\d+", library.read_bytes())):
        command = ["gcc", "-shared", "-fPIC", "-o", str(library.parent / needed.decode()), str(source)]
        subprocess.run(command, check=True)
    sys.path.insert(0, str(folder))
    return importlib.import_module(library.parent.name)


def text(known):
    """JSON with a class or an enum a line, so that a new version shows as a short difference."""
    flat = {
        runtime: {
            "version": read["version"],
            **{f"{part}.{name}": value for part in ("classes", "enums") for name, value in sorted(read[part].items())},
        }
        for runtime, read in sorted(known.items())
    }
    parts = []
    for runtime, rows in flat.items():
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in rows.items())
        parts.append(f" {json.dumps(runtime)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read():
    """The committed facts, as `facts` gives them, by runtime and version."""
    known = {}
    for runtime, rows in json.loads(FACTS.read_text()).items():
        known[runtime] = {"version": rows["version"], "classes": {}, "enums": {}}
        for key, value in rows.items():
            part, _, name = key.partition(".")
            if name:
                known[runtime][part][name] = value
    return known


def main(wheels):
    if wheels[:1] == ["--one"]:
        print(json.dumps(facts(import_wheel(wheels[1]))))
        return
    known = read() if FACTS.is_file() else {}
    for wheel in wheels:
        found = from_wheel(wheel)
        known[f"tensorrt {'.'.join(found['version'].split('.')[:2])}"] = found
    import tensorrt_rtx

    known["tensorrt_rtx"] = facts(tensorrt_rtx)
    FACTS.write_text(text(known))


if __name__ == "__main__":
    main(sys.argv[1:])
