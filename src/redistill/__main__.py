"""Entry point of `python -m redistill`; runs the command line."""

import os
import sys

# `python -m` puts the current folder first on the import path, where a file would replace a module of the same name.
if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:  # noqa: PTH109 - pathlib is not imported yet
    del sys.path[0]

from redistill.cli.main import main

sys.exit(main())
