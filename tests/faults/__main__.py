"""The command line of the campaign: `python -m tests.faults --help`."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything loads torch
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import sys
from contextlib import suppress
from functools import partial

from lib.runs import runs_folder

from .campaign import Campaign
from .columns import COLUMNS


def main() -> int:
    """Run the campaign or go on with it, and print its table; 1 where something did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=0, help="of all cases; each seed has a campaign of its own"
    )
    parser.add_argument(
        "--minutes", type=float, default=60, help="of all its cases, those of earlier calls too"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], choices=COLUMNS, metavar="COLUMN", help=f"of {', '.join(COLUMNS)}"
    )
    options = parser.parse_args()
    columns = {name: COLUMNS[name] for name in options.only or COLUMNS}
    campaign = Campaign(COLUMNS, options.seed, runs_folder() / "faults" / f"seed_{options.seed}")
    with suppress(KeyboardInterrupt):  # the same call goes on
        campaign.run(60 * options.minutes, only=columns, say=partial(print, flush=True))
    print(f"\n{campaign.table()}\n{campaign.folder / 'table.md'} keeps this table.")
    return 1 if any(row["broken"] for row in campaign.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
