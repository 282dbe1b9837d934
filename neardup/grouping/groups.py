"""Groups: rows joined by pairs, directly or through others, as flat arrays."""

from dataclasses import dataclass

import numpy as np

from neardup.order import stable_order
from neardup.ranges import size_ranges


@dataclass(frozen=True)
class Groups:
    """All groups of two or more rows, in the order of their smallest rows.

    rows: (m,) int64, the members of group g at bounds[g] to bounds[g + 1], ascending; bounds: (G + 1,) int64;
    similarity: (m,) float64, of each member to its representative; representative: (G,) int64, a row each;
    cluster: (G,) int32, the K-means cluster of the representative.
    """

    rows: np.ndarray
    bounds: np.ndarray
    similarity: np.ndarray
    representative: np.ndarray
    cluster: np.ndarray

    def __len__(self):
        return len(self.representative)

    @property
    def smallest(self):
        """The smallest row of each group, (G,) int64."""
        return self.rows[self.bounds[:-1]]

    @property
    def sizes(self):
        """Members of each group, (G,) int64."""
        return np.diff(self.bounds)

    @property
    def weakest(self):
        """Lowest similarity of a member to its representative, (G,) float64."""
        return np.minimum.reduceat(self.similarity, self.bounds[:-1]) if len(self) else self.similarity

    def are_chains(self, threshold):
        """Which groups have a member below the threshold from their representative, (G,) bool."""
        return self.weakest < threshold

    def dropped(self, n_rows):
        """Which of all rows are in a group and not its representative, (n_rows,) bool."""
        drop = np.zeros(n_rows, dtype=bool)
        drop[self.rows] = True
        drop[self.representative] = False
        return drop

    def members(self, number):
        """Where the members of a group are in `rows` and `similarity`."""
        return slice(int(self.bounds[number]), int(self.bounds[number + 1]))

    def name(self, number):
        """merged-cluster_{cluster of the representative}_{size}_{number}."""
        size = self.bounds[number + 1] - self.bounds[number]
        return f"merged-cluster_{self.cluster[number]}_{size}_{number}"

    def blocks(self, most):
        """Ranges [low, high) of groups with at most `most` members together, or of one larger group."""
        return size_ranges(self.bounds, most)


def members_and_bounds(smallest):
    """Rows of groups of two or more, by group then row, and the bounds of the groups. smallest: as in `components`."""
    sizes = np.bincount(smallest, minlength=len(smallest))
    rows = np.nonzero(sizes[smallest] > 1)[0]
    rows = rows[stable_order(smallest[rows])]
    return rows, np.cumulative_sum(sizes[sizes > 1], include_initial=True)
