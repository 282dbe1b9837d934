"""Cosine, distance, contractions, and how far float arithmetic can be off.

Every error bound below follows Higham, Accuracy and Stability of Numerical Algorithms (2002), section 3.1:
a dot product of length d is off by at most gamma_d |a||b|, gamma_d = d u / (1 - d u), whatever the order
of its sums. A bound that is too wide only adds candidates; none can lose a pair.
"""

import numpy as np

UNIT32 = 2.0**-24  # unit roundoff u of float32
UNIT64 = 2.0**-53
SIMILARITY_DECIMALS = 15  # a float64 dot product of unit rows carries no more


def as_float64(rows):
    """Rows cast to float64, each scaled by a power of two so that no square over- or underflows.

    rows: (n, d) float16, float32 or float64. The scaling is exact and changes no cosine; float16 and
    float32 need none, for their squares fit float64. Returns (n, d) float64. Memory: 8 n d bytes.
    """
    values = rows.astype(np.float64)
    if rows.dtype.itemsize == 8 and values.size:
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


def similarities(rows_a, rows_b):
    """Cosine of each row of one array with the same row of another: the definition all results rest on.

    rows_a, rows_b: (n, d) as stored. Returns (n,) float64 in [-1, 1], rounded to 15 decimals, which is all
    that float64 carries here; so equal rows give exactly 1. Memory: 24 n d bytes.
    """
    a, b = as_float64(rows_a), as_float64(rows_b)
    # products summed pairwise along a row: the same bits whatever block the row came in
    squares = (a * a).sum(axis=1) * (b * b).sum(axis=1)
    cosines = (a * b).sum(axis=1) / np.sqrt(squares)
    return np.round(np.clip(cosines, -1, 1), SIMILARITY_DECIMALS)


def radius(threshold, dim):
    """Greatest distance of two unit rows that are a pair: |x-y|^2 = 2 - 2 cos(x, y).

    The cosine is computed in float64, so it may lie 2 gamma_d under the threshold and still be reported.
    """
    return float(np.sqrt(2 - 2 * threshold + 4 * (dim + 8) * UNIT64 + 10.0**-SIMILARITY_DECIMALS))


def sketch(unit, mean, basis):
    """Contraction of unit rows to m coordinates and the length of what those leave out.

    unit: (n, d) float64; mean: (d,) float64; basis: (m, d) float64, orthonormal rows. Returns (n, m + 1)
    float32: z = basis (x - mean), sqrt(|x - mean|^2 - |z|^2). By the reverse triangle inequality on what z
    leaves out, |s(x) - s(y)| <= |x - y|. `sketch_error` bounds what rounding adds. Memory: 8 n d bytes.
    """
    centred = unit - mean
    head = centred @ basis.T
    rest = np.einsum("ij,ij->i", centred, centred) - np.einsum("ij,ij->i", head, head)
    return np.column_stack([head, np.sqrt(np.maximum(rest, 0))]).astype(np.float32)


def sketch_error(dim, sketch_dims):
    """Greatest distance between a computed sketch and the exact one, for |x - mean| <= 2.

    In float64 the squared rest is off by delta: 2|z| sqrt(m) gamma_d |x - mean| from the coordinates, as
    much again for a basis orthonormal to d 2^-50 (checked when it is made), and gamma_d |x - mean|^2 for each of
    the squared lengths; its root is off by sqrt(delta) at most. Storing in float32 adds u |s|.
    """
    gamma = (dim + 8) * UNIT64
    delta = 8 * np.sqrt(sketch_dims) * gamma + 8 * dim * 2.0**-50 + 16 * gamma
    return float(np.sqrt(delta) + 2 * np.sqrt(sketch_dims) * gamma + 4 * UNIT32)


def projection_error(dim, n_coordinates):
    """Greatest distance between float32 PCA coordinates x basis - mean basis and the exact ones.

    A coordinate is off by gamma_d from its dot product and 8 u from rounding its operands and the offset.
    """
    return float(np.sqrt(n_coordinates) * (dim + 16) * UNIT32 * 1.001)


def squared_distance_error(n_coordinates, length_a, length_b):
    """Greatest error of |a|^2 + |b|^2 - 2ab in float32, for rows of at most these lengths."""
    return 2 * (n_coordinates + 8) * UNIT32 * (length_a + length_b) ** 2


def border_excess(points, labels, centroids, offsets):
    """How much farther each point is from every centroid than from its own, squared.

    points: (n, c) float32; labels: (n,); centroids: (K, c) float32; offsets: (K,) float32, |centroid|^2.
    Returns (n, K) float32: |z - c_B|^2 - |z - c_label|^2, off by at most two `squared_distance_error`.
    With labels None, returns the squared distances less |z|^2. Memory: 4 n K bytes.
    """
    excess = points @ (-2 * centroids.T)
    excess += offsets
    if labels is not None:
        excess -= np.take_along_axis(excess, labels[:, None], axis=1)
    return excess
