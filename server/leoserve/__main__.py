"""`python -m leoserve` is the command `leoserve`."""

import sys

from leoserve.cli import main

sys.exit(main())
