"""Which files a pattern means: as the shell's, links followed; on disk and behind URLs the same."""

import errno
import glob
import os
from pathlib import Path, PurePath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neardup import NeardupError
from neardup.input.patterns import among, on_disk

PARTS = st.sampled_from(["a", "b.npy", "a_10.npy", "a_9.npy", ".b.npy", ".git", "_temporary", "_delta_log", "_a"])
PATTERNS = [
    "*",
    "*.npy",
    "**/*.npy",
    "**/*",
    "*/*.npy",
    "**/a/*",
    "a/**/*.npy",
    "[ab]*",
    ".*",
    "**/.b.npy",
    ".git/*",
    "_a/*",
]
SKIPPED = {"_temporary", "_delta_log", "lost+found"}


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


def names(folder, pattern, ours=()):
    return [str(name) for name in on_disk(folder, set(ours), pattern) if (folder / name).is_file()]


@given(
    files=st.sets(st.lists(PARTS, min_size=1, max_size=4).map("/".join), max_size=9), pattern=st.sampled_from(PATTERNS)
)
@settings(deadline=None, max_examples=150)
def test_patterns_mean_what_the_shell_means(tmp_path_factory, files, pattern):
    """But for folders that `**` skips; and of names alone the same."""
    folder = tmp_path_factory.mktemp("tree")
    files = {f for f in files if not any(other.startswith(f + "/") for other in files)}
    touch(folder, *files)
    matching = glob.glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207 - Path.glob takes hidden files
    expected = {f for f in matching if (folder / f).is_file()}
    if "**" in pattern:
        expected = {f for f in expected if SKIPPED.isdisjoint(PurePath(f).parts[:-1])}
    found = names(folder, pattern)
    assert set(found) == expected
    assert len(found) == len(expected)
    assert [str(name) for name in among(sorted(files), pattern)] == found


@pytest.mark.parametrize("pattern", ["**/*.npy", "*/*.npy", "linked/*.npy"])
def test_linked_folders_and_files_are_read(tmp_path, pattern):
    """Of a disk that is full, say."""
    touch(tmp_path, "other/c.npy", "other/below/d.npy", "data/linked_not/a.npy")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "data" / "linked_not" / "b.npy").symlink_to(tmp_path / "other" / "c.npy")
    expected = {"linked/c.npy"} | ({"linked_not/a.npy", "linked_not/b.npy"} if pattern != "linked/*.npy" else set())
    expected |= {"linked/below/d.npy"} if "**" in pattern else set()
    assert set(names(tmp_path / "data", pattern)) == expected


def test_links_in_circles_end(tmp_path):
    """To where they are, one to another and back, to themselves; and a file is found once on each way to it."""
    touch(tmp_path, "a/x.npy", "b/y.npy")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
    (tmp_path / "self").symlink_to("self")
    assert names(tmp_path, "**/*.npy") == ["a/b/y.npy", "a/x.npy", "b/a/x.npy", "b/y.npy"]


def test_nothing_in_our_folders_is_found(tmp_path):
    """Nor what links to it."""
    touch(tmp_path, "work/01/a.npy", "b.npy")
    (tmp_path / "c.npy").symlink_to(tmp_path / "work" / "01" / "a.npy")
    (tmp_path / "linked").symlink_to(tmp_path / "work")
    ours = [Path(os.path.realpath(tmp_path / "work" / "01"))]
    assert names(tmp_path, "**/*.npy", ours) == ["b.npy"]
    assert names(tmp_path, "work/01/*.npy", ours) == []


@pytest.mark.parametrize("pattern", ["", ".", "..", "../*.npy", "/a/*.npy", "a**/b"])
def test_what_is_no_pattern_is_refused(tmp_path, pattern):
    for find in (lambda: on_disk(tmp_path, set(), pattern), lambda: among(["a.npy"], pattern)):
        with pytest.raises(NeardupError, match="is no pattern within data_dir"):
            find()


def test_a_folder_that_can_not_be_read_is_named(tmp_path, monkeypatch):
    """For what lies in it is missed otherwise. (To root, which tests may run as, all can be read.)"""
    touch(tmp_path, "locked/a.npy", "b.npy")
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(NeardupError, match=r"locked can't be read \(Permission denied\): mend that, or leave it out"):
        on_disk(tmp_path, set(), "**/*.npy")
    assert names(tmp_path, "*.npy") == ["b.npy"]
