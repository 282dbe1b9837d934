"""Imports: those that are done stay in memory, and pandas is kept out."""

import gc
import sys


class _NoPandas:
    """A finder for `sys.meta_path` that finds no pandas: Arrow and scikit-learn would load it, which takes 0.3 s."""

    @staticmethod
    def find_spec(name, *_):
        """None: let others look for it."""
        if name == "pandas":
            raise ModuleNotFoundError(name)


def settle():
    """As each script and a query do when all that they import at first is there."""
    gc.freeze()  # what was imported stays: to look through it for garbage takes 5 % of a short script
    without_pandas()


def without_pandas():
    """From now on this process has none, if it hasn't yet."""
    sys.meta_path.insert(0, _NoPandas)
