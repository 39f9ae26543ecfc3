"""`python -m redistill` is the command line."""

import sys

from redistill.cli.main import main

sys.exit(main())
