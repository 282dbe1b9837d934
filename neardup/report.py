"""The report: one HTML file that shows what was found and what other choices would give, whole without a network."""

import base64
import csv
import io
import math
from pathlib import Path

import h5py
import numpy as np
from markupsafe import escape

from neardup import NeardupError, plots
from neardup.artifacts import REPORT, TIMES
from neardup.files import atomic, read_json

_SAMPLE, _MEMBERS, _LOSSES = 12, 12, 30  # groups of a kind, rows of a group, lines of a table
_CHAIN_BYTES, _MARKUP_BYTES = 1_200_000, 150  # of all chains, pictures aside; of the markup around an id or a text
_EXAMPLES = 20  # pairs a threshold
_TEXT = 400  # characters of a text
_PIXELS, _IMAGE_BYTES = 112, 3_000_000  # of a thumbnail's longer side; of all thumbnails


def write_report(merge, found, earlier, config, preview):
    """Write report.html into the folder of stage 045. Memory: bounds of all groups, and 5 MB.

    merge: its `Stage`, being built; found: its results; earlier: {name: `Stage`} of the others, finished.
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
    text = environment.get_template("report.html").render(_content((merge, found), earlier, config, preview))
    with atomic(merge.path(REPORT)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _content(merge_and_found, earlier, config, preview):
    """All that the template shows."""
    (merge, found), variance = merge_and_found, earlier["01_pca_variance"]
    merge.note_times()
    shown = Shown(preview)
    groups, sizes = _groups(merge, shown)
    total = found["kept"] + found["dropped"] + found["rejected"]
    return {
        "name": Path(str(config.data_dir)).name or str(config.data_dir),
        "found": found,
        "total": total,
        "single": total - found["rows_in_groups"] - found["rejected"],
        "audit": earlier["04_neighbor_search"].results["audit"],
        "variance": variance.results,
        "grouping": config.grouping,
        "plots": _plots(variance, found, sizes, config),
        "examples": _examples(merge, shown),
        "groups": groups,
        "losses": _losses(merge),
        "times": _times(earlier | {merge.name: merge}),
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


def _groups(merge, shown):
    """Groups to look at, by kind, and the sizes of all."""
    with h5py.File(merge.path("merged_clusters.h5")) as file:
        sizes, chains = np.diff(file["bounds"][:]), np.nonzero(file["chain"][:])[0]
        largest = np.argsort(-sizes, kind="stable")[:_SAMPLE]
        rest = np.setdiff1d(np.arange(len(sizes)), largest)
        some = np.sort(np.random.default_rng(0).choice(rest, min(_SAMPLE, len(rest)), replace=False))
        explained = read_json(merge.path("chains.json"))
        kinds = {"largest": largest, "random": some}
        found = {kind: [_group(file, n, shown, explained) for n in kinds[kind].tolist()] for kind in kinds}
        found["chains"], left = [], _CHAIN_BYTES
        for number in chains.tolist():
            if left < 0:
                break
            found["chains"].append(_group(file, number, shown, explained))
            left -= _bytes(found["chains"][-1])
    return found, sizes


def _bytes(group):
    """What a group takes on the page, about, pictures aside."""
    texts = [text for m in group["members"] for text in (m["id"], m["text"])] + group["path"]
    return sum(_MARKUP_BYTES + len(escape(text).encode()) for text in texts)


def _group(file, number, shown, explained):
    """A group: its kept row first, then the others by similarity, those least similar last even where not all fit."""
    low, high = file["bounds"][number : number + 2].tolist()
    rows, similarity = file["row"][low:high], file["similarity"][low:high]
    kept = rows == file["representative_row"][number]
    order = np.lexsort((rows, -similarity, ~kept))
    if len(order) > _MEMBERS:
        order = np.concatenate([order[: _MEMBERS // 2], order[-_MEMBERS // 2 :]])
    members = shown.rows(rows[order])
    for member, place in zip(members, order.tolist(), strict=True):
        member |= {"similarity": float(similarity[place]), "kept": bool(kept[place])}
    name = file["name"][number].decode()
    return {
        "name": name,
        "size": high - low,
        "weakest": float(file["weakest"][number]),
        "chain": bool(file["chain"][number]),
        "members": members,
        "path": explained.get(name, {}).get("path", []),
        "links": explained.get(name, {}).get("path_similarities", []),
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
