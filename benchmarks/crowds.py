"""All five scripts where a fifth of the rows are one and the same, or nearly.

    python benchmarks/crowds.py [--rows 100000] [--pairs joining] [--folder FOLDER]

Against the same number of rows without a crowd; with the pairs that join groups only, or with all of them, which take
16 GB on disk.
"""

import argparse
import shutil
from pathlib import Path

import measure
from generate import CROWD_SPREAD


def main():
    """Measure the three sets, one after the other, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--pairs", choices=["joining", "all"], default="joining")
    parser.add_argument("--folder", type=Path, default=Path("work-benchmark"))
    parser.add_argument("--name", default="crowds", help="of the results' files")
    given = parser.parse_args()
    crowd = given.rows // 5
    table = {}
    for name, options in {
        "no crowd": {},
        "a fifth identical": {"crowd": crowd},
        "a fifth nearly identical": {"crowd": crowd, "crowd_spread": CROWD_SPREAD},
    }.items():
        data, work = given.folder / "crowd", given.folder / "work-crowd"
        measure.generate(data, given.rows, **options)
        stages = measure.pipeline(data, work, n_clusters="None", pairs=given.pairs)
        groups = measure.results_of(work, "045_merge")
        table[name] = {
            "total_s": measure.seconds(stages),
            "peak_memory_mb": measure.peak_memory(stages),
            "stages": stages,
            "pairs_kept": measure.results_of(work, "04_neighbor_search")["pairs"],
            "groups": groups["groups"],
            "largest": groups["largest"][0]["size"],
            "audit": measure.results_of(work, "04_neighbor_search")["audit"]["missed"],
        }
        print(name, table[name], flush=True)
        shutil.rmtree(data)
        shutil.rmtree(work)
    measure.save(given.name, {"rows": given.rows, "crowd": crowd, "pairs": given.pairs, "sets": table})
    measure.save_plot(given.name, lambda axes: draw(axes, table))


def draw(axes, table):
    """Seconds of each set."""
    axes.barh(list(table), [t["total_s"] for t in table.values()])
    axes.set(xlabel="seconds, five scripts, process starts included")
    axes.invert_yaxis()


if __name__ == "__main__":
    main()
