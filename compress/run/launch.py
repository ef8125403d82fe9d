"""``niwaki run --devices N``: the same command in N processes of this machine, by torchrun's own agent."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence
from tempfile import TemporaryDirectory

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from compress.errors import INTERRUPTED
from deploy.engines.cores import usable_cores


def launch(devices: int, arguments: Sequence[str]) -> int:
    """Run ``python -m compress.run ARGUMENTS`` in ``devices`` processes and return the exit code of what failed first.

    Each gets an equal share of the cores, unless ``OMP_NUM_THREADS`` says otherwise; each prints for itself.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // devices)))
    # The process that failed says why in one sentence; the agent would add a page.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    with TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-u", "-m", "compress.run", *arguments)
        except ChildFailedError as error:
            return _exit_code(error)
        except (SignalException, KeyboardInterrupt):
            return INTERRUPTED
    return 0


def _exit_code(error: ChildFailedError) -> int:
    """Return the code of the first process that ended by itself; 1 where all were killed."""
    codes = [failure.exitcode for _, failure in sorted(error.failures.items())]
    return next((code for code in codes if code > 0), 1)
