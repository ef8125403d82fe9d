"""Random networks by the thousand: each is traced, planned, cut and proved, and a counter-example is reduced.

    python benchmarks/random_networks.py --count 5000 --seed 0 --json random.json

Networks are numbered: `--seed` is the first number, so runs with other numbers see other networks. What a network is
and what it is held to is in tests/prune/random_nets.py; CI examines 500 (`pytest -m zoo tests/prune`).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "prune"))

from random_nets import Outcome, examine, failure, from_seed, reduced


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="networks to examine")
    parser.add_argument("--seed", type=int, default=0, help="number of the first network")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no network after this long")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    # Networks use torch's older spellings on purpose.
    warnings.simplefilter("ignore")
    outcomes: list[Outcome] = []
    wrong: list[dict[str, object]] = []
    began = time.perf_counter()
    for number in range(asked.seed, asked.seed + asked.count):
        if time.perf_counter() - began > asked.seconds:
            break
        try:
            outcomes.append(examine(from_seed(number)))
        except Exception as error:  # noqa: BLE001  (whatever fails is a counter-example)
            wrong.append(_counter_example(number, error))
    figures = _figures(outcomes, wrong, asked.seed, time.perf_counter() - began)
    print(json.dumps(figures, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=2) + "\n")
    return bool(wrong)


def _counter_example(number: int, error: Exception) -> dict[str, object]:
    """A network that fails, and the smallest one found that fails with the same kind of error."""
    spec, kind = from_seed(number), type(error).__name__
    small = reduced(spec, lambda s: failure(s).startswith(kind))
    said = failure(small) or f"{kind}: {error}"
    print(f"network {number}: {said}\n  {small}", flush=True)
    return {"number": number, "error": said, "reduced": repr(small), "drawn": repr(spec)}


def _figures(outcomes: list[Outcome], wrong: list[dict[str, object]], seed: int, seconds: float) -> dict[str, object]:
    count = len(outcomes) + len(wrong)

    def share(values: list[float]) -> float:
        return round(sum(values) / max(len(values), 1), 4)

    return {
        "networks": count,
        "first": seed,
        "counter_examples": wrong,
        "share_that_lost_a_channel": share([o.lost for o in outcomes]),
        "mean_share_of_channels_free": share([o.free for o in outcomes]),
        "share_whose_macs_were_counted": share([o.counted for o in outcomes]),
        "largest_error": max((o.worst for o in outcomes), default=0.0),
        "seconds_of_a_trace": {
            "mean": share([o.seconds for o in outcomes]),
            "most": round(max((o.seconds for o in outcomes), default=0.0), 3),
        },
        "operators_without_a_rule": dict(Counter(name for o in outcomes for name in o.unknown)),
        "seconds": round(seconds, 1),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, one thread",
    }


if __name__ == "__main__":
    sys.exit(main())
