"""Moments of rows of unit length, and what follows from them: principal axes, and how many of those are needed."""

import numpy as np

from neardup.machine import engine
from neardup.machine.threads import scratch

_NOISE = 2.0**-20, 2.0**-44  # variance that rounding makes, of the largest in the products, of 1 in the unit rows
_MANY = 2048  # columns at which LAPACK's threads, which wait for each other at each, pay: others may use the cores, too


class Moments:
    """Sums of unit rows less an origin, and of their products, in float64: of `block_rows` rows at a time in float32.

    Memory: 12 d^2 bytes, and those rows.
    """

    def __init__(self, origin, block_rows):
        self.count, self._origin, self._held = 0, origin, 0
        self._rows = scratch((block_rows, len(origin)))
        self._sums = np.zeros((len(origin) + 1, len(origin)))

    def add(self, values, scales, chosen):
        """Add some rows of a block. values, scales: of `geometry.scaled_rows32`; chosen: (c,) places, ascending."""
        if self._held + len(chosen) > len(self._rows):
            self._multiply()
        rows = self._rows[self._held : self._held + len(chosen)]
        np.multiply(values if len(chosen) == len(values) else values[chosen], scales[chosen, None], out=rows)
        rows -= self._origin
        self._held, self.count = self._held + len(chosen), self.count + len(chosen)

    def sums(self):
        """The sum of the rows, and their Gram matrix, (d + 1, d) float64."""
        self._multiply()
        return self._sums

    def _multiply(self):
        rows, self._held = self._rows[: self._held], 0
        self._sums[0] += rows.sum(axis=0, dtype=np.float64)
        self._sums[1:] += rows.T @ rows


def mean_and_covariance(origin, sums, count):
    """Mean (d,) and covariance (d, d), both float64, from sum and Gram matrix less the origin; of one row or none 0."""
    mean = sums[0] / max(count, 1)
    covariance = (sums[1:] - count * np.outer(mean, mean)) / max(count - 1, 1)
    return origin + mean, (covariance + covariance.T) / 2


def spectrum(covariance):
    """Variance along each principal axis, (d,) float64, descending, and the axes, the rows of (d, d) float64.

    The variance is 0 where it is no more than rounding makes.
    """
    at_a_time = 1 if len(covariance) >= _MANY else None  # tasks, of which this is one: the cores are shared out to them
    [(variances, vectors)] = engine.run_in_threads(np.linalg.eigh, [(covariance,)], at_a_time, "01 spectrum")
    variances = variances[::-1]
    return np.where(variances > max(_NOISE[0] * variances[0], _NOISE[1]), variances, 0), vectors.T[::-1]


def components_of(axes):
    """Components, (k, d) float64, orthonormal rows: axes with signs that are always the same.

    Each one's largest entry is positive, as scikit-learn's `svd_flip` has it.
    """
    count, dim = axes.shape
    components = axes * np.sign(axes[np.arange(count), np.argmax(np.abs(axes), axis=1)])[:, None]
    deviation, most = components @ components.T - np.eye(count), dim * 2.0**-50
    # the 2-norm, which is never more than Frobenius's, takes as long as the axes of 3,000 values do
    assert np.linalg.norm(deviation) <= most or np.linalg.norm(deviation, 2) <= most, "error bounds rest on this"
    return components


def component_count(variances, target_variance):
    """Smallest number of components, at least 1, whose share of the variance reaches the target, and that share."""
    total = variances.sum()
    if total == 0:
        return 1, 1.0
    shares = np.cumsum(variances) / total
    count = int(np.searchsorted(shares, min(target_variance, shares[-1]))) + 1
    return count, float(shares[count - 1])
