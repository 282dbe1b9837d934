"""Every command and snippet in the docs runs, on data laid out as each says."""

import contextlib
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import faiss
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SCRIPTS
from moto.server import ThreadedMotoServer
from PIL import Image

from config import ROOT, Config

N, DIM = 300, 32
DOCS = ["README.md", *(f"docs/{name}.md" for name in ("formats", "thresholds", "outputs", "growing"))]
# what is said where docs/formats.md has another set in each command
_REPLACED = r"^work/01_pca_variance is of other shards \(.*\), and is replaced: to keep it set another work_dir\n"


def make_rows():
    """200 rows, and 100 that are near one of them."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(N, DIM)).astype(np.float32)
    rows[200:] = rows[:100] + rng.normal(size=(100, DIM)) * np.linspace(0.01, 0.3, 100)[:, None]
    return rows


def vectors_of(rows):
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def metadata(ids):
    """Columns that the recipes name."""
    numbers = list(range(N))
    return {
        "id": ids,
        "caption": [f"caption {'x' * (i % 7)}" for i in numbers],
        "width": [i % 50 for i in numbers],
        "date": [f"2026-01-{1 + i % 28:02}" for i in numbers],
        "source": [f"source {i % 3}" for i in numbers],
        "language": [["en", "de", None][i % 3] for i in numbers],
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the docs name in it."""
    folder, rows, ids = tmp_path_factory.mktemp("recipes"), make_rows(), [f"id-{i}" for i in range(N)]

    def within(*parts):
        path = folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    np.save(within("my_embeddings", "part_0.npy"), rows)
    pq.write_table(pa.table(metadata(ids)), within("my_embeddings", "part_0.parquet"))
    within("texts.json").write_text(json.dumps(dict(zip(ids, metadata(ids)["caption"], strict=True))))
    Image.new("RGB", (20, 20)).save(within("images", "id-0.png"))
    for kind in ("img_emb", "text_emb"):
        np.save(within("laion", kind, f"{kind}_0.npy"), rows)
    pq.write_table(pa.table({"image_path": ids, "caption": ids}), within("laion", "metadata", "metadata_0.parquet"))
    table = pa.table({"title": ids, "embedding": vectors_of(rows)})
    with pa.ipc.new_stream(within("my_dataset", "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table)
    pq.write_table(table.rename_columns(["id", "embeddings"]), within("my_parquet", "data", "train-0.parquet"))
    np.savez(within("datacomp", "0.npz"), b32_img=rows, l14_img=rows)
    pq.write_table(pa.table({"uid": [f"{i:032x}" for i in range(N)]}), within("datacomp", "0.parquet"))
    with h5py.File(within("glove-100-angular.hdf5"), "w") as file:
        file["train"], file["test"] = rows, rows[:10]
    lines = [json.dumps({"id": i, "embedding": row}) for i, row in zip(ids, rows.tolist(), strict=True)]
    within("embeddings.jsonl").write_text("\n".join(lines))
    within("base.1M.fbin").write_bytes(np.array(rows.shape, "<u4").tobytes() + rows.tobytes())
    np.save(within("my_test_set", "part_0.npy"), rows[50:150])
    np.save(within("new.npy"), rows[:3] + 0.001)
    index = faiss.IndexFlatIP(DIM)
    index.add(rows)
    faiss.write_index(index, str(within("my.index")))
    return folder


@pytest.fixture(scope="module")
def bucket(place):
    """The embeddings on a local S3 server. Returns the environment that leads there."""
    import boto3

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    environment = keys | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    client = boto3.client(
        "s3", endpoint_url=environment["AWS_ENDPOINT_URL"], aws_access_key_id="test", aws_secret_access_key="test"
    )
    client.create_bucket(Bucket="bucket")
    for path in (place / "my_embeddings").iterdir():
        client.upload_file(str(path), "bucket", f"embeddings/{path.name}")
    yield environment
    server.stop()


def blocks(name):
    """The snippets of a page, in order: [(language, text)]."""
    return re.findall(r"```(sh|python|sql|r)\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


def execute(command, place, environment):
    """Run a command where the docs' data is. Returns what it printed."""
    done = subprocess.run(
        command, cwd=place, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, re.sub(_REPLACED, "", done.stderr)) == (0, ""), command
    return done.stdout


def run_line(line, place, environment):
    """A line of the shell: a script of this project, with its settings.

    Run in this process, which saves the start of another, but where it reads from a server.
    """
    python, script, *settings = shlex.split(line)
    assert python == ".venv/bin/python"
    settings += [] if "--work-dir" in settings else ["--work-dir", "work"]
    if script == "-m":
        environment = environment | {"PYTHONPATH": str(ROOT)}
        execute([sys.executable, script, *settings], place, environment)
        return
    assert script in SCRIPTS
    if "s3://" in line:
        execute([sys.executable, str(ROOT / script), *settings], place, environment)
        return
    with contextlib.chdir(place):
        config = Config(_cli_parse_args=settings)
        run = importlib.import_module(script.removesuffix(".py")).run
        if config.against_dir and script in SCRIPTS[:3]:
            run(config.reference)
        run(config)


def run_block(language, text, place, environment):
    if language == "sh":
        for line in text.splitlines():
            run_line(line, place, environment)
    elif language == "python":
        execute([sys.executable, "-c", text], place, environment)
    elif language == "sql":
        import duckdb

        inside = text.replace("'work/", f"'{place}/work/")
        assert inside != text
        assert duckdb.sql(inside).fetchall()
    elif shutil.which("Rscript"):
        execute(["Rscript", "-e", text], place, environment)


@pytest.mark.parametrize("name", DOCS)
def test_what_the_docs_say_runs(name, place, bucket):
    shutil.rmtree(place / "work", ignore_errors=True)
    if name == "docs/outputs.md":  # which reads what a run left
        for line in blocks("docs/thresholds.md")[0][1].splitlines():
            run_line(line, place, bucket)
    found = blocks(name)
    assert len([line for _, text in found for line in text.splitlines()]) >= 5
    for language, text in found:
        run_block(language, text, place, bucket)


def test_no_command_is_left_out():
    """Each block of the docs says what it is, and every page is one of those above or has no commands."""
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        if path.stem == "cluster":  # test_cluster.py runs what needs neither SLURM nor Kubernetes
            continue
        text, is_run = path.read_text(), path.relative_to(ROOT).as_posix() in DOCS
        assert not re.findall(r"```(sh|python|sql|r)\n", text) or is_run
        left = re.sub(r"```sh\n.*?```", "", text, flags=re.DOTALL)
        assert ".venv/bin/python" not in left
        assert path.stem == "README" or "faiss_0" not in left or not is_run


def test_the_readme_runs_all_scripts():
    """In their order, with the same settings."""
    [(_, text)] = blocks("README.md")
    lines = [shlex.split(line) for line in text.splitlines()]
    assert [line[1] for line in lines] == SCRIPTS
    assert len({tuple(line[2:]) for line in lines}) == 1
