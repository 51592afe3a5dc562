"""`python -m gapkd`, which is what torchrun starts."""

import sys

from gapkd.cli import main

sys.exit(main())
