"""`python -m gradscope` is `gradscope-report`."""

from __future__ import annotations

import sys

from gradscope.cli import main

if __name__ == "__main__":  # the guard matters: drawing processes import this module
    sys.exit(main())
