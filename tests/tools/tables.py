"""Print the tables of sample reports, to look at them.

python -m tests.tools.tables 80     # the width in columns
"""

from __future__ import annotations

import sys

from tests.helpers.reports import TABLES, printed

if __name__ == "__main__":
    for name, parts in TABLES.items():
        sys.stdout.writelines(f"{line}\n" for line in ["---" + name, *printed(*parts, width=int(sys.argv[1]))])
