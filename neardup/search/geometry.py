"""Cosine, distance, contractions, and how far float arithmetic can be off.

Every error bound below follows Higham, Accuracy and Stability of Numerical Algorithms (2002), section 3.1:
a dot product of length d is off by at most gamma_d |a||b|, gamma_d = d u / (1 - d u), whatever the order
of its sums. A bound that is too wide only adds candidates; none can lose a pair.
"""

from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from neardup.ranges import block_ranges

UNIT32 = 2.0**-24  # unit roundoff u of float32
UNIT64 = 2.0**-53
SIMILARITY_DECIMALS = 15  # a float64 dot product of unit rows carries no more
_SAFE = 2.0**60  # squared lengths in float32 between 1 / this and this neither over- nor underflow in their terms
LONGEST = 2.1  # no sketch, and no mean of sketches, is longer: |x - mean| <= 2, and the tail at least 0.25
_VALUES_AT_ONCE = 1 << 15  # of either side of some pairs: 256 kB, which caches hold and the allocator keeps
_SUMMED = 8192  # values of a row that einsum takes at once, whatever other rows there are
_SHORTEST_TAIL = 0.25  # tails are made at least this long: the error of a root falls with its size


def as_float64(rows):
    """Rows cast to float64, each scaled by a power of two so that no square over- or underflows.

    rows: (n, d) float16, float32 or float64. The scaling is exact and changes no cosine; float16 and
    float32 need none, for their squares fit float64. Returns (n, d) float64. Memory: 8 n d bytes.
    """
    values = rows.astype(np.float64, order="C")  # in which the sums run along a row
    if rows.dtype.itemsize >= 8 and values.size:
        _, exponents = np.frexp(np.abs(values).max(axis=1))
        values = np.ldexp(values, -exponents[:, None])
    return values


def unit_rows(rows):
    """Rows scaled to unit length, and which of them can't be.

    rows: (n, d) float16, float32 or float64. Returns (n, d) float64 unit rows, with zeros where a row
    has no direction, and (n,) bool: True where it has none (NaN, infinity, all zeros). Memory: 16 n d bytes.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        values = as_float64(rows)
        lengths = np.sqrt(np.einsum("ij,ij->i", values, values))
        bad = ~(np.isfinite(lengths) & (lengths > 0))
        values /= lengths[:, None]
    values[bad] = 0
    return values, bad


def scaled_rows32(rows):
    """As `unit_rows`, in float32, less the last step: rows times their scales are within `unit_error` of unit rows.

    Returns (n, d) float32, the rows themselves where they are that already, (n,) float32 and (n,) bool.
    Memory: 4 n d bytes for rows of another dtype.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        values = rows.astype(np.float32, copy=False)
        squares = np.vecdot(values, values)
        scales = 1 / np.sqrt(squares)
    bad = np.zeros(len(rows), dtype=bool)
    odd = np.nonzero(~((squares > 1 / _SAFE) & (squares < _SAFE)))[0]
    if len(odd):
        values = values.copy()
        values[odd], bad[odd] = unit_rows(rows[odd])
        scales[odd] = 1
    return values, scales, bad


def unit_rows32(rows):
    """As `unit_rows`, in float32, each row within `unit_error` of its exact direction. Memory: 8 n d bytes."""
    values, scales, bad = scaled_rows32(rows)
    return values * scales[:, None], bad


def unit_error(dim):
    """Greatest distance of a row of `unit_rows32` from the exact one.

    Its squared length is off by gamma_d, d u and a little, so its length by half of that; 8 u for the root, the
    quotient, the product and, of float64 rows, the cast.
    """
    return (dim / 2 * 1.01 + 8) * UNIT32


def similarities(rows_a, rows_b):
    """Cosine of each row of one array with the same row of another: the definition all results rest on.

    rows_a, rows_b: (n, d) as stored. Returns (n,) float64 in [-1, 1], rounded to 15 decimals, which is all
    that float64 carries here; so equal rows give exactly 1. The sums run along a row, in an order that depends on d
    alone: the same bits in whatever block the rows come. Memory: 16 n d bytes.
    """
    a, b = as_float64(rows_a), as_float64(rows_b)
    return _cosines(_dots(a, b), _dots(a, a), _dots(b, b))


def _dots(a, b):
    """Products of each row of a, (n, d), or of the one that it is, (d,), with the row of b, (n, d); float64, (n,).

    Some values at a time: of more, einsum cuts the rows of a block otherwise than a single one.
    """
    parts = [slice(start, start + _SUMMED) for start in range(0, b.shape[1], _SUMMED)]
    return reduce(np.add, (np.einsum("...j,...j->...", a[..., some], b[:, some]) for some in parts))


def similarities_among(rows, i, j):
    """As `similarities`, of the rows i with the rows j of one array, each cast once. rows: (n, d); i, j: (p,) int.

    Where so many in turn have the same i that these fill a step, that row isn't copied for each.
    Returns (p,) float64. Memory: 8 n d bytes, and 0.5 MB.
    """
    values = as_float64(rows)
    squares, dots = _dots(values, values), np.empty(len(i))
    step, ends = max(1, _VALUES_AT_ONCE // rows.shape[1]), np.nonzero(np.diff(i, append=-1))[0] + 1
    if len(i) >= step * len(ends):
        for first, end in pairwise([0, *ends.tolist()]):
            for start in range(first, end, 2 * step):
                here = slice(start, min(start + 2 * step, end))
                dots[here] = _dots(values[i[start]], values.take(j[here], axis=0))
    else:
        for start in range(0, len(i), step):
            here = slice(start, start + step)
            dots[here] = _dots(values.take(i[here], axis=0), values.take(j[here], axis=0))
    return _cosines(dots, squares[i], squares[j])


def _cosines(dots, squares_a, squares_b):
    return np.round(np.clip(dots / np.sqrt(squares_a * squares_b), -1, 1), SIMILARITY_DECIMALS)


def cosine_error(dim):
    """Greatest error of a dot product of two rows of `unit_rows32` in float32: gamma_d, and two rows' errors."""
    return (dim + 8) * UNIT32 + 2.01 * unit_error(dim)


def similarity_error(dim):
    """Greatest difference of two `similarities` of the same rows, in whatever order their sums run.

    Each may lie 2 gamma_d from the exact one.
    """
    return 4 * (dim + 8) * UNIT64 + 10.0**-SIMILARITY_DECIMALS


def radius(threshold, dim):
    """Greatest distance of two unit rows that are a pair: |x-y|^2 = 2 - 2 cos(x, y).

    The cosine is computed in float64, so it may lie 2 gamma_d under the threshold and still be reported.
    """
    return float(np.sqrt(2 - 2 * threshold + similarity_error(dim)))


class Reach(NamedTuple):
    """How far apart the rows of a pair are, at most, and how far a row's sketch is from its exact place."""

    radius: float
    error: float

    @property
    def of_sketches(self):
        """Greatest distance of the sketches of a pair."""
        return self.radius + 2 * self.error


class Projection(NamedTuple):
    """What `project` multiplies rows by, (d, k + 1) float32, the last column the mean, and takes off, (k,) float32."""

    matrix: np.ndarray
    offset: np.ndarray


def projection(mean, components):
    """The `Projection` onto principal axes. mean: (d,) float64; components: (k, d) float64, orthonormal."""
    matrix = np.vstack([components, mean]).T.astype(np.float32)
    return Projection(np.asfortranarray(matrix), (components @ mean).astype(np.float32))


def project(values, scales, matrix, offset):
    """PCA coordinates of rows of unit length, and how far they are from the mean.

    values, scales: of `scaled_rows32`; matrix, offset: a `Projection`. Returns (n, k) float32, components (x - mean),
    any m of them within `projection_error` of the exact ones; and (n,) float32, |x - mean|^2 = 1 + |mean|^2 - 2 x mean.
    """
    product = values @ matrix
    product *= scales[:, None]
    mean = matrix[:, -1].astype(np.float64)
    distance = np.float32(1 + mean @ mean) - 2 * product[:, -1]
    return product[:, :-1] - offset, distance


def projection_error(dim, n_coordinates):
    """Greatest distance between n coordinates of `project` and the exact ones.

    A coordinate is off by gamma_d from its dot product and 16 u from rounding its operands and the offset, and all
    of them together by `unit_error` from the unit row they were made of.
    """
    return float(np.sqrt(n_coordinates) * (dim + 16) * UNIT32 * 1.001 + unit_error(dim))


def sketch(coordinates, distance):
    """Contraction of rows to their m coordinates and the length of what those leave out, called the tail.

    coordinates: (n, m) and distance: (n,), as in `project`. Returns (n, m + 1) float32: z and
    sqrt(|x - mean|^2 - |z|^2), or 0.25 where that is less. By the reverse triangle inequality on what z leaves out,
    |s(x) - s(y)| <= |x - y|, and max(., 0.25) brings no two numbers farther apart.
    """
    rest = distance - np.vecdot(coordinates, coordinates)
    return np.column_stack([coordinates, np.sqrt(np.maximum(rest, np.float32(_SHORTEST_TAIL**2)))])


def sketch_error(dim, n_coordinates, mean_length):
    """Greatest distance between a computed sketch and the exact one.

    With R = 1 + |mean|, the longest x - mean, and e the `projection_error` of z: |z|^2 is off by 2 R e + e^2 +
    gamma_m R^2, |x - mean|^2 by 2 |mean| (gamma_d + 16 u + unit_error) + 8 u R^2; call their sum delta. The root of
    what is at least 0.25^2 is then off by delta / (2 * 0.25).
    """
    longest, error = 1 + mean_length, projection_error(dim, n_coordinates)
    delta = 2 * longest * error + error**2 + (n_coordinates + 16) * UNIT32 * longest**2
    delta += 2 * mean_length * ((dim + 16) * UNIT32 + unit_error(dim))
    return float(np.hypot(error, delta / (2 * _SHORTEST_TAIL) + 2 * UNIT32 * longest) * 1.001)


def split(values, scales, axes):
    """Coordinates of rows of unit length along some axes, and the greatest length of what those leave out.

    values, scales: of `scaled_rows32`; axes: (d, m) float32, of orthonormal columns in float64. Returns (n, m + 1)
    float32. By the inequality of Cauchy and Schwarz on what is left out, no cosine is more than the product of two such
    rows and `split_error`.
    """
    along = values @ axes
    along *= scales[:, None]
    rest = np.maximum(1 - np.vecdot(along, along), 0) + np.float32(split_error(*axes.shape))
    return np.column_stack([along, np.sqrt(rest)])


def split_error(dim, n_axes):
    """How much more a cosine can be than the product of two rows of `split`.

    With e the `projection_error`, the squared length of what a row leaves out is off by 2 e (1 + e), and so is the
    product, by as much and e^2; gamma_m+1, of rows no longer than 2 together, and a few u round either.
    """
    error = projection_error(dim, n_axes)
    return (2.1 + 4 * error) * error + 2 * (n_axes + 16) * UNIT32


def shorten(sketches, n_coordinates, out=None):
    """Sketches of fewer coordinates: those left out go into the tail. A contraction of a contraction.

    sketches: (n, m + 1) float32; out: where to write. Returns (n, min(m, n_coordinates) + 1) float32, whose tail is off
    by u of it. Memory: that, if it isn't there, and 256 kB.
    """
    n_coordinates = min(n_coordinates, sketches.shape[1] - 1)
    out = np.empty((len(sketches), n_coordinates + 1), dtype=np.float32) if out is None else out
    out[:], left_out = sketches[:, : n_coordinates + 1], sketches[:, n_coordinates:]
    if left_out.shape[1] > 1:
        for start, stop in block_ranges(0, len(sketches), max(1, _VALUES_AT_ONCE // left_out.shape[1])):
            rest = left_out[start:stop].astype(np.float64)
            out[start:stop, -1] = np.sqrt(np.vecdot(rest, rest))
    return out


def squared_distance_error(n_coordinates, longest=LONGEST):
    """Greatest error of |a|^2 + |b|^2 - 2ab in float32, for rows no longer than that."""
    return 2 * (n_coordinates + 8) * UNIT32 * (2 * longest) ** 2


def borders(own, centroids, error):
    """The planes half way between a centroid and every other, to bound each row's distance to them from below.

    own: a cluster; centroids: (K, m + 1) float32; error: greatest distance of a row's sketch from its exact place.
    The signed distance of x to the plane between c_A and c_B is (x - (c_A + c_B) / 2) (c_A - c_B) / |c_A - c_B|, and
    changes by at most |x-y| from x to y. So two rows, one of A and one of B, are at least the sum of their margins
    apart, whatever their signs.
    Returns normals (m + 1, K) float32 and offsets (K,) float64: in float32, sketches times normals, and in float64
    plus offsets, is no more than the signed distance; -inf where there is no border. And (K,) float64: how far below
    zero that can be for a row of another cluster, which faiss or BLAS found nearest to its own. Memory: 40 K m bytes.
    """
    exact = centroids.astype(np.float64)
    across = exact[own] - exact
    length = np.sqrt(np.vecdot(across, across))
    there = length > 0
    normals = np.divide(across, length[:, None], out=np.zeros_like(across), where=there[:, None])
    # the product's rounding, that of the normal to float32, and what float64 leaves
    rounding = (centroids.shape[1] + 8) * UNIT32 * LONGEST
    offsets = np.where(there, -np.vecdot(normals, (exact[own] + exact) / 2) - error - rounding, -np.inf)
    misplaced = 4 * squared_distance_error(centroids.shape[1])
    below = np.divide(misplaced / 2, length, out=np.zeros_like(length), where=there) + 3 * (error + rounding)
    return np.asfortranarray(normals.T.astype(np.float32)), offsets, below
