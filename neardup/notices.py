"""What is said beside the results."""

import sys


def notice(text):
    """Say something at once, on standard error."""
    print(text, file=sys.stderr, flush=True)
