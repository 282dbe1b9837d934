"""For `dask worker --preload`: each task takes NEARDUP_TEST_DELAY seconds more; below 0, its disk is full.

Each also takes as long as the file NEARDUP_TEST_WHILE is there, where that is set, at most five minutes.
"""

import errno
import os
import time
from pathlib import Path

from neardup.machine import engine


def dask_setup(_worker):
    limited = engine.limited

    def slowly(*arguments):
        delay = float(os.environ["NEARDUP_TEST_DELAY"])
        if delay < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        time.sleep(delay)
        wait_while(os.environ.get("NEARDUP_TEST_WHILE"))
        return limited(*arguments)

    engine.limited = slowly


def wait_while(path):
    """Wait for a file to go."""
    end = time.monotonic() + 300
    while path and Path(path).exists() and time.monotonic() < end:
        time.sleep(0.05)
