"""A run as the two files describe it, with realistic figures."""

from typing import Any

RECIPE = """\
name: digits
seed: 0
source: {kind: drawn-digits, train: 12000, val: 1000}
target: {kind: sklearn-digits, per_class: 20, val: 200}
model: {factory: resnet20, width: 16, size: 32}
pretrain: {epochs: 4, lr: 0.1, batch: 128}
transfer: {epochs: 30, lr: 0.02}
prune: {criterion: l1, scope: global, round_to: 4, budget: {macs: 0.5}}
distill: {temperature: 4.0, logits: 1.0, reuse_classifier: true, align_features: true}
deploy: {precisions: [fp32, fp16, int8], engines: [onnxruntime, tensorrt-rtx]}
"""


def model(name: str, title: str, role: str, right: int, macs: int, params: int, flops: float) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "role": role,
        "val_accuracy": right / 1397 + 0.003,
        "test_accuracy": right / 1397,
        "test_correct": right,
        "test_total": 1397,
        "macs": macs,
        "params": params,
        "file_bytes": 4 * params + 9000,
        "training_flops": flops,
        "test_reliability": [
            {"low": 0.4, "high": 0.5, "images": 97, "right": right % 97, "probability": 0.46},
            {"low": 0.9, "high": 1.0, "images": 1300, "right": 1250, "probability": 0.987},
        ],
    }


def record(
    name: str, of: str, precision: str, median: float, accuracy: float, size: int, **more: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "model": of,
        "runtime": "onnxruntime",
        "precision": precision,
        "batch": 1,
        "status": "measured",
        "reason": None,
        "warmup": 20,
        "repeats": 300,
        "mean_ms": median * 1.04,
        "median_ms": median,
        "p90_ms": median * 1.12,
        "p99_ms": median * 1.4,
        "min_ms": median * 0.95,
        "ratio_to_dense": median / 0.832,
        "ratio_interval": [median / 0.832 * 0.98, median / 0.832 * 1.03],
        "speedup": 0.832 / median,
        "accuracy": accuracy,
        "parity": [{"batch": b, "max_relative_error": 1.1e-6 * b, "snr_db": 121.4 - b} for b in (1, 2, 5)],
        "file_bytes": size,
        "kernels": None,
        **more,
    }


def unmeasured(target: str) -> dict[str, Any]:
    return {
        "name": f"distilled-fp16-rtx-{target}",
        "model": "student",
        "runtime": "tensorrt-rtx",
        "precision": "fp16",
        "batch": 1,
        "status": "built",
        "reason": f"no NVIDIA GPU of {target} here",
        "file_bytes": 402_112,
    }


def ledger() -> dict[str, Any]:
    blocks = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)]
    kept = (8, 12, 4, 20, 16, 28, 24, 40, 36)
    return {
        "format": "niwaki-ledger-1",
        "name": "digits",
        "seed": 0,
        "created": "2026-11-20T22:40:12+00:00",
        "versions": {"niwaki": "0.1.0", "python": "3.11.7", "torch": "2.15.0", "nncf": "3.4.0"},
        "machine": {"system": "Linux 6.1", "processor": "Intel Xeon 2.6 GHz", "cores": 2, "memory_gb": 16},
        "stages": [
            {"name": "pretrain", "title": "Pretrain", "seconds": 42.3, "training_flops": 5.9e12,
             "metrics": {"val_accuracy": 0.981, "loss": 0.0831, "images": 12000}, "notes": []},
            {"name": "transfer", "title": "Fine-tune", "seconds": 11.8, "training_flops": 1.5e12,
             "metrics": {"val_accuracy": 0.975, "test_accuracy": 0.9735}, "notes": ["best of 30 epochs"]},
            {"name": "prune", "title": "Prune", "seconds": 1.2, "training_flops": None,
             "metrics": {"macs": 20_300_000, "params": 131_000, "proof_error": 3.1e-15}, "notes": []},
            {"name": "distill", "title": "Distil", "seconds": 19.5, "training_flops": 1.9e12,
             "metrics": {"val_accuracy": 0.972, "test_accuracy": 0.9707}, "notes": []},
            {"name": "lower", "title": "Lower to engines", "seconds": 14.9, "training_flops": None,
             "metrics": {"engines": 6}, "notes": ["int8 by NNCF on 200 training images"]},
            {"name": "bench", "title": "Benchmark", "seconds": 4.4, "training_flops": None,
             "metrics": {"median_ms": 0.345}, "notes": []},
        ],
        "models": [
            model("teacher", "Dense teacher", "teacher", 1360, 40_800_000, 272_474, 7.4e12),
            model("twin", "Dense, from scratch", "twin", 1236, 40_800_000, 272_474, 7.4e12),
            model("pruned", "Pruned", "pruned", 501, 20_300_000, 131_200, 7.4e12),
            model("student", "Distilled student", "student", 1356, 20_300_000, 131_200, 1.9e12),
            model("finetuned", "Fine-tuned alone", "finetuned", 1341, 20_300_000, 131_200, 1.9e12),
            model("scratch", "Small, from scratch", "scratch", 1190, 20_300_000, 131_200, 1.9e12),
        ],
        "plan": {
            "criterion": "l1",
            "scope": "global",
            "round_to": 4,
            "budget": {"macs": 0.5},
            "macs_before": 40_800_000,
            "macs_after": 20_300_000,
            "params_before": 272_474,
            "params_after": 131_200,
            "proof": {"eval_forward": 1.1e-15, "train_forward": 4.2e-15, "train_gradient": 3.7e-14},
            "groups": [
                {"name": name, "before": 16 << i // 3, "after": after, "slots": 5}
                for i, (name, after) in enumerate(zip(blocks, kept, strict=True))
            ],
            "protected": {"fc": "graph output", "conv1 input": "graph input"},
        },
        "differing": {"total": 32, "images": [
            {"index": 360, "file": "test/7/a_long_name_of_a_photograph_of_a_seven_360.png", "label": "7",
             "teacher": "7", "teacher_probability": 0.9, "student": "1", "student_probability": 0.62, "picture": ""}
        ]},
        "test_images": 1397,
        "classes": [str(digit) for digit in range(10)],
    }  # fmt: skip


def bench() -> dict[str, Any]:
    return {
        "format": "niwaki-bench-1",
        "name": "digits",
        "created": "2026-11-20T22:41:50+00:00",
        "machine": {"system": "Linux 6.1", "processor": "Intel Xeon 2.6 GHz", "cores": 2},
        "versions": {"onnxruntime": "1.31.1"},
        "settings": {"threads": 1, "batch": 1, "interleaved": True, "rounds": 300},
        "records": [
            record("dense", "teacher", "fp32", 0.832, 1360 / 1397, 1_103_220),
            record("pruned", "pruned", "fp32", 0.497, 501 / 1397, 538_900),
            record("distilled", "student", "fp32", 0.495, 1356 / 1397, 538_900),
            record("distilled-fp16", "student", "fp16", 0.561, 1356 / 1397, 275_300),
            record("int8", "student", "int8", 0.345, 1352 / 1397, 171_400),
            unmeasured("sm86"),
            unmeasured("sm89"),
        ],
    }
