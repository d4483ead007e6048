"""`python -m thingstuff` is the command `thingstuff`."""

import sys

from thingstuff.cli import main

sys.exit(main())
