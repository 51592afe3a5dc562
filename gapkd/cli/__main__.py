"""`python -m gapkd.cli`."""

import sys

from gapkd.cli import main

sys.exit(main())
