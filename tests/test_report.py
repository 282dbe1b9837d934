"""The report: whole in one file, what is in it is what was found, and a browser shows it as it should."""

import base64
import html
import io
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import EXAMPLE, SCRIPTS, command, lay_out, read_csv, run_stages, tree_bytes, write_hole
from PIL import ExifTags, Image
from test_045_merge import bundles, long_chain

from config import Config
from neardup import NeardupError, plots
from neardup.grouping import report
from neardup.grouping.thresholds import histogram
from neardup.input import preview
from neardup.machine.files import resolved, write_csv
from neardup.words import in_words

REPORT = "045_merge/report.html"
MARKUP = "<b onmouseover=alert(1)>bold</b><script>document.title='run'</script>"


class Tags(HTMLParser):
    """Names and attributes of all elements."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The report of the example, searched down to 0.9."""
    work = tmp_path_factory.mktemp("texts") / "work"
    run_stages(EXAMPLE, work, report_threshold=0.9, threshold=0.95)
    return work / REPORT


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The report of pictures, some the same, ids with markup, one that leads out of its folder, one without a file."""
    folder = tmp_path_factory.mktemp("images")
    rng, rows, ids = np.random.default_rng(0), [], []
    (folder / "pictures").mkdir()
    for number in range(12):
        color = rng.integers(0, 256, 3)
        for copy in range(2):
            name = f"{number}-{copy}"
            Image.new("RGB", (40 + 20 * copy, 30), tuple(color.tolist())).save(folder / "pictures" / f"{name}.png")
            rows.append(rng.normal(size=8) if not copy else rows[-1] + rng.normal(size=8) * 0.01)
            ids.append(name)
    secret = folder / "secret.png"
    Image.new("RGB", (10, 10)).save(secret)
    ids += [MARKUP, "../secret", "not-there", "n\0ul"]
    rows += [rows[0], rows[0], rows[2], rows[2]]
    data = lay_out(folder / "data", np.array(rows, dtype=np.float32), cuts=[9], ids=ids)
    run_stages(data, folder / "work", preview=str(folder / "pictures" / "{id}.png"))
    return folder / "work" / REPORT


def test_it_is_whole_without_a_network(texts, images):
    for path in (texts, images):
        text = path.read_text()
        assert path.stat().st_size < 5_000_000
        tags = Tags(text).found
        assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
        sources = [value for _, attrs in tags for name, value in attrs.items() if name in ("src", "href", "xlink:href")]
        assert all(source.startswith(("data:image/webp;base64,", "#")) for source in sources)
        assert not any(name.startswith("on") for _, attrs in tags for name in attrs)


def test_what_it_says_is_what_was_found(texts):
    manifest = json.loads((texts.parent / "manifest.json").read_text())["results"]
    text = plain(texts.read_text())
    for name in ("kept", "groups", "rows_in_groups"):
        assert f" {manifest[name]:,} " in text
    for line in manifest["thresholds"]:
        chosen = " (chosen)" if line["threshold"] == 0.95 else ""
        cells = [f"{line['threshold']!r}".removesuffix(".0") + chosen]
        cells += [f"{line[name]:,}" for name in ("pairs", "groups", "kept", "dropped", "largest", "chains")]
        assert " ".join(cells) in text
    for kind, found in manifest["groupings"].items():
        assert f"{kind}{' (chosen)' if kind == 'connected' else ''} {found['groups']:,} {found['dropped']:,}" in text


def plain(text):
    """The words of a page."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def test_everything_is_drawn(texts):
    """What the thresholds would give, the histogram and the sizes of the groups, the scree curve."""
    found = json.loads((texts.parent / "manifest.json").read_text())["results"]
    pairs = found["thresholds"][-1]["pairs"]
    titles = [
        ["rows that would be dropped", "rows of the largest group", "threshold = 0.95"],
        [f"{pairs:,} pairs at 0.9 and above", f"{found['groups']} groups", "threshold = 0.95"],
        ["of 384 components keep at least 95% of the variance", "n_components = "],
    ]
    drawn = re.findall("<figure[^>]*><svg.*?</svg>", texts.read_text(), flags=re.DOTALL)
    assert len(drawn) == len(titles)
    assert all(title in plain(svg) for svg, some in zip(drawn, titles, strict=True) for title in some)


@pytest.mark.pictures
@pytest.mark.parametrize(("lowest", "first"), [(1, "0.999999"), (0.99999, "0.99999")])
def test_similarities_near_1_are_labelled_in_full(lowest, first):
    table = [{"threshold": step, "dropped": 1, "largest": 2} for step in (1, 0.99999)]
    of_groups = plots.groups(*histogram([], lowest), np.array([2]), lowest=lowest, threshold=1)
    for figure, label in ((of_groups, first), (plots.thresholds(table, 1), "0.99999")):
        axis = figure.axes[0].xaxis
        figure.canvas.draw()
        assert axis.get_offset_text().get_text() == ""
        assert label in [tick.get_text() for tick in axis.get_ticklabels()]


@pytest.mark.pictures
def test_a_spectrum_without_variance_is_drawn_as_one():
    axes, single = plots.scree(np.zeros(4), 1, 0.95).axes
    assert axes.get_title() == "1 of 4 components keeps at least 95% of the variance"
    assert axes.lines[0].get_ydata().tolist() == [1] * 4
    assert single.get_ylim() == (0, 1)


def test_warnings_losses_and_chains_are_shown(tmp_path):
    data, kinds = lay_out(tmp_path / "data", bundles(0), cuts=[40]), ["<a>", "b", None] * 40
    for number, some in enumerate((kinds[:40], kinds[40:])):
        pq.write_table(pa.table({"kind": some}), data / f"part_{number}.parquet")
    run_stages(data, tmp_path / "work", threshold=0.94, tabulate="kind")
    text, folder = (tmp_path / "work" / REPORT).read_text(), tmp_path / "work" / "045_merge"
    words, warnings = plain(text), json.loads((folder / "manifest.json").read_text())["results"]["warnings"]
    assert warnings
    assert f"Look at this before you delete anything {' '.join(warnings)} " in words
    for line in read_csv(tmp_path / "work", "losses.csv"):
        rows, dropped = int(line["rows"]), int(line["dropped"])
        assert f" {line['value'] or '(none)'} {rows} {dropped} {dropped / rows:.1%} " in words
    chains = json.loads((folder / "chains.json").read_text())
    shown = text[text.index('<h2 id="chains">') :].split("<article")[1:]
    assert len(shown) == len(chains) >= 3
    for article, (name, chain) in zip(map(plain, shown), chains.items(), strict=True):
        links = [f"{in_words(similarity)} ↓" for similarity in chain["path_similarities"]]
        path = " ".join(word for step in zip(chain["path"][:-1], links, strict=True) for word in step)
        assert f"weakest link {in_words(min(chain['path_similarities']))} {path} {chain['weakest']} {name}" in article
        assert "(chain)" in article


def test_of_many_values_those_that_lose_most_are_shown(tmp_path, monkeypatch):
    """The first ones, where they lose as much."""
    lines = [("a" if i % 3 else "b", f"value {i}", 10, i * 7919 % 11) for i in range(500)]
    write_csv(tmp_path / "losses.csv", [("by", "value", "rows", "dropped"), *lines])
    found = []
    for size in (31, 1000):
        monkeypatch.setattr(report, "_SORTED_LOSSES", size)
        found.append(report._losses(SimpleNamespace(path=lambda name: tmp_path / name)))
    assert found[0] == found[1]
    for by, (some, count) in found[0].items():
        of = sorted((line for line in lines if line[0] == by), key=lambda line: -line[3])
        assert [line[:3] for line in some] == [line[1:] for line in of[:30]]
        assert count == len(of)


def test_text_that_a_csv_file_has_as_a_json_string_is_shown_as_it_is(tmp_path):
    kinds = ["-5", "=f", '"q"', " @x"] * 30
    data = lay_out(tmp_path / "data", bundles(0))
    pq.write_table(pa.table({"kind": kinds}), data / "part_0.parquet")
    run_stages(data, tmp_path / "work", threshold=0.94, tabulate="kind")
    words = plain((tmp_path / "work" / REPORT).read_text())
    values = [line["value"] for line in read_csv(tmp_path / "work", "losses.csv")][1:]
    assert values == [*map(json.dumps, sorted({*kinds}))]
    assert all(f" {kind.strip()} 30 " in words for kind in kinds)


def test_ids_with_markup_are_text_and_lead_nowhere(images):
    text = images.read_text()
    assert MARKUP not in text
    assert "&lt;script&gt;" in text
    pictures = [attrs for tag, attrs in Tags(text).found if tag == "img"]
    assert len(pictures) >= 20
    assert not {"../secret", "not-there", MARKUP} & {attrs["alt"] for attrs in pictures}


def test_pictures_stop_where_there_is_no_room(images, tmp_path, monkeypatch):
    monkeypatch.setattr("neardup.grouping.shown._IMAGE_BYTES", 500)
    work = shutil.copytree(images.parent.parent, tmp_path / "work")
    shutil.rmtree(work / "045_merge")
    run_stages(
        images.parent.parent.parent / "data",
        work,
        SCRIPTS[4:],
        preview=str(images.parent.parent.parent / "pictures" / "{id}.png"),
    )
    text = (work / REPORT).read_text()
    assert sum(tag == "img" for tag, _ in Tags(text).found) < 12
    shown = {attrs["alt"] for tag, attrs in Tags(text).found if tag == "img"}
    pictures = {path.stem for path in (images.parent.parent.parent / "pictures").glob("*.png")}
    there = pictures & set(re.findall(r'class="id">(?:<a[^>]*>)?([^<]*)<', text)) - shown
    assert f"There is no room for {len(there)} pictures" in text
    assert re.search(r"There is no room for \d+ pictures", text)


def encoded(kind, **options):
    """A picture of noise, 40 x 30, as a file of some format holds it."""
    data, noise = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(data, kind, **options)
    return data.getvalue()


def turned():
    """As cameras do it: lying, with a note on how to hold it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return encoded("JPEG", exif=exif)


DAMAGED = {
    "part of an AVIF": encoded("AVIF").replace(b"av01", b"else"),  # of which PIL makes a RuntimeError
    "another DDS": encoded("DDS")[:80] + bytes(4) + encoded("DDS")[84:],  # a NotImplementedError
    "half a PNG": encoded("PNG")[:999],
    "a drawing": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "nothing": b"",
}


def test_pictures_that_can_not_be_read_are_counted(tmp_path):
    """In one line of the report; what can be is upright."""
    files = {"upright": encoded("PNG"), "turned": turned(), **DAMAGED}
    (tmp_path / "pictures").mkdir()
    for name, content in files.items():
        (tmp_path / "pictures" / name).write_bytes(content)
    ids = [*files, "not there", "x" * 1000, "../pictures"]
    data = lay_out(tmp_path / "data", np.ones((len(ids), 2)), ids=ids)
    run_stages(data, tmp_path / "work", preview=str(tmp_path / "pictures" / "{id}"))
    text = (tmp_path / "work" / REPORT).read_text()
    images = {attrs["alt"]: attrs["src"].partition("base64,")[2] for tag, attrs in Tags(text).found if tag == "img"}
    sizes = {name: Image.open(io.BytesIO(base64.b64decode(data))).size for name, data in images.items()}
    assert sizes == {"upright": (40, 30), "turned": (30, 40)}
    assert f"8 of the pictures looked for couldn't be read, such as {tmp_path / 'pictures'}/" in text


def test_ids_that_are_paths_of_pictures(tmp_path, capsys):
    """They lead out of where a pattern begins, unless it begins at the root."""
    paths, here = [str(tmp_path / f"{number}.png") for number in range(3)], resolved(".")
    for path in paths:
        (tmp_path / path).write_bytes(encoded("PNG"))
    data = lay_out(tmp_path / "data", np.ones((3, 2)), ids=paths)
    run_stages(data, tmp_path / "work", preview="{id}")
    assert f"the first looked for was that of '{paths[0]}', which isn't below {here}" in capsys.readouterr().out
    text = (tmp_path / "work" / REPORT).read_text()
    assert f"3 weren't looked for, such as that of {paths[0]}, for they aren't below {here}, where" in text
    run_stages(data, tmp_path / "work", scripts=SCRIPTS[-1:], preview="/{id}")
    assert "picture" not in capsys.readouterr().out
    tags = Tags((tmp_path / "work" / REPORT).read_text()).found
    assert {attrs["alt"] for tag, attrs in tags if tag == "img"} == {*paths}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "DDS", "ICO", "TGA", "JPEG2000"])
def test_no_damage_of_a_picture_ends_the_script(tmp_path, kind):
    rng, whole, path = np.random.default_rng(0), bytearray(encoded(kind)), tmp_path / "picture"
    for _ in range(300):
        content = whole[: rng.integers(1, len(whole)) if rng.random() < 0.3 else None]
        for _ in range(rng.integers(1, 5)):
            content[rng.integers(0, min(len(content), rng.choice([64, 512, 9999])))] = rng.choice([0, 1, 127, 255])
        path.write_bytes(content)
        assert isinstance(preview.thumbnail(path, 112), bytes | None)


def test_urls_are_linked_to(tmp_path):
    ids = ["a b", "c/d?", "é&<"]
    data = lay_out(tmp_path / "data", np.ones((3, 2)), ids=ids)
    run_stages(data, tmp_path / "work", preview="https://host/{id}.png?size=1&kind=2")
    tags = Tags((tmp_path / "work" / REPORT).read_text()).found
    links = {attrs["href"] for tag, attrs in tags if tag == "a" and attrs["href"].startswith("http")}
    assert links == {f"https://host/{quote(name)}.png?size=1&kind=2" for name in ids}
    assert "img" not in {tag for tag, _ in tags}


def test_one_audited_row_is_one(tmp_path):
    run_stages(lay_out(tmp_path / "data", np.ones((3, 2))), tmp_path / "work", audit_rows=1)
    words = plain((tmp_path / "work" / REPORT).read_text())
    assert "Audit: 1 random row was compared" in words
    assert "Similarities of 1 random pair were computed anew" in words


def test_texts_of_other_ids_are_told(tmp_path, capsys):
    data = lay_out(tmp_path / "data", np.ones((3, 2)))
    for name, is_wrong in (("id-1", False), ("1", True)):
        (tmp_path / "texts.json").write_text(json.dumps({name: "text"}))
        capsys.readouterr()
        run_stages(data, tmp_path / "work", preview=str(tmp_path / "texts.json"))
        line = f"look at this: no text of these rows is in {tmp_path}/texts.json, the first id is 'id-0': set preview"
        assert (line in capsys.readouterr().out) == is_wrong


def test_a_pattern_that_leads_to_no_picture_is_told(images, tmp_path, capsys):
    data, work = images.parent.parent.parent / "data", shutil.copytree(images.parent.parent, tmp_path / "work")
    for pattern, is_wrong in ((images.parent.parent.parent / "pictures", False), (tmp_path / "picures", True)):
        capsys.readouterr()
        run_stages(data, work, SCRIPTS[4:], preview=str(pattern / "{id}.png"))
        said = capsys.readouterr().out
        assert ("no picture of these rows is there" in said) == is_wrong
        assert (f"the first looked for was {tmp_path / 'picures'}/" in said) == is_wrong
    for pattern in ("s3://bucket/{id}.png", "file:///folder/{id}.png"):
        with pytest.raises(NeardupError, match=r"is neither a pattern of files nor of https:// or http:// URLs: set"):
            run_stages(data, work, SCRIPTS[4:], preview=pattern)


@pytest.mark.parametrize(("count", "letters"), [(600, 10), (1500, 900)])
def test_all_chains_are_shown_as_far_as_there_is_room(tmp_path, count, letters):
    """Each of four rows on a circle, of which the first and the last are apart."""
    first, second = np.random.default_rng(0).normal(size=(2, count, 1, 48))
    first /= np.linalg.norm(first, axis=2, keepdims=True)
    second -= (first * second).sum(axis=2, keepdims=True) * first
    second /= np.linalg.norm(second, axis=2, keepdims=True)
    angles = 0.15 * np.arange(4)[:, None]
    rows = (np.cos(angles) * first + np.sin(angles) * second).reshape(-1, 48)
    data = lay_out(tmp_path / "data", rows, ids=[f"{i}{'<' * letters}" for i in range(len(rows))])
    run_stages(data, tmp_path / "work", audit_rows=5)
    text = (tmp_path / "work" / REPORT).read_text()
    shown = text.count("(chain)</span>", text.index('<h2 id="chains">'))
    assert (shown == count) == (letters == 10)
    assert f"the row kept: {'all' if shown == count else f'{shown:,} of'} {count:,}" in text
    assert len(text) < 5_000_000


@pytest.mark.parametrize(
    "name", ["<" * 990, pytest.param("🦊" * 990, marks=pytest.mark.long)], ids=["escaped", "four bytes a character"]
)
def test_it_stays_small_whatever_the_chain_ids_and_texts(tmp_path, name):
    rows, threshold = long_chain()
    data = lay_out(tmp_path / "data", rows, ids=[f"{name}-{i}" for i in range(len(rows))])
    texts = pa.table({"text": ["<" * (150_000 if i < 9 else 900) for i in range(len(rows))]})
    pq.write_table(texts, data / "part_0.parquet")
    settings = {"threshold": threshold, "n_clusters": 30, "audit_rows": 0, "preview": "text", "tabulate": "text"}
    run_stages(data, tmp_path / "work", **settings)
    path = tmp_path / "work" / REPORT
    assert path.stat().st_size < 300_000
    (chain,) = json.loads((path.parent / "chains.json").read_text()).values()
    assert len(chain["path"]) > 100
    shown = [id_of(name) for name in chain["path"][:4] + chain["path"][-4:]]
    parts = re.findall(r"<ol>(.*?)</ol>", path.read_text(), flags=re.DOTALL)
    assert len(parts) == 2  # the largest group, and a chain
    for part in parts:
        assert [id_of(html.unescape(step)) for step in re.findall(r'<li value="\d+">(.*?)(?: <|</li>)', part)] == shown
        assert f"… {len(chain['path']) - 8:,} more …" in part
    assert f"weakest link {in_words(min(chain['path_similarities']))}" in path.read_text()


def id_of(name):
    """What tells one of those ids from another."""
    return name[-5:].lstrip("<🦊-")


def test_texts_of_a_column_are_read_once_for_all_that_is_shown(tmp_path, monkeypatch):
    """However many groups, chains and thresholds there are: for the pairs, for the report, for what is printed."""
    rows, read = bundles(0), Counter()
    data, captions = lay_out(tmp_path / "data", rows, cuts=[40]), [f"<caption> of {row}" for row in range(len(rows))]
    for number, some in enumerate((captions[:40], captions[40:])):
        pq.write_table(pa.table({"caption": some}), data / f"part_{number}.parquet")
    read_column = preview.column_blocks
    monkeypatch.setattr(preview, "column_blocks", lambda path, *more: read.update([path]) or read_column(path, *more))
    run_stages(data, tmp_path / "work", threshold=0.94, report_threshold=0.8, preview="caption")
    assert read == {data / "part_0.parquet": 3, data / "part_1.parquet": 3}
    text = (tmp_path / "work" / REPORT).read_text()
    assert text.count("(chain)</span>", text.index('<h2 id="chains">')) >= 3
    shown = re.findall(r'<span class="id">id-(\d+)</span>\n<span class="what">(.*?)</span>', text)
    assert len(shown) == text.count('<span class="id">') > 100
    assert all(html.unescape(caption) == captions[int(row)] for row, caption in shown)


def test_it_is_made_anew_where_something_changed_or_it_is_gone(tmp_path):
    data = lay_out(tmp_path / "data", bundles(1))
    run_stages(data, tmp_path / "work")
    path = tmp_path / "work" / REPORT
    first = path.stat().st_mtime_ns
    run_stages(data, tmp_path / "work")
    assert path.stat().st_mtime_ns == first
    before, stages = path.read_text(), tree_bytes(tmp_path / "work")
    path.unlink()
    run_stages(data, tmp_path / "work", SCRIPTS[4:])
    assert tree_bytes(tmp_path / "work") == stages
    times = re.compile("<caption>Time.*?</table>", flags=re.DOTALL)
    assert times.split(path.read_text()) == times.split(before)
    run_stages(data, tmp_path / "work", SCRIPTS[4:], grouping="star")
    assert "“star”" in path.read_text()


@pytest.mark.parametrize(
    "content", ["", "{", "{}", '{"seconds": "x", "peak_bytes": 1}', '{"seconds": 1e999, "peak_bytes": 1}']
)
def test_times_that_are_damaged_are_not_shown(tmp_path, content):
    data = lay_out(tmp_path / "data", np.eye(5))
    run_stages(data, tmp_path / "work", SCRIPTS[:4])
    (tmp_path / "work" / "02_pca_reduce" / "times.json").write_text(content)
    run_stages(data, tmp_path / "work", SCRIPTS[4:])
    text = (tmp_path / "work" / REPORT).read_text()
    assert '<th scope="row">01_pca_variance</th>' in text
    assert '<th scope="row">02_pca_reduce</th>' not in text


def test_chains_that_are_too_large_to_cut_are_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("neardup.grouping.chains._CHAIN_PAIRS", 18)
    run_stages(lay_out(tmp_path / "data", bundles(0)), tmp_path / "work", threshold=0.94, grouping="split")
    explained = json.loads((tmp_path / "work" / "045_merge" / "chains.json").read_text())
    uncut = sum("path" not in chain for chain in explained.values())
    assert len(explained) > uncut > 0
    assert (
        f"grouping 'split' leaves chains of over 25,000 rows, or 100 cuts, as they are: {uncut}\n"
        in capsys.readouterr().out
    )
    assert (
        f"but for {uncut} of over 25,000 rows, or 100 cuts, left as they are"
        in (tmp_path / "work" / REPORT).read_text()
    )


def test_a_threshold_for_a_number_of_rows_is_said_with_all_its_digits(tmp_path, capsys):
    """Given back, it gives the same."""
    data, works = lay_out(tmp_path / "data", bundles(2)), [tmp_path / "work", tmp_path / "again"]
    run_stages(data, works[0], report_threshold=0.9, target_rows=80)
    said = capsys.readouterr().out
    threshold = re.search(r"^threshold (\S+), the highest that leaves at most 80 rows$", said, flags=re.MULTILINE)[1]
    assert len(threshold) > 10
    text = (works[0] / REPORT).read_text()
    assert f"Cosine similarity ≥ {threshold} (the highest threshold that leaves at most 80 rows)," in text
    assert f"{threshold} (chosen)" in text
    run_stages(data, works[1], report_threshold=0.9, threshold=float(threshold))
    kept = [(work / "045_merge" / "keep.txt").read_bytes() for work in works]
    assert kept[0] == kept[1]


def test_no_groups_and_no_pairs(tmp_path):
    run_stages(lay_out(tmp_path / "data", np.eye(5)), tmp_path / "work")
    assert "None." in (tmp_path / "work" / REPORT).read_text()


@pytest.fixture(scope="module", params=["texts", "images"])
def page(request):
    """Either report, with what is drawn in it: asked for by a test itself, one would be made without."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def shown(browser, path, width, scheme):
    """Open a page as a window of this width shows it. Returns the page's background."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    browser.get(path.as_uri())
    return browser.execute_script("return getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_in_a_browser(browser, page, width, scheme):
    background = shown(browser, page, width, scheme)
    red = int(re.findall(r"\d+", background)[0])
    assert (red > 200) == (scheme == "light")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []
    assert browser.title.startswith("Near-duplicates in")
    broken = (
        "return [...document.images].filter(i => { i.loading = 'eager'; return i.complete && !i.naturalWidth }).length"
    )
    assert browser.execute_script(broken) == 0
    drawn = "return [...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect().height)"
    assert [height > 100 for height in browser.execute_script(drawn)] == [True] * 3
    browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "rawKeyDown", "key": "Tab", "windowsVirtualKeyCode": 9})
    assert browser.execute_script("return document.activeElement.className") == "skip"


def test_what_is_folded_is_printed(browser, texts):
    shown(browser, texts, 1400, "light")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    folded = "return [...document.querySelectorAll('details:not([open]) .pair')].map(e => e.checkVisibility())"
    assert len(browser.execute_script(folded)) > 20
    assert all(browser.execute_script(folded.replace("checkVisibility()", "offsetHeight > 0")))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen"})
    assert not any(browser.execute_script(folded))


def test_every_picture_and_table_has_a_name(texts, images):
    """For those who hear the page."""
    for path in (texts, images):
        tags = Tags(path.read_text()).found
        assert all(attrs.get("alt") for tag, attrs in tags if tag == "img")
        assert all(attrs.get("aria-label") for tag, attrs in tags if tag == "figure")
        assert all("scope" in attrs for tag, attrs in tags if tag == "th")


def test_json_for_other_programs(texts):
    """What is printed is one JSON object."""
    work = texts.parent.parent
    done = command(
        *(SCRIPTS[4], "--data-dir", EXAMPLE, "--work-dir", work),
        *("--threshold", "0.95", "--report-threshold", "0.9", "--json"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["groups"] == 208
    assert found["folder"] == str(work / "045_merge")


def test_a_dry_run_writes_nothing(tmp_path):
    done = command(SCRIPTS[0], "--work-dir", tmp_path / "work", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3,054 rows of 384 values in 3 shards" in done.stdout
    assert all(f"{word}: " in done.stdout for word in ("disk", "memory", "time"))
    assert not (tmp_path / "work").exists()


def test_a_dry_run_of_header_and_nothing_else(tmp_path):
    """A billion rows that are a hole in the file are planned at once, in little memory."""
    rows, folders = 10**9, ("--data-dir", tmp_path / "data", "--work-dir", tmp_path / "work")
    write_hole(tmp_path / "data" / "all.npy", rows, 1024)
    done = command(SCRIPTS[0], *folders, "--dry-run", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rows"] == rows
    assert "set memory_limit to as much" in command(SCRIPTS[0], *folders, "--dry-run").stdout


@pytest.mark.parametrize("kind", [pa.string_view(), pa.list_(pa.string_view()), pa.dictionary(pa.int8(), pa.string())])
def test_a_column_of_any_kind_of_text_is_shown(tmp_path, kind):
    data = lay_out(tmp_path / "data", np.eye(3, dtype=np.float32)[[0, 0, 1]])
    values = [["a"], ["b"], None] if pa.types.is_list(kind) else ["a", "b", None]
    with pa.ipc.new_file(str(data / "part_0.arrow"), pa.schema([("text", kind)])) as writer:
        writer.write_table(pa.table({"text": pa.array(values, kind)}))
    run_stages(data, tmp_path / "work", preview="text")
    [line] = read_csv(tmp_path / "work", "examples.csv")
    assert [line["text_a"], line["text_b"]] == [str(value) for value in values[:2]]


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        (pa.timestamp("ns"), "1970-01-01 00:00:01.000000001"),
        (pa.duration("ns"), "1000000001"),
        (pa.time64("ns"), "00:00:01.000000001"),
        (pa.timestamp("ms"), "1970-01-01 00:00:00.001"),
        (pa.date32(), "1970-01-02"),
    ],
)
def test_a_column_of_times_is_shown(tmp_path, kind, shown):
    """Also of those that Python has not."""
    data = lay_out(tmp_path / "data", np.eye(3, dtype=np.float32)[[0, 0, 1]])
    number = 1_000_000_001 if getattr(kind, "unit", "") == "ns" else 1
    times = pa.array([number] * 3, pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)
    pq.write_table(pa.table({"at": times}), data / "part_0.parquet")
    run_stages(data, tmp_path / "work", preview="at")
    [line] = read_csv(tmp_path / "work", "examples.csv")
    assert [line["text_a"], line["text_b"]] == [shown, shown]


def test_half_a_character_is_shown_as_none(tmp_path):
    """As programs that count in 16 bits cut texts."""
    data = lay_out(tmp_path / "data", np.eye(2, dtype=np.float32)[[0, 0, 1]])
    (data / "texts.json").write_text('{"id-0": "nice \\ud83d", "id-1": "\\ud83d\\ude00"}')
    run_stages(data, tmp_path / "work")
    [line] = read_csv(tmp_path / "work", "examples.csv")
    assert [line["text_a"], line["text_b"]] == ["nice ?", "\U0001f600"]
    assert "nice ?" in (tmp_path / "work" / REPORT).read_text(encoding="utf-8")


def test_no_secrets_are_shown(tmp_path, monkeypatch):
    """Of a cluster's options just the names, of URLs not who logs in, nor what they are signed with."""
    options = {"env": {"KEY": "hunter2"}, "image": "hunter3"}
    config = Config(scheduler_options=options, against_work_dir="s3://me:hunter4@host/a")
    settings = report._settings(config)
    assert settings["scheduler_options"] == ["env", "image"]
    assert settings["against_work_dir"] == "s3://host/a"
    assert "hunter" not in json.dumps(settings)
    urls = {"ftp://me:hunter5@host": "host", "ftp://me:hun@ter5@host/a": "a", "https://host/b?sig=hunter6/x": "b?"}
    for url, name in urls.items():
        assert report._name(url) == name
        shown = report._settings(Config(data_dir=url))["data_dir"]
        assert "hun" not in shown
        assert "ter" not in shown


def test_pictures_do_not_depend_on_settings_made_for_others(tmp_path):
    """As notebooks make some of matplotlib's for all that they start, and people have a file of theirs."""
    data = lay_out(tmp_path / "data", np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    (tmp_path / "matplotlibrc").write_bytes(b"text.usetex: True\nsavefig.bbox: tight\n# \xff\n")
    settings = {"MATPLOTLIBRC": str(tmp_path), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    for name, environment in (("plain", {}), ("other", settings)):
        for script in SCRIPTS:
            done = command(script, "--data-dir", data, "--work-dir", tmp_path / name, **environment)
            assert (done.returncode, done.stderr) == (0, "")
    for picture in ("01_pca_variance/scree.png", "045_merge/groups.png"):
        assert (tmp_path / "plain" / picture).read_bytes() == (tmp_path / "other" / picture).read_bytes()
