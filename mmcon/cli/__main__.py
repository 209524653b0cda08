"""`python -m mmcon.cli` runs the `mmcon` command."""

import sys

from mmcon.cli import main

sys.exit(main())
