"""`python -m leobench` is the command `leobench`."""

import sys

from leobench.cli import main

sys.exit(main())
