"""`python -m flashelmo.cli`."""

import sys

from flashelmo.cli import main

sys.exit(main())
