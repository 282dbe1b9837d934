"""For `dask worker --preload`: each task takes NEARDUP_TEST_DELAY seconds more."""

import os
import time

from neardup import engine


def dask_setup(_worker):
    limited = engine.limited

    def slowly(*arguments):
        time.sleep(float(os.environ["NEARDUP_TEST_DELAY"]))
        return limited(*arguments)

    engine.limited = slowly
