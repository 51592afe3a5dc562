"""Network files: ours, those of other projects, safely read; where they come from."""
