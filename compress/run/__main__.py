"""``python -m compress.run RECIPE ...``: the command ``niwaki run``, for launchers that start modules."""

from __future__ import annotations

import sys

from compress.cli.app import main

if __name__ == "__main__":
    sys.argv[:1] = [sys.argv[0], "run"]
    main()
