"""Stage 5 of 5: join the pairs into groups, choose what to keep of each, and show what other choices would give."""

from functools import partial
from itertools import chain

import numpy as np

from neardup import NeardupError, plots
from neardup.grouping import contamination
from neardup.grouping.chains import explain_chains, sparse, split_chains
from neardup.grouping.changes import Decisions, apart
from neardup.grouping.export import write_copies, write_graph
from neardup.grouping.losses import losses, warnings
from neardup.grouping.outputs import (
    read_groups,
    write_examples,
    write_hdf5,
    write_lists,
    write_parquet,
    write_pickle,
    write_thresholds,
)
from neardup.grouping.report import write_report, write_report_against
from neardup.grouping.representatives import Representatives, preference
from neardup.grouping.stars import stars
from neardup.grouping.summary import report, summary
from neardup.grouping.thresholds import (
    groups_at,
    histogram,
    pair_counts,
    spanning_forest,
    steps,
    strongest_pairs,
    threshold_for,
)
from neardup.input.embeddings import open_shards
from neardup.input.id_table import IdTable
from neardup.input.preview import Preview
from neardup.machine import engine
from neardup.machine.files import write_csv, write_json_items
from neardup.machine.mirror import here, shown
from neardup.machine.npy import map_npy, read_npy
from neardup.notices import notice
from neardup.script import main, tell
from neardup.search.pairs import found_pairs
from neardup.stages.artifacts import REPORT
from neardup.stages.runs import begin
from neardup.words import counted


def run(config):
    """Write work/045_merge and the report, or find them finished; against a second set what `contamination` finds."""
    stage, shards, earlier = begin(config, "045_merge")
    variance, is_alone = earlier["01_pca_variance"], config.against_dir is None
    ids = IdTable.open(variance.path("ids.arrow"))
    preview = Preview(config.preview, shards, ids)
    preview.check()
    if not stage.finished:
        stage.needs(4 * variance.path("ids.arrow").stat().st_size)
        find = merge if is_alone else contamination.find
        stage = stage.finish(find(stage, earlier, preview, config))
    elif not here(stage.folder / REPORT).exists():  # which isn't hashed, so that a stage is finished without
        all_stages = earlier | {stage.name: stage}
        if is_alone:
            groups = read_groups(stage.path("merged_clusters.h5"))
            write_report(all_stages, config, preview, groups=groups, found=stage.results)
        else:
            write_report_against(all_stages, stage.results, config, preview)
    if config.graph_group is not None:
        path = draw_graph(config.work_dir / "graphs", stage, earlier["04_neighbor_search"], ids, config.graph_group)
        if not config.json_output:
            print(f"-> {shown(path)} (group {config.graph_group} as GraphML)")
    tell(config, stage, partial(report, preview, config) if is_alone else contamination.report)


def merge(stage, earlier, preview, config):
    """Join the pairs, choose what to keep, and write the stage's files. Returns its results, small JSON values."""
    engine.preload("matplotlib.figure")
    variance, ids, shards = earlier["01_pca_variance"], preview.ids, preview.shards
    rejected, repeated = (read_npy(variance.path(f"{name}_rows.npy")) for name in ("rejected", "repeated"))
    search = found_pairs(earlier["04_neighbor_search"], len(ids), stage.memory / 4)
    if config.keep_previous and not stage.growth and stage.final.exists():
        notice("keep_previous: no shard is as it was in the run before, so none of the rows that it kept is known")
    before = Decisions(stage, rejected) if stage.growth and (config.keep_previous or stage.growth.changes) else None
    kept = before.kept if before and config.keep_previous else None
    every = stage.once(lambda: spanning_forest(search.blocks(), search.memory), "forest")
    forest = every if kept is None else apart(every, kept)
    n_valid = len(ids) - len(rejected)
    threshold = choose_threshold(forest, n_valid, search.threshold, config, kept)
    n_apart = np.count_nonzero(every["similarity"] >= threshold) - np.count_nonzero(forest["similarity"] >= threshold)
    del every
    choose = chooser(stage, shards, earlier["03_kmeans"], kept, config, preview)
    table, connected = tabulate(choose("at", forest), search, forest, threshold, n_valid)
    pairs, joining = search.at(threshold), forest.compress(forest["similarity"] >= threshold)
    links = sparse(connected, joining, pairs)
    groupings, uncut = group_otherwise(choose("split"), connected, pairs, links)
    groups = groupings[config.grouping]
    keep = write_groups(stage, groups, ids, threshold, rejected=rejected, repeated=repeated)
    found = summary(groups, threshold, keep, len(rejected))
    found["changes"] = before and before.compared(groups)
    found["held_apart"] = int(n_apart)
    found |= write_choices(stage, search, preview, table=table, threshold=threshold, sizes=groups.sizes)
    write_json_items(stage.path("chains.json"), explain_chains(groups, links, ids))
    found |= write_warnings(stage, shards, groups, config, pairs=pairs, forest=joining)
    found |= {"groupings": {name: outline(some, threshold) for name, some in groupings.items()}, "uncut": uncut}
    found["not_exported"] = write_copies(stage, shards, keep, ids, config)
    stage.note_times()
    write_report(earlier | {stage.name: stage}, config, preview, groups=groups, found=found)
    return found


def choose_threshold(forest, n_valid, lowest, config, kept):
    """The threshold that is set, or the highest one that leaves no more than `target_rows`.

    kept: rows that have to stay, (n,) bool, or None. Raises NeardupError where no threshold leaves so few.
    """
    if config.target_rows is None:
        return config.threshold
    n_kept = 0 if kept is None else np.count_nonzero(kept)
    if n_kept > config.target_rows:
        raise NeardupError(
            f"keep_previous keeps {counted(n_kept, 'row')} that the run before kept, more than the "
            f"{config.target_rows:,} of target_rows: set that to at least {n_kept}, or keep_previous to false"
        )
    return threshold_for(forest, n_valid, config.target_rows, lowest)


def chooser(stage, shards, kmeans, kept, config, preview):
    """A function that makes `Representatives`, by the name of their files, and by a forest that joins groups of two."""
    preferred, labels = preference(config.representative, shards, preview.lengths), map_npy(kmeans.path("labels.npy"))
    rows = open_shards(shards)

    def choose(name, forest=None):
        strongest = None if forest is None else strongest_pairs(forest, len(rows))
        return Representatives(stage, name, rows, preferred, labels, config, kept, strongest)

    return choose


def tabulate(representatives, search, forest, threshold, n_valid):
    """What each threshold would give, and the groups at the chosen one: ([{column: value}], Groups), descending.

    Groups of one threshold that are there at the next are not looked at again. Where not all pairs are known, they tell
    of the chosen threshold only.
    """
    thresholds, table, chosen = steps(search.threshold, threshold) if search.complete else [threshold], [], None
    counts = pair_counts(search.blocks(), thresholds).tolist()
    for step, pairs in zip(thresholds, counts, strict=True):
        groups = representatives.of(*groups_at(forest, search.n_rows, step))
        if step == threshold:
            chosen = groups
        of_groups = outline(groups, step)
        table.append({"threshold": step, "pairs": pairs, "kept": n_valid - of_groups["dropped"]} | of_groups)
    return table, chosen


def outline(groups, threshold):
    """The groups in a few numbers."""
    return {
        "groups": len(groups),
        "dropped": len(groups.rows) - len(groups),
        "largest": int(groups.sizes.max(initial=0)),
        "chains": int(np.count_nonzero(groups.are_chains(threshold))),
    }


def group_otherwise(representatives, connected, pairs, links):
    """{grouping: Groups}, as far as the pairs allow it: stars and cuts need all, not just those that join.

    And how many chains `split` leaves uncut, for they are too large. links: of `sparse`.
    """
    groupings, uncut = {"connected": connected}, 0
    if pairs.complete:
        groupings["star"] = stars(pairs, representatives.preferred, representatives.labels, representatives.kept)
        groupings["split"], uncut = split_chains(representatives, connected, links)
    return groupings, uncut


def write_groups(stage, groups, ids, threshold, *, rejected, repeated):
    """The groups in all their files. Returns which rows are kept, (n,) bool.

    rejected: their rows; repeated: those of ids that several have.
    """
    write_hdf5(stage.path("merged_clusters.h5"), groups, ids, threshold)
    write_pickle(stage.path("merged_clusters.pkl"), groups, ids)
    write_parquet(stage.path("groups.parquet"), groups, ids, threshold)
    return write_lists(stage.folder, groups, rejected, repeated, ids)


def write_choices(stage, search, preview, *, table, threshold, sizes):
    """What each threshold would give, with pairs to look at. table, sizes: of `tabulate`, and of its groups."""
    write_thresholds(stage.path("thresholds.csv"), table)
    steps_of = [line["threshold"] for line in table]
    write_examples(stage.path("examples.csv"), search.blocks(), steps_of, preview)
    counts, edges = histogram(search.blocks(), search.threshold)
    figure = plots.groups(counts, edges, sizes, lowest=search.threshold, threshold=threshold)
    plots.save_png(stage.path("groups.png"), figure)
    return {"thresholds": table, "similarities": [counts.tolist(), edges.tolist()]}


def write_warnings(stage, shards, groups, config, *, pairs, forest):
    """What is dropped of each shard, and lines about what is suspiciously much.

    pairs: `Found`; forest: the one that joins connected groups.
    """
    lost = losses(shards, config.tabulated, groups.dropped(pairs.n_rows))
    write_csv(stage.path("losses.csv"), chain([("by", "value", "rows", "dropped")], lost))
    pair_blocks = pairs.blocks() if config.grouping == "star" else [forest]
    if not pairs.complete:  # some that join a group, not the strongest
        pair_blocks = None
    return {"warnings": warnings(groups, lost.of_shards, pairs.n_rows, pair_blocks)}


def draw_graph(folder, stage, search, ids, number):
    """Write a group as GraphML. Returns the path of the file."""
    groups = read_groups(stage.path("merged_clusters.h5"))
    pairs = found_pairs(search, len(ids)).at(stage.results["threshold"])
    path = folder / f"group_{number}.graphml"
    write_graph(path, groups, number, pairs, ids)
    return path


if __name__ == "__main__":
    main(run, __doc__)
