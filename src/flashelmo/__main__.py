"""`python -m flashelmo`."""

import sys

from flashelmo.cli import main

sys.exit(main())
