"""One example for each command, printed below its ``--help``; a test parses every one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

EXAMPLES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "init": ("niwaki init photos --weights DEFAULT", "quickstart"),
        "run": ("niwaki run recipes/digits.yaml --set distill.epochs=4", "recipes"),
        "inspect": ("niwaki inspect torchvision:resnet18 --size 224", "pruning"),
        "criteria": ("niwaki criteria", "choosing"),
        "sensitivity": ("niwaki sensitivity runs/digits/teacher --data recipes/digits.yaml", "choosing"),
        "prune": ("niwaki prune torchvision:resnet18 --budget macs=0.5 --out half", "pruning"),
        "export": ("niwaki export runs/digits/student --out student.onnx", "engines"),
        "quantize": ("niwaki quantize student.onnx photos --out student.int8.onnx", "engines"),
        "compare": ("niwaki compare student.onnx student.int8.onnx photos", "engines"),
        "predict": ("niwaki predict runs/digits/bundle photo.jpg", "bundles"),
        "build": ("niwaki build runs/digits/bundle --precision fp16", "howto/tensorrt"),
        "sign": ("niwaki sign runs/digits/bundle --key key.pem", "bundles"),
        "verify": ("niwaki verify runs/digits/bundle --key key.pub", "bundles"),
        "gate": ("niwaki gate new/bench.json --baseline runs/digits/bench.json", "howto/ci_gate"),
        "bench": ("niwaki bench teacher.onnx runs/digits/bundle --threads 1", "benchmarking"),
        "profile": ("niwaki profile torchvision:mobilenet_v2 --bundle probes", "latency"),
        "explain": ("niwaki explain teacher.onnx student.onnx", "latency"),
        "schema": ("niwaki schema runs/digits/bench.json", "benchmarking"),
        "history": ("niwaki history runs/digits/bench.json --db runs/history.db", "benchmarking"),
        "report": ("niwaki report runs/digits", "benchmarking"),
        "doctor": ("niwaki doctor runs/digits/bundle", "limits"),
        "docs": ("niwaki docs howto/cpp", "index"),
    }
)
"""Command -> what to paste, and the page that says more."""


def page_for(arguments: Sequence[str]) -> str:
    """Return where to read on after an error of the command in ``arguments``; nothing where none is named."""
    command = next((one for one in arguments if not one.startswith("-")), "")
    # Who asked for a page and did not get it is told of the others already.
    return "" if command == "docs" or command not in EXAMPLES else f" More: niwaki docs {EXAMPLES[command][1]}"


def epilog(command: str) -> str:
    """Return what stands below a command's options."""
    example, page = EXAMPLES[command]
    return f"Example: {example}\n\nMore: niwaki docs {page}"
