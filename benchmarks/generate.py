"""A CLIP-like set of any size, out of core and seeded: shards of unit rows with ids, near-duplicates planted.

Each part stands for a property of real CLIP embeddings (image towers of ViT-B/32 to H/14 over web data):

mean offset     all rows share a direction: the modality's narrow cone, so that random rows have cosines of
                about 0.2, not 0 (Liang et al., Mind the Gap, 2022)
topics          rows gather around centres whose sizes follow Zipf's law: few subjects fill most of a crawl
spectrum        variance falls as a power of the component, both between topics and inside them; the exponent
                is set so that 95 % of it lie in about 350 of 1,024 components, and the axes are rotated at
                random, for no coordinate is special
near-duplicates a tenth of the rows lie near others: copies (cosine 1), re-encodings (0.99 and above), crops and
                edits (down to 0.80); as pairs, as stars (many edits of one original) and as chains (each an
                edit of the one before, so that the ends are not alike)
order           shuffled: duplicates are not found next to each other, nor in one shard
"""

import argparse
import json
from pathlib import Path

import numpy as np

_BLOCK = 8192  # rows made together
_SHARD_ROWS = 50_000
_OFFSET = 0.45  # length of the mean of the unit rows
_BETWEEN = 0.5  # share of the variance that lies between topics
_EXPONENT, _SHIFT = 1.55, 10  # variance of component i is (i + 10)^-1.55: flat at first, as that of real sets
_DUPLICATES = 0.1  # share of the rows that belong to planted groups
CROWD_SPREAD = 0.004  # distance of nearly identical rows to their centre


def generate(folder, n_rows, dim=1024, seed=0, crowd=0, crowd_spread=0.0):
    """Write shards part_00000.npy … (50,000 rows each, float32) and their ids. Memory: a block, and 8 bytes a row.

    crowd: that many rows are copies of a single one, each moved by `crowd_spread` in a direction of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    place = rng.permutation(n_rows)  # row i of the making stands at place[i]
    shards = [_new_shard(folder, s, min(_SHARD_ROWS, n_rows - s), dim) for s in range(0, n_rows, _SHARD_ROWS)]
    world = make_world(rng, n_rows, dim)
    n_single = n_rows - int(n_rows * _DUPLICATES) - crowd
    made = 0
    while made < n_rows:
        count = min(_BLOCK, n_rows - made)
        if made < n_single:
            rows = draw_rows(rng, world, min(count, n_single - made))
        elif made < n_rows - crowd:
            rows = draw_groups(rng, world, min(count, n_rows - crowd - made))
        else:
            centre = draw_rows(np.random.default_rng(seed + 1), world, 1)
            rows = np.repeat(centre, count, axis=0)
            if crowd_spread:
                rows = step_away(rng, rows, np.full(count, 1 - crowd_spread**2 / 2))
        scatter(shards, place[made : made + len(rows)], rows)
        made += len(rows)


def make_world(rng, n_rows, dim):
    """Axes scaled by the spectrum, (d, d) float32; the offset, (d,); topic centres (t, d); their shares (t,)."""
    variance = (np.arange(1, dim + 1) + _SHIFT) ** -_EXPONENT
    scale = np.sqrt(variance / variance.sum() * (1 - _OFFSET**2))
    rotation, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    axes = (scale[:, None] * rotation).astype(np.float32)
    offset = rng.standard_normal(dim)
    offset *= _OFFSET / np.linalg.norm(offset)
    n_topics = max(4, round(n_rows**0.5))
    centres = rng.standard_normal((n_topics, dim), dtype=np.float32) @ axes * np.float32(_BETWEEN**0.5)
    shares = 1 / np.arange(1, n_topics + 1)
    return axes, offset.astype(np.float32), centres, shares / shares.sum()


def draw_rows(rng, world, count):
    """Rows of random topics, (count, d) float32, unit length."""
    axes, offset, centres, shares = world
    topic = rng.choice(len(centres), count, p=shares)
    noise = rng.standard_normal((count, len(offset)), dtype=np.float32) @ axes
    return unit(offset + centres[topic] + noise * np.float32((1 - _BETWEEN) ** 0.5))


def draw_groups(rng, world, count):
    """Rows in groups of 2 to 9: pairs, stars and chains, copies among them."""
    sizes = []
    while sum(sizes) < count:
        sizes.append(min(2 + int(rng.geometric(0.6)) - 1, 9, count - sum(sizes)))
    rows, first = np.empty((count, len(world[1])), dtype=np.float32), np.cumsum([0, *sizes[:-1]])
    rows[first] = draw_rows(rng, world, len(sizes))
    sizes, chain = np.array(sizes), rng.random(len(sizes)) < 0.5
    for step in range(1, int(sizes.max())):
        here = first[sizes > step]
        origin = np.where(chain[sizes > step], here + step - 1, here)
        away = np.where(rng.random(len(here)) < 0.2, 0, 10 ** rng.uniform(-4, np.log10(0.2), len(here)))
        rows[here + step] = step_away(rng, rows[origin], 1 - away)
    return rows


def step_away(rng, rows, cosine):
    """Unit rows at these cosines (n,) from unit rows (n, d), in random directions; at cosine 1 the same bytes."""
    away = rng.standard_normal(rows.shape, dtype=np.float32)
    away = unit(away - np.einsum("ij,ij->i", away, rows)[:, None] * rows)
    cosine = cosine[:, None].astype(np.float32)
    return np.where(cosine == 1, rows, unit(cosine * rows + np.sqrt(1 - cosine**2) * away))


def unit(rows):
    """Rows scaled to unit length."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def scatter(shards, places, rows):
    """Put rows at their places; shards are of _SHARD_ROWS rows each."""
    order = np.argsort(places)
    places, rows = places[order], rows[order]
    bounds = np.searchsorted(places, np.arange(len(shards) + 1) * _SHARD_ROWS)
    for shard, path in enumerate(shards):
        if bounds[shard] < bounds[shard + 1]:
            here = slice(bounds[shard], bounds[shard + 1])
            np.load(path, mmap_mode="r+")[places[here] - shard * _SHARD_ROWS] = rows[here]


def _new_shard(folder, start, rows, dim):
    path = folder / f"part_{start // _SHARD_ROWS:05d}.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (rows, dim))
    ids = [f"image-{row:010d}" for row in range(start, start + rows)]
    path.with_suffix(".txt").write_text(json.dumps(ids))
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("n_rows", type=int)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--crowd", type=int, default=0, help="rows that are alike")
    parser.add_argument("--crowd-spread", type=float, default=0.0, help=f"0: identical; {CROWD_SPREAD}: nearly")
    arguments = vars(parser.parse_args())
    generate(**arguments)
