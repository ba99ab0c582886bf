"""`python -m tests.faults_second [NAME ...] [--seed 0]`: trains programs and shows what their losses did."""

from __future__ import annotations

from tests.faults.__main__ import main
from tests.faults_second import PROGRAMS

if __name__ == "__main__":
    main(PROGRAMS)
