"""One row of benchmarks/engines_table.py: a network through every file and runtime, a line of JSON after each."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

CUTS = ("dense", "cut")
STAGES = ("export", "onnxruntime", "openvino", "rtx_sm86", "rtx_sm120", "fp16", "int8")
RATIO = 0.3
LEAST_SNR = 20.0
BATCHES = (1, 2, 5)
_HEADS = ("head", "classifier", "fc", "predictor")
ROUNDS = 9


Say = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Network:
    """A torchvision network, its task and the side of its images in pixels.

    ``trained`` ones have the weights that ``benchmarks.trained_small`` left in the folder ``NIWAKI_TRAINED``, and see
    images of CIFAR-10.
    """

    factory: str
    task: str = "classification"
    side: int = 128
    sized: bool = False
    trained: bool = False


NETWORKS = {
    "ResNet-18": Network("resnet18"),
    "ResNet-50": Network("resnet50"),
    "MobileNetV2": Network("mobilenet_v2"),
    "MobileNetV3": Network("mobilenet_v3_large"),
    "EfficientNet-B0": Network("efficientnet_b0"),
    "MobileNetV3-small, trained": Network("mobilenet_v3_small", side=64, trained=True),
    "EfficientNet-B0, trained": Network("efficientnet_b0", side=64, trained=True),
    "DenseNet-121": Network("densenet121", side=64),
    "ConvNeXt-T": Network("convnext_tiny", side=64),
    "ViT-B/16": Network("vit_b_16", side=64, sized=True),
    "Swin-T": Network("swin_t", side=64),
    "RegNetY-400MF": Network("regnet_y_400mf"),
    "DeepLabV3-MobileNet": Network("deeplabv3_mobilenet_v3_large", "segmentation", 96),
    "SSDlite": Network("ssdlite320_mobilenet_v3_large", "detection", 160),
    "Faster R-CNN-MobileNet": Network("fasterrcnn_mobilenet_v3_large_320_fpn", "detection", 128),
}


def images(side: int, count: int, seed: int, *, trained: bool = False) -> np.ndarray:
    """Preprocessed float32 (count, 3, side, side): photographs where `NIWAKI_DATA` has them, else smooth noise.

    Those of ``trained`` networks are the last of CIFAR-10's, which no training saw.
    """
    if trained:
        from benchmarks.trained_small import HELD_OUT, cifar10, prepared

        chosen = np.random.default_rng(seed).permutation(HELD_OUT)[:count]
        return prepared(cifar10("train")[0][-HELD_OUT:][chosen], side)
    from deploy.processing.preprocess import Preprocessing

    folder = Path(os.environ.get("NIWAKI_DATA", "/nowhere")) / "hymenoptera"
    files = sorted(folder.rglob("*.jpg"))
    rng = np.random.default_rng(seed)
    if len(files) >= count:
        prepare = Preprocessing(size=(side, side), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        return np.stack([prepare(prepare.load(files[i])) for i in rng.permutation(len(files))[:count]])
    coarse = rng.standard_normal((count, 3, 8, 8)).astype(np.float32)
    return np.repeat(np.repeat(coarse, side // 8, axis=2), side // 8, axis=3) + 0.1 * rng.standard_normal(
        (count, 3, side // 8 * 8, side // 8 * 8)
    ).astype(np.float32)


def build(network: Network, cut: str, sample: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """The network, random but well conditioned, and what the table says about it."""
    import torch
    from torch import nn

    from compress import prune
    from compress.models import torchvision
    from compress.models.detection import raw_heads

    torch.manual_seed(0)
    weights = Path(os.environ.get("NIWAKI_DATA", "/nowhere")) / "mobilenet_v2_imagenet" / "mobilenet_v2_imagenet.pth"
    about: dict[str, Any] = {"side": network.side}
    sized = {"image_size": network.side} if network.sized else {}
    example = torch.from_numpy(sample)
    if network.trained:
        from safetensors.torch import load_file

        path = Path(os.environ.get("NIWAKI_TRAINED", "/nowhere")) / f"{network.factory}.safetensors"
        model = torchvision.maker(network.factory)(num_classes=10)
        model.load_state_dict(load_file(path))
        about["weights"] = "CIFAR-10"
    elif network.factory == "mobilenet_v2" and weights.is_file():
        model = torchvision.maker(network.factory)()
        model.load_state_dict(torch.load(weights, weights_only=True))
        about["weights"] = "ImageNet"
    else:
        classes = {"classification": 10, "segmentation": 5, "detection": 4}[network.task]
        model = torchvision.maker(network.factory)(num_classes=classes, **sized)
        for name, module in model.named_modules():
            # Heads start near or at zero, where every error hides; detectors' would propose nothing.
            if isinstance(module, nn.Linear | nn.Conv2d) and any(part in name for part in _HEADS):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        _settle(model, example)
    model.eval()
    if cut == "cut":
        trace = prune.trace(model, example[:1], forward=raw_heads(model))
        plan = prune.plan(trace, prune.score(trace, model), ratio=RATIO, scope="group", round_to=1)
        model = prune.apply(model, plan)
        _settle(model, example)
        model.eval()
    widths = [m.weight.shape[0] for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    about |= {"layers": len(widths), "odd": sum(width % 8 != 0 for width in widths)}
    return model, about


def _settle(model: Any, example: Any) -> None:
    """BatchNorm statistics of ``example``: otherwise values grow or fade from layer to layer."""
    from compress import prune
    from compress.models.detection import raw_heads

    prune.recalibrated(model, [example], forward=raw_heads(model))


def raw_twin(module: Any, side: int) -> Any:
    """A two-stage detector's raw outputs at fixed regions, whose errors can be told: proposals jump, these do not.

    Args:
        module: what ``deploy.exporting.rcnn.rcnn_heads`` gives.
        side: of the images, in pixels.
    """
    from copy import deepcopy

    import torch
    from torch import nn

    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = deepcopy(module)
            regions = torch.tensor([[[0.0, 0, 0.3, 0.4], [0.1, 0.2, 0.9, 0.7], [0, 0, 1, 1]]]) * side
            self.heads.register_buffer("fixed", regions)
            self.heads.propose = self._propose

        def _propose(self, objectness: list[Any], deltas: list[Any]) -> tuple[Any, Any]:
            raw = torch.cat([part.flatten(1) for part in (*objectness, *deltas)], 1)
            return self.heads.fixed.expand(raw.shape[0], -1, -1), raw

        def forward(self, images: Any) -> tuple[Any, Any, Any]:
            boxes, logits, _, raw = self.heads(images)
            return boxes, logits, raw

    return Twin().eval()


def row(name: str, cut: str, stages: Sequence[str], say: Say, side: int | None = None, control: float = 0) -> None:
    """Those of ``STAGES`` that are asked for; the export comes always, for all need it.

    Args:
        name, cut, side: the network, ``dense`` or ``cut``, and its images' side where it is not the network's own.
        stages: what to do.
        say: takes what is found, part by part.
        control: seconds of accuracy control where int8 stays below ``LEAST_SNR``.
    """
    import torch

    from deploy.engines.tensorrt.building import engine_from_onnx
    from deploy.exporting.lowering import lower
    from deploy.exporting.torch_to_onnx import export_onnx
    from deploy.quantization.half import fp16_from_fp32

    network = NETWORKS[name] if side is None else replace(NETWORKS[name], side=side)
    sample = images(network.side, 16, 0, trained=network.trained)
    unseen = torch.from_numpy(images(network.side, 8, 1, trained=network.trained))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        fp32, fp16 = Path(folder) / "fp32.onnx", Path(folder) / "fp16.onnx"
        with stage("export", say) as found:
            model, about = build(network, cut, sample)
            say(about)
            lowered = lower(model, network.task, unseen[:1])
            module = lowered.module
            export_onnx(module, unseen[:2], fp32, output_name=lowered.output_name)
        if not found["works"]:
            return
        judged, source = module, fp32
        if name.startswith("Faster"):
            with stage("twin", say) as found:
                judged, source = raw_twin(module, network.side), Path(folder) / "twin.onnx"
                export_onnx(judged, unseen[:2], source, output_name=("boxes", "logits", "rpn"))
            if not found["works"]:
                return
        for runtime in ("onnxruntime", "openvino"):
            if runtime in stages:
                with stage(runtime, say) as found:
                    if source != fp32:
                        _parity(module, fp32, runtime, unseen)  # that it runs; its proposals may come in another order
                    found |= {"error": _parity(judged, source, runtime, unseen)[0]}
        for target in ("sm86", "sm120"):
            if f"rtx_{target}" in stages:
                with stage(f"rtx_{target}", say) as found:
                    engine = engine_from_onnx(fp32, Path(folder), target=target, profile=(1, 1, 2))
                    found |= {"mib": round(engine.stat().st_size / 2**20, 2)}
        if "fp16" in stages:
            with stage("fp16", say) as found:
                fp16_from_fp32(source, fp16, list(sample))
                found |= {"snr_db": _parity(judged, fp16, "onnxruntime", unseen)[1]}
        if "int8" in stages:
            with stage("int8", say) as found:
                found.update(_int8(fp32, source, judged, sample, unseen, say, control))


def _int8(
    fp32: Path, source: Path, judged: Any, sample: np.ndarray, unseen: Any, say: Say, control: float
) -> dict[str, Any]:
    """The fastest int8 file that is right to 20 dB: by kinds left in fp32, else by single layers."""
    from deploy.errors import DeployError
    from deploy.quantization.int8 import int8_from_fp32, int8_with_accuracy_control
    from deploy.quantization.search import fastest_int8

    calibration, path = list(sample), fp32.with_name("int8.onnx")
    choice = fastest_int8(fp32, path, calibration, rounds=ROUNDS)
    shown = path if source == fp32 else source.with_name("twin.int8.onnx")
    faster = sorted((kept for kept in choice.tried if choice.tried[kept] <= 1), key=lambda kept: choice.tried[kept])
    snr: dict[tuple[str, ...], float] = {}
    for kept in [choice.kept, *(one for one in faster if one != choice.kept)]:
        int8_from_fp32(source, shown, calibration, keep_fp32=kept)
        snr[kept] = _parity(judged, shown, "onnxruntime", unseen)[1]
        if snr[kept] >= LEAST_SNR:
            break
    else:
        kept = max(snr, key=lambda one: snr[one])
        int8_from_fp32(source, shown, calibration, keep_fp32=kept)
    if source != fp32:
        int8_from_fp32(fp32, path, calibration, keep_fp32=kept)
    found: dict[str, Any] = {
        "kept": list(kept),
        "tried": {"+".join(k) or "nothing": {"ratio": v, "snr_db": snr.get(k)} for k, v in choice.tried.items()},
        "snr_db": snr[kept],
        "ratio": choice.tried[kept],
    }
    if control and snr[kept] < LEAST_SNR and choice.ratio <= 1 and source == fp32:
        say({"int8": {"works": True, **found, "control": "was not done in time", "ship": _ship(found)}})
        until = time.monotonic() + control

        # The share of the signal that is right: a hundredth less is 20 dB.
        def right(engine: Any) -> float:
            if time.monotonic() > until:
                raise DeployError(f"was not done within {control:.0f} s")
            return max(1e-6, 1 - 10 ** (-_snr(judged, engine, unseen) / 10))

        controlled = path.with_name("controlled.onnx")
        try:
            int8_with_accuracy_control(
                fp32, controlled, calibration, right, max_drop=10 ** (-LEAST_SNR / 10), keep_fp32=kept
            )
        except DeployError as error:
            found["control"] = _first_line(error)
        else:
            path = controlled
            found |= {"snr_db": _parity(judged, path, "onnxruntime", unseen)[1], "control": "done"}
            found |= {"ratio": _ratio(fp32, path, "onnxruntime", unseen)}
    found["ship"] = _ship(found)
    try:
        return found | {"openvino_ratio": _ratio(fp32, path, "openvino", unseen)}
    except Exception as error:  # noqa: BLE001  (as for a stage)
        return found | {"openvino_why": _first_line(error)}


def _ship(found: dict[str, Any]) -> str:
    if found["ratio"] > 1:
        return f"fp32: int8 takes {found['ratio']:.2f} of its time"
    return "int8" if found["snr_db"] >= LEAST_SNR else f"fp32: int8 at {found['snr_db']:.1f} dB"


def _parity(module: Any, path: Path, runtime: str, unseen: Any) -> tuple[float, float]:
    from deploy.engines import load_engine
    from deploy.exporting.parity import parity

    with load_engine(path, runtime=runtime) as engine:
        rows = parity(module, engine, unseen, BATCHES)
    return max(r["max_relative_error"] for r in rows), min(r["snr_db"] for r in rows)


def _snr(module: Any, engine: Any, unseen: Any) -> float:
    from deploy.exporting.parity import parity

    return min(r["snr_db"] for r in parity(module, engine, unseen, (5,)))


def _ratio(fp32: Path, int8: Path, runtime: str, unseen: Any) -> float:
    from deploy.bench.timing import benchmark
    from deploy.engines import load_engine

    with load_engine(fp32, runtime=runtime) as one, load_engine(int8, runtime=runtime) as other:
        one.name, other.name = "fp32", "int8"
        ratio = benchmark([one, other], {"image": unseen[:1].numpy()}, rounds=ROUNDS, warmup=3)[1].ratio_to_dense
    assert ratio is not None
    return ratio


@contextmanager
def stage(name: str, say: Callable[[dict[str, Any]], None]) -> Iterator[dict[str, Any]]:
    """Says that the stage works, or why it does not: whatever a library raises is a cell of the table."""
    found: dict[str, Any] = {"works": True}
    start = time.perf_counter()
    try:
        yield found
    except Exception as error:  # noqa: BLE001  (nothing may end the row)
        found |= {"works": False, "why": _first_line(error)}
    found["seconds"] = round(time.perf_counter() - start, 1)
    say({name: found})


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # Where the file lay for a moment says nothing to a reader of the table.
    text = re.sub(r"/[^ ]*/(?=[^ /]+)", "", text)
    return text.replace("|", "/")[:200]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", choices=sorted(NETWORKS))
    parser.add_argument("cut", choices=CUTS)
    parser.add_argument("found", type=Path, help="where the lines of JSON go")
    parser.add_argument("--side", type=int, help="pixels of the images, instead of the network's own")
    parser.add_argument("--control", type=float, default=0, help="seconds of accuracy control where int8 is not right")
    parser.add_argument("stages", nargs="*", choices=STAGES, help="what to do, the export aside")
    options = parser.parse_args()
    with options.found.open("w") as file:

        def say(part: dict[str, Any]) -> None:
            file.write(json.dumps(part) + "\n")
            file.flush()

        row(options.network, options.cut, options.stages, say, options.side, options.control)
    return 0


if __name__ == "__main__":
    sys.exit(main())
