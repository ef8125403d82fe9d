"""One of two processes that tell each other something; what came of it goes to a file."""

import sys
from pathlib import Path

import torch
from torch import nn

from compress.errors import MissingError, NiwakiError, TrainingError
from compress.train import make_fabric
from compress.train.ranks import all_finite, check_same, leave, once


def fails():
    raise MissingError("the disk is full")


def main(out, kind):
    rank = make_fabric("cpu").global_rank
    if kind in ("same", "other"):
        net = nn.Linear(4, 2)
        nn.init.constant_(net.weight, 1.0)
        nn.init.zeros_(net.bias)
        if kind == "other":
            # The last bit of one weight.
            net.weight.data[1, 3] += rank * 2**-23
        try:
            check_same(net, "transfer")
            found = "fine"
        except TrainingError as error:
            found = str(error).split(", ")[1].split(" than")[0]
    elif kind == "once":
        # An action inside an action is a part of it.
        found = f"told {once(lambda: [1, once(lambda: 'two'), None])}"
    elif kind == "fails":
        try:
            once(fails)
        except NiwakiError as error:
            found = f"{type(error).__name__} {error.exit_code} {error}"
    else:
        bad = torch.tensor(float("inf") if rank else 1.0)
        found = f"{all_finite(torch.tensor(1.0))} {all_finite(bad)}"
    Path(f"{out}.{rank}").write_text(found, encoding="utf-8")
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
