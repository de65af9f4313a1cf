"""`python -m sessiond` is `sessiond`."""

import sys

from sessiond.cli import main

sys.exit(main())
