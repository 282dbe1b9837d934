"""Stages 3 and 4 by threshold: seconds, share of all comparisons made, candidates for each true pair.

    python benchmarks/thresholds.py [--data DATA] [--rows 100000] [--folder FOLDER]

On a set that generate.py makes, or on a folder of shards.
"""

import argparse
from pathlib import Path

import measure

THRESHOLDS = (0.99, 0.98, 0.95, 0.90, 0.85, 0.80)


def main():
    """Measure all thresholds and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of shards; made where not given")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=Path("work-benchmark"))
    parser.add_argument("--name", default="thresholds", help="of the results' files")
    given = parser.parse_args()
    data, work = given.data or given.folder / f"rows-{given.rows}", given.folder / "work-thresholds"
    if not given.data and not data.exists():
        measure.generate(data, given.rows)
    before = measure.pipeline(data, work, measure.SCRIPTS[:3], n_clusters="None")
    table = []
    for threshold in THRESHOLDS:
        search = measure.pipeline(data, work, measure.SCRIPTS[3:4], n_clusters="None", threshold=threshold)
        found = measure.results_of(work, "04_neighbor_search")
        table.append(
            {
                "threshold": threshold,
                **search[measure.SCRIPTS[3]],
                "pairs": found["pairs"],
                "candidates_per_pair": round(found["candidates"] / max(found["pairs"], 1), 2),
                "compared_share": round(found["compared"] / (found["rows"] ** 2 / 2), 5),
                "missed": found["audit"]["missed"],
            }
        )
        print(table[-1], flush=True)
    measure.save(given.name, {"rows": found["rows"], "stage_3": before[measure.SCRIPTS[2]], "by_threshold": table})
    measure.save_plot(given.name, lambda axes: draw(axes, table))


def draw(axes, table):
    """Seconds, and the share of all comparisons that were made."""
    thresholds = [t["threshold"] for t in table]
    axes.plot(thresholds, [t["wall_s"] for t in table], "o-", label="seconds of stage 4")
    axes.set(xlabel="threshold", ylabel="seconds", ylim=(0, None))
    share = axes.twinx()
    share.plot(thresholds, [100 * t["compared_share"] for t in table], "s--", color="tab:orange", label="compared")
    share.set(ylabel="% of n²/2 compared", ylim=(0, None))
    axes.figure.legend(loc="outside upper center", ncols=2, frameon=False)


if __name__ == "__main__":
    main()
