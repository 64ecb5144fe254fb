"""`python -m mixln`: the same as the `mixln` command."""

import sys

from mixln.cli import main

sys.exit(main())
