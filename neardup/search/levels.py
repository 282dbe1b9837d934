"""What is compared of rows, one after the other, until few are near: chosen by a sample; and within which reach."""

import math

import numpy as np

from neardup.search import geometry
from neardup.search.candidates import DENSE, near_in_all

_FIRST_DIMS = 16, 24, 32  # coordinates of the sketch that are compared first, the rest only for what they let through
_NS = 0.11, 0.0102, 120  # of a distance: always; for each coordinate compared first; times the share that is near then
_NS_DENSE, _NS_ALONE = (0.7, 0.017), (60, 0.6)  # of a distance in a matrix, or by itself: always; for each coordinate
_USELESS = 4  # times as many near as dense is, which sketches leave in all clusters where they aren't worth comparing
_LONGER = 2 ** (1 / 4)  # longer sketches that are tried have so many times more coordinates than the one before
_SAMPLED_CLUSTERS, _SAMPLED_ROWS = 4, 512  # and rows of each, to choose what is compared first


def compared_first(prepared, reach):
    """How many coordinates of sketches to compare first, by a sample of the largest clusters; as a run began with.

    As `first_dims` has it. prepared: `Prepared`; reach: greatest distance of sketches of a pair.
    """

    def chosen():
        samples = [sketches[at] for (_, sketches), at in sampled(prepared.sample())]
        return np.array(first_dims(samples, reach), dtype=float)

    n_first, nanoseconds, dense = prepared.stage.once(chosen, "compared_first").tolist()
    return int(n_first), nanoseconds, bool(dense)


def compared_next(prepared, reduced, reach):
    """What to compare next, by half of the same sample; as a run began with. As `next_dims` has it.

    prepared: `Prepared`; reduced: a function that opens all PCA coordinates of all rows.
    """

    def chosen():
        samples = [reduced().gather(rows[at[::2]]) for (rows, _), at in sampled(prepared.sample())]
        return np.array(next_dims(samples, prepared.n_first, prepared.clusters.width - 1, reach))

    sketches, longer = prepared.stage.once(chosen, "compared_next").tolist()
    return bool(sketches), longer


def sampled(clusters):
    """Yield rows and sketches of some of the largest clusters, and places of some of those."""
    for cluster in np.argsort(-np.diff(clusters.bounds), kind="stable")[:_SAMPLED_CLUSTERS].tolist():
        members = clusters.load(cluster)
        yield members, np.linspace(0, len(members[0]) - 1, min(len(members[0]), _SAMPLED_ROWS)).astype(int)


def reaches_of(reach, dim, reduction, sketches=True, longer=0):
    """{what is compared: greatest distance of a pair}: the first coordinates, then what those leave out.

    All coordinates only where sketches leave some out, the rows themselves where the PCA does. sketches, longer: of
    `next_dims`.
    """
    n_components, reaches = reduction["n_components"], {"first": reach.of_sketches}
    if sketches:
        reaches["sketches"] = reach.of_sketches
    if n_components > reduction["sketch_dims"]:
        reaches["coordinates"] = reach.radius + 2 * geometry.projection_error(dim, n_components)
    if longer:
        reaches["longer"] = reaches["coordinates"] + 4 * geometry.UNIT32 * geometry.LONGEST  # two tails' rounding
    if n_components < dim:
        reaches["unit"] = reach.radius + 2 * geometry.unit_error(dim)
    return reaches


def first_dims(samples, reach):
    """How many coordinates to compare first so that the search takes the least time, as samples tell.

    samples: sketches of rows of some clusters, (s, m + 1) float32 each; reach: greatest distance of two sketches.
    Returns them; the nanoseconds that a distance then takes in a thread, about; and whether rows are near nearly
    everywhere, over one in 32: all coordinates are compared as matrices then, which takes no longer if more are near.
    Each cluster counts as much, however large.
    """

    def choice(n_coordinates):
        shares = np.array([_share(sample, n_coordinates, reach) for sample in samples])
        nanoseconds = _NS[0] + _NS[1] * n_coordinates + _NS[2] * np.minimum(shares, 2 / DENSE).mean()
        return n_coordinates, nanoseconds, shares.mean() > 2 / DENSE

    choices = {min(d, samples[0].shape[1] - 1) for d in _FIRST_DIMS}
    return min(map(choice, sorted(choices)), key=lambda choice: choice[1])


def next_dims(samples, n_first, sketch_dims, reach):
    """What to compare between the first coordinates and all, so that the search takes the least time, as samples tell.

    samples: all PCA coordinates of rows of some clusters, (s, k) float32 each; reach: greatest distance of two rows.
    Returns whether to compare sketches, and how many coordinates longer ones have, 0 where they gain nothing.
    """
    steps = range(math.ceil(math.log(samples[0].shape[1] / sketch_dims, _LONGER)))
    lengths = [n_first, *(round(sketch_dims * _LONGER**step) for step in steps), samples[0].shape[1]]
    shares, of_sketches = [[_share(sample, n, reach) for n in lengths] for sample in samples], 1

    def nanoseconds(plan):
        """Of a distance, on average, where the lengths at these places are compared one after the other."""
        total = 0
        for of_sample in shares:
            near = of_sample[0]
            for place in (*plan, -1):
                always, each = _NS_DENSE if near * DENSE > 1 else _NS_ALONE
                total += (always + each * lengths[place]) * (1 if near * DENSE > 1 else near)
                near = of_sample[place]
        return total / len(shares)

    useless = all(of_sample[of_sketches] * DENSE > _USELESS for of_sample in shares)
    sketches = () if useless else (of_sketches,)
    plans = [(), *((place,) for place in range(of_sketches + 1, len(lengths) - 1))]
    longer = min(plans, key=lambda plan: nanoseconds(sketches + plan))
    return not useless, lengths[longer[0]] if longer else 0


def _share(sample, n_coordinates, reach):
    """What share of any two rows is near in so many coordinates. sample: (s, m + 1) or (s, k) float32."""
    short = geometry.shorten(sample, n_coordinates)
    return (np.count_nonzero(near_in_all(short, short, reach)) - len(short)) / max(1, len(short)) ** 2
