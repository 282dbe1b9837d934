"""The report: one HTML file that shows what was found and what other choices would give, whole without a network."""

import base64
import csv
import io
import json
import math
from pathlib import Path

import numpy as np
from markupsafe import escape

from neardup import NeardupError, plots
from neardup.artifacts import REPORT, TIMES
from neardup.files import atomic, read_json, read_json_items

_SAMPLE, _MEMBERS, _LOSSES = 12, 12, 30  # groups of a kind, rows of a group, lines of a table
_CHAIN_BYTES, _MARKUP_BYTES = 1_200_000, 150  # of all chains, pictures aside; of the markup around an id or a text
_CHAINS = _CHAIN_BYTES // (6 * _MARKUP_BYTES)  # that may fit: each has three rows and a path of three
_EXAMPLES = 20  # pairs a threshold
_TEXT = 400  # characters of a text
_PIXELS, _IMAGE_BYTES = 112, 3_000_000  # of a thumbnail's longer side; of all thumbnails


def write_report(stages, groups_and_found, config, preview):
    """Write report.html into the folder of stage 045. Memory: 40 bytes a group, and 10 MB.

    stages: {name: `Stage`} of all, finished but for the last; groups_and_found: its `Groups` and results.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "n": lambda number: f"{number:,}",
        "sim": lambda s: f"{s:.4f}",
        "share": lambda s: f"{s:.1%}",
    }
    text = environment.get_template("report.html").render(_content(stages, groups_and_found, config, preview))
    with atomic(stages["045_merge"].folder / REPORT) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _content(stages, groups_and_found, config, preview):
    """All that the template shows."""
    (groups, found), merge, variance = groups_and_found, stages["045_merge"], stages["01_pca_variance"]
    total, shown = found["kept"] + found["dropped"] + found["rejected"], Shown(preview)
    return {
        "name": Path(str(config.data_dir)).name or str(config.data_dir),
        "found": found,
        "total": total,
        "single": total - found["rows_in_groups"] - found["rejected"],
        "audit": stages["04_neighbor_search"].results["audit"],
        "variance": variance.results,
        "grouping": config.grouping,
        "plots": _plots(variance, found, groups.sizes, config),
        "groups": _groups(merge, groups, found["threshold"], shown),
        "examples": _examples(merge, shown),
        "losses": _losses(merge),
        "times": _times(stages),
        "settings": config.model_dump(mode="json"),
        "work_dir": str(config.work_dir),
    }


def _plots(variance, found, sizes, config):
    """{name: SVG element}."""
    with np.load(variance.path("moments.npz"), allow_pickle=False) as moments:
        variances = moments["variances"]
    counts, edges = map(np.array, found["similarities"])
    table, threshold = found["thresholds"], found["threshold"]
    drawn = {
        "thresholds": (plots.thresholds, table, threshold),
        "groups": (plots.groups, counts, edges, threshold, sizes),
        "scree": (plots.scree, variances, variance.results["n_components"], config.target_variance),
    }
    return {name: plots.page_svg(*how) for name, how in drawn.items()}


class Shown:
    """Rows as a page shows them: id, text, and a picture in the page itself, until those take 3 MB."""

    def __init__(self, preview):
        self.preview, self.left = preview, _IMAGE_BYTES

    def rows(self, rows):
        """[{id, text, image}] of these rows."""
        names, texts = self.preview.ids.take(rows), self.preview.texts(rows)
        return [
            {"id": name, "text": text[:_TEXT], "image": self._image(name), "url": self.preview.url(name)}
            for name, text in zip(names, texts, strict=True)
        ]

    def _image(self, name):
        """A picture as a data: URL, or None where there is none to be read, or no room left."""
        path = self.preview.image(name)
        if path is None or self.left < 0:
            return None
        from PIL import Image

        try:
            with Image.open(path) as image:
                image.thumbnail((_PIXELS, _PIXELS))
                data = io.BytesIO()
                image.convert("RGBA").save(data, "WEBP", quality=80)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # not there, or no picture
            return None
        self.left -= len(data.getvalue()) * 4 // 3
        return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()


def _groups(merge, groups, threshold, shown):
    """{kind: [groups to look at]}: the largest, a sample of the others, and chains as far as they fit."""
    largest = np.argsort(-groups.sizes, kind="stable")[:_SAMPLE]
    rest = np.setdiff1d(np.arange(len(groups)), largest)
    some = np.sort(np.random.default_rng(0).choice(rest, min(_SAMPLE, len(rest)), replace=False))
    chains = np.nonzero(groups.weakest < threshold)[0][:_CHAINS]
    paths = _paths(merge.path("chains.json"), {groups.name(n) for n in (*largest, *some, *chains)})
    found, left = {"largest": [], "random": [], "chains": []}, _CHAIN_BYTES
    for kind, numbers in (("largest", largest), ("random", some), ("chains", chains)):
        for number in numbers.tolist():
            if left < 0:
                break
            found[kind].append(_group(groups, number, shown, paths))
            left -= _bytes(found[kind][-1]) if kind == "chains" else 0
    return found


def _paths(path, names):
    """{name: (path, its links)} of those chains that chains.json has a path of. Memory: those, and a chain."""
    found = {}
    for name, value in read_json_items(path):
        if name in names:
            chain = json.loads(value)
            found[name] = chain.get("path", []), chain.get("path_similarities", [])
    return found


def _bytes(group):
    """What a group takes on the page, about, pictures aside."""
    texts = [text for m in group["members"] for text in (m["id"], m["text"])] + group["path"]
    return sum(_MARKUP_BYTES + len(escape(text).encode()) for text in texts)


def _group(groups, number, shown, paths):
    """A group: its kept row first, then the others by similarity, those least similar last even where not all fit."""
    here = groups.members(number)
    rows, similarity = groups.rows[here], groups.similarity[here]
    kept = rows == groups.representative[number]
    order = np.lexsort((rows, -similarity, ~kept))
    if len(order) > _MEMBERS:
        order = np.concatenate([order[: _MEMBERS // 2], order[-_MEMBERS // 2 :]])
    members = shown.rows(rows[order])
    for member, place in zip(members, order.tolist(), strict=True):
        member |= {"similarity": float(similarity[place]), "kept": bool(kept[place])}
    path, links = paths.get(groups.name(number), ([], []))
    return {
        "name": groups.name(number),
        "size": len(rows),
        "weakest": float(similarity.min()),
        "members": members,
        "path": path,
        "links": links,
    }


def _examples(merge, shown):
    """[(threshold, [(similarity, row, row)])], of each threshold some pairs."""
    found = {}
    with merge.path("examples.csv").open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            found.setdefault(float(line["threshold"]), []).append(line)
    examples = []
    for threshold, lines in found.items():
        lines = lines[:_EXAMPLES]
        first, second = (shown.rows([int(line[end]) for line in lines]) for end in ("row_a", "row_b"))
        similarity = [float(line["similarity"]) for line in lines]
        examples.append((threshold, list(zip(similarity, first, second, strict=True))))
    return examples


def _losses(merge):
    """{by: [(value, rows, dropped, share)]}, those that lose most first, and how many there are of each."""
    found = {}
    with merge.path("losses.csv").open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            rows, dropped = int(line["rows"]), int(line["dropped"])
            found.setdefault(line["by"], []).append((line["value"], rows, dropped, dropped / rows if rows else 0.0))
    return {by: (sorted(lines, key=lambda line: -line[3])[:_LOSSES], len(lines)) for by, lines in found.items()}


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
