"""Entry point of `python -m redistill`; runs the command line."""

import sys

from redistill.cli.main import main

sys.exit(main())
