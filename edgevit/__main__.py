"""Run the command line: `python -m edgevit`."""

import sys

from edgevit.cli.main import run_process

sys.exit(run_process())
