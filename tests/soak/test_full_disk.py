"""A file system that fills up."""

import os
import subprocess

import pytest
from conftest import SCRIPTS, command, finished_run, tree_bytes
from test_faults import SETTINGS, SHAPE


@pytest.fixture
def whole(tmp_path):
    """A finished run of 300 rows, with its pictures."""
    return finished_run(tmp_path / "whole", *SHAPE, **SETTINGS)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB, where this process may make one. Yields its folder and how to make it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs to mount a file system")
    yield folder, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)
    subprocess.run(["umount", folder], check=True)


@pytest.mark.pictures
def test_a_disk_that_fills(whole, small_disk):
    """From the shell, each script on a disk that grows by 16 KB whenever it is full: one line, and it goes on."""
    (disk, grow), size, full = small_disk, 64, 0
    options = [w for k, v in SETTINGS.items() for w in (f"--{k.replace('_', '-')}", v)]
    for script in SCRIPTS:
        while True:
            done = command(script, "--data-dir", whole / "data", "--work-dir", disk / "work", *options)
            if done.returncode == 0:
                break
            assert done.returncode == 1, done.stderr
            assert done.stderr.count("\n") == 1, done.stderr
            assert "No space left" in done.stderr or "make room there" in done.stderr, done.stderr
            full, size = full + 1, size + 48
            grow(f"{size}k")
    assert full >= 5
    assert tree_bytes(disk / "work") == tree_bytes(whole / "work")
