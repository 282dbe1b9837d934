"""The report: one HTML file that shows what was found and what other choices would give, whole without a network."""

import base64
import itertools
import json
import math
import os
import re
from collections import Counter
from functools import lru_cache, partial
from html import escape
from pathlib import Path

import numpy as np

from neardup import NeardupError, plots
from neardup.grouping.chains import UNCUT
from neardup.input.preview import thumbnail
from neardup.machine import mirror
from neardup.machine.files import atomic, read_csv, read_json, read_json_items
from neardup.machine.npy import read_npz
from neardup.stages.artifacts import REPORT, TIMES
from neardup.words import counted, exact, in_words, percent, shorten

_SAMPLE, _MEMBERS, _LOSSES = 12, 12, 30  # groups of a kind, rows of a group, lines of a table
_SORTED_LOSSES = 1000  # lines of which those are taken at a time
_TEXT, _ID, _STEPS = 400, 120, 4  # characters of a text, of an id; rows of a path at each of its ends
_WORD_BYTES, _IMAGE_BYTES = 1_500_000, 2_700_000  # of what is shown of rows and groups; of thumbnails
_ROW_MARKUP, _STEP_MARKUP, _GROUP_MARKUP = 200, 90, 450  # bytes around what is shown of a row, in a path, of a group
_CHAINS = _WORD_BYTES // (3 * (_ROW_MARKUP + _STEP_MARKUP) + _GROUP_MARKUP)  # that may fit: each has three rows
_PIXELS = 112  # of a thumbnail's longer side
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
        "examples": [(step, _fitting(shown, pairs)) for step, pairs in examples],
        **_pictures(shown),
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


class Shown:
    """Rows as a page shows them: id, text, and a picture in the page itself, as long as there is room for those.

    rows: all that may be shown; room: bytes that are left for all that is no picture; unread: {id: file} of pictures
    that can't be read, None of one that isn't looked for; without_room: ids of those that are left out, here or there,
    pictured: of those that aren't.
    """

    def __init__(self, preview, rows):
        self.preview, self.room, self.image_room = preview, _WORD_BYTES, _IMAGE_BYTES
        self.unread, self.without_room, self.pictured = {}, set(), set()
        rows = np.unique(np.array(rows, dtype=np.int64))
        known = zip(preview.ids.take(rows), preview.texts(rows, _TEXT + 1), strict=True)
        self._known = dict(zip(rows.tolist(), known, strict=True))

    def row(self, row):
        """{id, text, image, url} of a row."""
        name, text = self._known[row]
        row = {"id": shorten(name, _ID, _ID // 3), "text": shorten(text, _TEXT), "url": self.preview.url(name)}
        image = self._image(name)
        self.spend(_ROW_MARKUP, *row.values(), image and (row["text"] or row["id"]))  # which stand for it once more
        return row | {"image": image}

    def group(self, group, path):
        """A group of `_group` with its rows, and its path as in `_path`, or None."""
        self.spend(_GROUP_MARKUP)
        for _, name, _ in itertools.chain(*path["ends"]) if path else ():
            self.spend(_STEP_MARKUP, name)
        return group | {"members": [m | self.row(m["row"]) for m in group["members"]], "path": path}

    def spend(self, markup, *texts):
        """Count bytes that go into the page."""
        self.room -= markup + sum(len(escape(text).encode()) for text in texts if text)

    def _image(self, name):
        """A picture as a data: URL, or None where there is none, or no room left, which is counted."""
        if not self.preview.is_of_files:
            return None
        path = self.preview.image(name)
        if self.image_room < 0 and path and os.access(path, os.R_OK):
            self.without_room.add(name)
            return None
        data = path and thumbnail(path, _PIXELS)
        if not data:
            self.unread[name] = path
            return None
        self.image_room -= len(data) * 4 // 3
        self.pictured.add(name)
        return "data:image/webp;base64," + base64.b64encode(data).decode()


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
    examples = [(step, _fitting(shown, pairs)) for step, pairs in examples]
    found["chains"] = groups_of("chains")
    return {"examples": examples, "groups": found, **_pictures(shown)}


def _pictures(shown):
    """What pages say of those that aren't shown. shown: `Shown`, of which all is done."""
    unread = [shorten(str(path), _TEXT, _TEXT // 2) for path in shown.unread.values() if path]
    outside = [shorten(name, _ID) for name, path in shown.unread.items() if not path]
    folder = shown.preview.folder if outside else None
    return {"unread": unread, "outside": outside, "folder": folder, "without_room": shown.without_room - shown.pictured}


def _fitting(shown, pairs):
    """Those pairs of `_examples` that there is room for, with what is `Shown` of their rows."""
    return [(similarity, shown.row(a), shown.row(b)) for similarity, a, b in pairs if shown.room >= 0]


def _chosen(groups, threshold):
    """Numbers of groups to look at, by kind: the largest, a sample of the others, and as many chains as may fit."""
    largest = np.argsort(-groups.sizes, kind="stable")[:_SAMPLE]
    rest = np.setdiff1d(np.arange(len(groups)), largest, assume_unique=True)
    some = np.sort(np.random.default_rng(0).choice(rest, min(_SAMPLE, len(rest)), replace=False))
    chains = np.nonzero(groups.are_chains(threshold))[0][:_CHAINS]
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
    ends = [[(place, shorten(name, _ID, _ID // 3), link) for place, name, link in end] for end in ends]
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
        value = shorten(line["value"], _ID, _ID // 3)
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
