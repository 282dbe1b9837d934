"""The report: one HTML file that shows what was found and what other choices would give, whole without a network."""

import json
import math
import re
from collections import Counter
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from neardup import NeardupError, plots
from neardup.grouping.chains import UNCUT
from neardup.grouping.shown import MOST_CHAINS, Shown, shorten_id
from neardup.machine import mirror
from neardup.machine.files import atomic, read_csv, read_json, read_json_items
from neardup.machine.npy import read_npz
from neardup.stages.artifacts import REPORT, TIMES
from neardup.words import counted, exact, in_words, percent

_SAMPLE, _MEMBERS, _LOSSES = 12, 12, 30  # groups of a kind, rows of a group, lines of a table
_STEPS = 4  # rows of a path at each of its ends
_SORTED_LOSSES = 1000  # lines of which those are taken at a time
_SECRET = re.compile(r"(?<=:)//[^/]*@|(?<=\?).*")  # who logs in, in a URL, and what it is signed with


def write_report(stages, config, preview, *, groups, found):
    """Write report.html into the folder of stage 045. Memory: 40 bytes a group, and 10 MB.

    stages: {name: `Stage`} of all, finished, or the last one being built; groups, found: its `Groups` and results.
    """
    _write_page(stages["045_merge"], "report.html", _content(stages, config, preview, groups=groups, found=found))


def write_report_against(stages, found, config, preview):
    """As `write_report`, of a set against a second one. found: results of stage 045."""
    merge, examples = stages["045_merge"], _examples(stages["045_merge"])
    shown = Shown(preview, [row for _, pairs in examples for pair in pairs for row in pair[1:]])
    content = {
        "name": _name(config.data_dir),
        "reference": _name(config.against_dir),
        "found": found,
        "examples": [(step, shown.fitting(pairs)) for step, pairs in examples],
        **shown.left_out(),
        **_of_run(stages, config),
    }
    _write_page(merge, "against.html", content)


def _write_page(stage, template, content):
    text = _templates().get_template(template).render(content)
    with atomic(stage.folder / REPORT) as temporary:
        temporary.write_text(text, encoding="utf-8")


@lru_cache
def _templates():
    """The templates of pages, with the filters that they use."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = FileSystemLoader(Path(__file__).with_name("pages"))
    environment = Environment(loader=pages, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "n": lambda number: f"{number:,}",
        "counted": counted,
        "sim": in_words,
        "share": percent,
        "exact": exact,
    }
    return environment


def _name(location):
    """The last part of a path or URL."""
    public = _public(location)
    return Path(public).name or public


def _public(location):
    """A path, or a URL without what may be secret."""
    text = str(location)
    return _SECRET.sub(lambda found: "//" * found[0].startswith("//"), text) if "://" in text else text


def _of_run(stages, config):
    """What the page of any run shows."""
    search = stages["04_neighbor_search"].results
    return {
        "audit": search["audit"],
        "searched": search["threshold"],
        "times": _times(stages),
        "settings": _settings(config),
        "work_dir": _public(mirror.shown(config.work_dir)),
    }


def _settings(config):
    """All settings as they are shown: without what may be secret, in URLs and in the options of a cluster."""
    settings = config.model_dump(mode="json")
    settings["scheduler_options"] = sorted(settings["scheduler_options"])
    return {k: _public(v) if isinstance(v, str) else v for k, v in settings.items()}


def _content(stages, config, preview, *, groups, found):
    """All that the template shows."""
    merge, variance = stages["045_merge"], stages["01_pca_variance"]
    total = found["kept"] + found["dropped"] + found["rejected"]
    return {
        "name": _name(config.data_dir),
        "found": found,
        "uncut": UNCUT,
        "total": total,
        "single": total - found["rows_in_groups"] - found["rejected"],
        "variance": variance.results,
        "grouping": config.grouping,
        "plots": _plots(variance, found, groups.sizes, config),
        "losses": _losses(merge),
        **_of_run(stages, config),
        **_looked_at(merge, groups, found["threshold"], preview),
    }


def _plots(variance, found, sizes, config):
    """{name: SVG element}."""
    variances = read_npz(variance.path("moments.npz"))["variances"]
    counts, edges = map(np.array, found["similarities"])
    table, threshold = found["thresholds"], found["threshold"]
    drawn = {
        "thresholds": (plots.thresholds, table, threshold),
        "groups": (partial(plots.groups, lowest=table[-1]["threshold"], threshold=threshold), counts, edges, sizes),
        "scree": (plots.scree, variances, variance.results["n_components"], config.target_variance),
    }
    return {name: plots.page_svg(*how) for name, how in drawn.items()}


def _looked_at(merge, groups, threshold, preview):
    """Groups by kind and pairs by threshold, to look at, as far as there is room: chains come last for that."""
    kinds, examples = _chosen(groups, threshold), _examples(merge)
    chosen = {number: _group(groups, number) for numbers in kinds.values() for number in numbers}
    paths = _paths(merge.path("chains.json"), {group["name"] for group in chosen.values()})
    rows = [member["row"] for group in chosen.values() for member in group["members"]]
    shown = Shown(preview, rows + [row for _, pairs in examples for pair in pairs for row in pair[1:]])

    def groups_of(kind):
        return [shown.group(chosen[n], paths.get(chosen[n]["name"])) for n in kinds[kind] if shown.room >= 0]

    found = {kind: groups_of(kind) for kind in ("largest", "random")}
    examples = [(step, shown.fitting(pairs)) for step, pairs in examples]
    found["chains"] = groups_of("chains")
    return {"examples": examples, "groups": found, **shown.left_out()}


def _chosen(groups, threshold):
    """Numbers of groups to look at, by kind: the largest, a sample of the others, and as many chains as may fit."""
    largest = np.argsort(-groups.sizes, kind="stable")[:_SAMPLE]
    rest = np.setdiff1d(np.arange(len(groups)), largest, assume_unique=True)
    some = np.sort(np.random.default_rng(0).choice(rest, min(_SAMPLE, len(rest)), replace=False))
    chains = np.nonzero(groups.are_chains(threshold))[0][:MOST_CHAINS]
    return {"largest": largest.tolist(), "random": some.tolist(), "chains": chains.tolist()}


def _group(groups, number):
    """A group: its kept row first, then the others by similarity, those least similar last even where not all fit."""
    here = groups.members(number)
    rows, similarity = groups.rows[here], groups.similarity[here]
    kept = rows == groups.representative[number]
    order = np.lexsort((rows, -similarity, ~kept))
    if len(order) > _MEMBERS:
        order = np.concatenate([order[: _MEMBERS // 2], order[-_MEMBERS // 2 :]])  # what isn't shown lies between
    columns = {"row": rows, "similarity": similarity, "kept": kept}
    members = zip(*(column[order].tolist() for column in columns.values()), strict=True)
    return {
        "name": groups.name(number),
        "size": len(rows),
        "weakest": float(similarity.min()),
        "members": [dict(zip(columns, member, strict=True)) for member in members],
    }


def _paths(path, names):
    """{name: of `_path`} of those chains that chains.json has a path of. Memory: that, and a chain."""
    found = {}
    for name, value in read_json_items(path):
        chain = json.loads(value) if name in names else {}
        if "path" in chain:
            found[name] = _path(chain["path"], chain["path_similarities"])
    return found


def _path(path, links):
    """The ends of a path, [(place, id, link to the next)] each, how many rows are between them, its weakest link."""
    steps = list(zip(range(1, len(path) + 1), path, [*links, None], strict=True))
    between = max(0, len(steps) - 2 * _STEPS)
    ends = [steps[:_STEPS], steps[_STEPS + between :]]
    ends = [[(place, shorten_id(name), link) for place, name, link in end] for end in ends]
    return {"ends": ends, "between": between, "weakest": min(links)}


def _examples(merge):
    """[(threshold, [(similarity, row, row)])], of each threshold some pairs."""
    found = {}
    for line in read_csv(merge.path("examples.csv")):
        pair = float(line["similarity"]), int(line["row_a"]), int(line["row_b"])
        found.setdefault(float(line["threshold"]), []).append(pair)
    return [*found.items()]


def _losses(merge):
    """{by: [(value, rows, dropped, share)]}, those that lose most first, and how many there are of each."""
    found, count = {}, Counter()
    for line in read_csv(merge.path("losses.csv")):
        rows, dropped = int(line["rows"]), int(line["dropped"])
        value = shorten_id(line["value"])
        most = found.setdefault(line["by"], [])
        most.append((value, rows, dropped, dropped / rows if rows else 0.0))
        count[line["by"]] += 1
        if len(most) == _SORTED_LOSSES:
            most[:] = _largest(most)
    return {by: (_largest(lines), count[by]) for by, lines in found.items()}


def _largest(lines):
    return sorted(lines, key=lambda line: -line[3])[:_LOSSES]


def _times(stages):
    """[(stage, seconds, peak memory in bytes)] of the runs that finished each, where their notes are as written."""
    found = []
    for name, stage in stages.items():
        try:
            took = read_json(stage.folder / TIMES)
            found.append((name, float(took["seconds"]), float(took["peak_bytes"])))
        except (FileNotFoundError, NeardupError, KeyError, TypeError, ValueError, OverflowError):
            continue  # nothing rests on them
    return [line for line in found if all(map(math.isfinite, line[1:]))]
