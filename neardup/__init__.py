"""What several of the five scripts need, or one idea of a stage. The words used throughout, each for one thing:

row             one vector of the input, by its global number, counted from 0 in shard order
id              the name of a row
shard           an input file
piece           a shard, or a part of a large one, whose rows a stage keeps in files of their own
block           rows that are handled together
part            a file of a stage's work in progress, from which an interrupted run goes on
cluster         the rows of one K-means centroid
reach           how far apart the rows of a pair, or their sketches, are at most
visitor         a row so near the border to a neighbouring cluster that a pair of it could lie there
margin          how far a row is from that border, at least
sketch          the first PCA coordinates and the length of what they leave out; it is what is searched
candidate       two rows that the sketch can't tell apart from a pair
pair            row_a < row_b, and their similarity, at or above the threshold
similarity      cosine of two rows in float64, rounded to 15 decimals
threshold       lowest similarity of a pair, inclusive
group           near-duplicates: rows joined by pairs, and the answer
representative  the row of a group that is kept
chain           a group with a member below the threshold from the representative
bridge          a pair without which a group would fall apart
crowd           rows that repeat by the hundred or more, so that nearly all of them are pairs
"""

import os

# Arrow's own allocator sets 1 GiB of addresses aside, half of what a process limited to 2 GiB has
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


class NeardupError(Exception):
    """Bad input or a missing artifact: one sentence that says what, where, and what to do."""
