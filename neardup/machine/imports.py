"""What is not imported, though it is installed: it would take longer than what it is wanted for."""

import sys


class _NoPandas:
    """A finder for `sys.meta_path` that finds no pandas: Arrow and scikit-learn would load it, which takes 0.3 s."""

    @staticmethod
    def find_spec(name, *_):
        """None: let others look for it."""
        if name == "pandas":
            raise ModuleNotFoundError(name)


def without_pandas():
    """From now on this process has none, if it hasn't yet."""
    sys.meta_path.insert(0, _NoPandas)
