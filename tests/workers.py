"""A scheduler and workers of Dask for tests, and the run on threads that theirs is compared with."""

import logging
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import NOTES, SCRIPTS, lay_out, run_stages, tree_bytes

from config import ROOT
from neardup.stages.artifacts import STAGES

NAMES = list(STAGES)
SETTINGS = {"threshold": 0.9, "n_clusters": 6, "audit_rows": 50}
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
SLOW = Path(__file__).with_name("slow_worker.py")
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "2s",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run on threads: `data` and `work`."""
    folder, rng = tmp_path_factory.mktemp("whole"), np.random.default_rng(0)
    rows = rng.normal(size=(3000, 32)).astype(np.float32)
    rows[1000:1400] = rows[:400] + 0.05 * rng.normal(size=(400, 32))
    run_stages(lay_out(folder / "data", rows, cuts=[900, 2100]), folder / "work", **SETTINGS)
    return folder


@contextmanager
def process(*command, **environment):
    """A process that ends with the block. Yields it. command: as in a shell, settings of its environment first."""
    command = [str(word) for word in command]
    while "=" in command[0]:
        name, _, environment[name] = command.pop(0).partition("=")
    environment = {**os.environ, **ENVIRONMENT, **environment}
    running = subprocess.Popen(command, env=environment, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield running
    finally:
        running.send_signal(signal.SIGCONT)
        running.kill()
        running.wait()


def dask(*arguments, **environment):
    """A `process` of Dask."""
    return process(sys.executable, "-m", "dask", *arguments, **environment)


def scheduler(port, **environment):
    return dask("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard", **environment)


@contextmanager
def two_networks():
    """Two network namespaces, joined by a pair of interfaces. Yields for each its address, how commands begin in it.

    Skips the test where the system doesn't allow them.
    """
    names = [f"neardup{os.getpid()}{end}" for end in "ab"]  # of at most 15 characters, for interfaces have them too
    addresses = ["10.123.0.1", "10.123.0.2"]
    commands = [["netns", "add", name] for name in names]
    commands.append(["link", "add", names[0], "netns", names[0], "type", "veth", "peer", names[1], "netns", names[1]])
    for name, address in zip(names, addresses, strict=True):
        commands.append(["-n", name, "addr", "add", f"{address}/24", "dev", name])
        commands += [["-n", name, "link", "set", device, "up"] for device in ("lo", name)]
    try:
        for words in commands:
            if subprocess.run(["ip", *words], check=False, capture_output=True).returncode:
                pytest.skip(f"not allowed here: ip {' '.join(words)}")
        yield [(address, ["ip", "netns", "exec", name]) for name, address in zip(names, addresses, strict=True)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def worker(port, *more, **environment):
    options = ["--nthreads", 1, "--no-dashboard", "--no-nanny", "--host", "127.0.0.1", *more]
    return dask("worker", f"tcp://127.0.0.1:{port}", *options, **environment)


def slow_worker(port, seconds, **environment):
    """A worker whose tasks take so much longer."""
    return worker(port, "--preload", SLOW, NEARDUP_TEST_DELAY=str(seconds), **environment)


def begin(script, whole, work, port, host="127.0.0.1", within=()):
    """Start a script on the cluster. within: words before its command."""
    return begin_anywhere(script, whole / "data", work, port, host, within)


def begin_anywhere(script, data, work, port, host="127.0.0.1", within=(), **environment):
    """As `begin`, with folders or URLs."""
    address = ["--scheduler", f"tcp://{host}:{port}"]
    arguments = [*within, sys.executable, ROOT / script, "--data-dir", data, "--work-dir", work, *OPTIONS, *address]
    environment = {**os.environ, **environment}
    return started(arguments, env=environment)


def started(command, **options):
    """A process that leads a session, for `ended`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, start_new_session=True, **options)


@pytest.fixture(scope="module")
def bucket(whole):
    """A bucket of a server that speaks S3, with the input of `whole`. Yields its client, and an environment for it."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        client = boto3.client("s3", "us-east-1", endpoint_url=url, aws_access_key_id="x", aws_secret_access_key="x")
        client.create_bucket(Bucket="bucket")
        upload(client, whole / "data", "data")
        yield client, {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": url}
    finally:
        server.stop()


def upload(client, folder, prefix):
    """Put all files below a folder into the bucket."""
    for name, content in tree_bytes(folder).items():
        client.put_object(Bucket="bucket", Key=f"{prefix}/{name}", Body=content)


def download(client, prefix, folder):
    """What the bucket holds below a prefix, as files."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=f"{prefix}/"):
        for entry in page.get("Contents", []):
            path = folder / entry["Key"].removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(client.get_object(Bucket="bucket", Key=entry["Key"])["Body"].read())
    return folder


def hosts(tmp_path, *names):
    """Environments of hosts that share no disk: each has a folder of its own for copies of what is in the bucket."""
    for name in names:
        (tmp_path / name).mkdir()
    return [{"TMPDIR": str(tmp_path / name)} for name in names]


def ended(running, timeout=300):
    """Its exit status, output and errors, of which the dashboard's address is left out. running: leads its session."""
    try:
        out, error = running.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        raise
    lines = [line for line in error.splitlines() if not line.startswith("dashboard: http://")]
    return running.returncode, out, lines


def same(whole, work, names=NAMES):
    """Whether these stages of a run have the bytes of the run on threads."""
    left_out = NOTES | {"begun.json"}
    for name in names:
        ours, theirs = (
            {k: v for k, v in tree_bytes(folder / name).items() if Path(k).name not in left_out}
            for folder in (work, whole / "work")
        )
        assert ours == theirs, name


def refused(whole, work, port):
    """The one line of a script that doesn't run on what answers at this port."""
    status, out, lines = ended(begin(SCRIPTS[0], whole, work, port))
    assert (status, out, len(lines)) == (1, "", 1), lines
    assert not (work / "01_pca_variance").exists()
    return lines[0]
