"""Run the command line: `python -m edgevit`."""

import sys

from edgevit.cli.main import main

sys.exit(main())
