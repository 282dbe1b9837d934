"""What is said beside the results: on standard error, which may be closed, or full, and that ends no run."""

import os
import sys
from pathlib import Path


def notice(text):
    """Say something at once."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  or what is left would be tried again at the end
