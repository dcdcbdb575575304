"""`python -m ahernet`: the command line."""

import sys

from ahernet.cli import main

sys.exit(main())
