"""`python -m redistill` is the command line."""

import sys

from redistill.cli import main

sys.exit(main())
