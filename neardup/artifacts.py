"""What stages leave on disk: a folder each, whole or absent, that says what it was made from."""

import hashlib
import json
import os
import pickle
import shutil
import zipfile
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from neardup import NeardupError
from neardup.embeddings import find_shards, fingerprint

STAGES = {  # folder of a stage, in their order: the script that writes it, and the settings that shape it
    "01_pca_variance": ("faiss_01_pca_variance.py", ("target_variance", "bad_rows", "duplicate_ids")),
    "02_pca_reduce": ("faiss_02_pca_reduce.py", ("sketch_dims",)),
    "03_kmeans": ("faiss_03_kmeans.py", ("n_clusters", "random_state")),
    "04_neighbor_search": ("faiss_04_neighbor_search.py", ("threshold", "pairs", "audit_rows", "random_state")),
    "045_merge": ("faiss_045_merge.py", ()),
}
_FORMAT = 2  # of the artifacts; a new one makes all older work stale
_MANIFEST = "manifest.json"
_ENDINGS = "partial", "old", "removed"  # of hidden folders: being built, being replaced, being removed
_PARTS = "parts"  # folder of work in progress
_BEGUN = "begun.json"  # in a folder under construction: the key of what it will be


class Stage:
    """The folder of one stage: being built at `folder`, or already `finished` there, with its `results`."""

    def __init__(self, name, folder, key, results=None):
        self.name, self.folder, self.key, self.results = name, folder, key, results

    @property
    def finished(self):
        return self.results is not None

    def path(self, *parts):
        """A file of this stage."""
        return self.folder.joinpath(*parts)

    def finish(self, results):
        """Publish what was built in one rename, its manifest written last. results: small JSON values.

        Returns the finished stage. An earlier version of it is there until the moment the new one is.
        """
        write_json(self.path(_MANIFEST), {**self.key, "results": results})
        final = self.folder.with_name(self.name)
        _publish(self.folder, final)
        return Stage(self.name, final, self.key, results)

    def part(self, *name, suffix=".npy"):
        """A file of work in progress, which an interrupted run leaves to the next, and a finished stage drops."""
        return self.path(_PARTS, "_".join(f"{n:05d}" if isinstance(n, int) else n for n in name) + suffix)

    def volatile(self, *name):
        """As `part`, of what is soon made anew: not flushed to disk, nor looked for after a restart of the machine."""
        return self.part(*name).parent / _boot_id() / self.part(*name).name

    def drop_parts(self):
        """Remove all work in progress: it led to something that can't be."""
        _remove(self.path(_PARTS), self.folder.with_name(f".{self.name}.removed"))


def begin(config, name):
    """Check the stages before this one and open its folder.

    Returns (stage, shards, earlier): the stage is `finished` if it was made from this input with these settings;
    else its folder holds what an interrupted run of the same left. `earlier` maps names to finished stages.
    Raises NeardupError if an earlier stage is missing or was made from something else.
    """
    _check_folders(config.data_dir, config.work_dir)
    shards = find_shards(config.data_dir, config.shard_pattern, _stage_folders(config.work_dir))
    keys = _expected_keys(config, shards)
    earlier = {}
    for previous in list(STAGES)[: list(STAGES).index(name)]:
        results = _results_of(config.work_dir, previous, keys[previous])
        earlier[previous] = Stage(previous, config.work_dir / previous, keys[previous], results)
    return _open(config.work_dir, name, keys[name]), shards, earlier


def _stage_folders(work_dir):
    """Every folder in `work_dir` that a stage may write or remove."""
    return [f for name in STAGES for f in (work_dir / name, *(work_dir / f".{name}.{end}" for end in _ENDINGS))]


def _check_folders(data_dir, work_dir):
    """Raises NeardupError where a stage's folder would replace what isn't a stage's."""
    for folder in _stage_folders(work_dir):
        if data_dir.resolve().is_relative_to(folder.resolve()):
            raise NeardupError(f"data_dir {data_dir} lies in {folder}, which a stage replaces: set another work_dir")
    for folder in (work_dir / name for name in STAGES):
        if folder.exists() and not ((folder / _MANIFEST).exists() or _old(folder).exists()):
            raise NeardupError(f"{folder} exists but no stage made it: move it away, or set another work_dir")


def _expected_keys(config, shards):
    """What each stage's manifest says if it is of this configuration and input; each names the one before by hash."""
    keys, source = {}, fingerprint(shards)
    for name, (_, settings) in STAGES.items():
        values = {s: getattr(config, s) for s in settings}
        keys[name] = {"stage": name, "format": _FORMAT, "settings": values, "source": source}
        source = hashlib.sha256(json.dumps(keys[name], sort_keys=True).encode()).hexdigest()
    return keys


def _results_of(work_dir, name, key):
    """The results of a finished stage that has this key. Raises NeardupError that says which script to run."""
    script = STAGES[name][0]
    _recover(work_dir / name)
    if not (work_dir / name / _MANIFEST).exists():
        raise NeardupError(f"{work_dir / name} is missing: run {script} first")
    manifest = read_json(work_dir / name / _MANIFEST)
    differences = _differences(manifest, key)
    if differences:
        raise NeardupError(f"{work_dir / name} was made {differences}: run {script} again, or set it back")
    return manifest["results"]


def _differences(manifest, key):
    """How what a stage was made from differs from `key`, in words; empty if it doesn't."""
    then, now = manifest.get("settings", {}), key["settings"]
    changed = [f"with {s} {then.get(s)}, not {now[s]}" for s in now if then.get(s) != now[s]]
    if changed:
        return " and ".join(changed)
    if manifest.get("format") != key["format"]:
        return "by another version of the scripts"
    source = manifest.get("source")
    if source == key["source"]:
        return ""
    if not isinstance(source, list):
        return "from an earlier stage that has changed since"
    old = {s["name"]: s for s in source}
    names = [s["name"] for s in key["source"] if old.pop(s["name"], None) != s] + list(old)
    return f"from other input ({', '.join(names[:3]) or 'its shards'} changed)"


def _open(work_dir, name, key):
    """The finished stage if it has this key, else its folder under construction."""
    _recover(work_dir / name)
    manifest = work_dir / name / _MANIFEST
    if manifest.exists():
        content = read_json(manifest)
        if not _differences(content, key):
            _tidy(work_dir / name)
            return Stage(name, work_dir / name, key, content["results"])
    folder = work_dir / f".{name}.partial"
    begun = folder / _BEGUN
    if (folder / _MANIFEST).exists() and not _differences(read_json(folder / _MANIFEST), key):
        _publish(folder, work_dir / name)  # killed between its last word and its publication
        return Stage(name, work_dir / name, key, read_json(manifest)["results"])
    if not (begun.exists() and read_json(begun) == key):
        _remove(folder, work_dir / f".{name}.removed")
        folder.mkdir(parents=True)
        write_json(begun, key)
    return Stage(name, folder, key)


def _publish(folder, final):
    """Put a finished folder in the place of an earlier one."""
    old = _old(final)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(folder, final)
    _sync_folder(final.parent)
    _tidy(final)


def _tidy(final):
    """Remove what a finished stage needs no more."""
    (final / _BEGUN).unlink(missing_ok=True)
    for leftover in (final / _PARTS, _old(final), final.with_name(f".{final.name}.removed")):
        shutil.rmtree(leftover, ignore_errors=True)


def _remove(folder, aside):
    """Remove a folder whose content belongs together: out of the way in one step, for removing may be cut off."""
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _recover(final):
    """Complete a publication that was cut off between its two renames."""
    if not final.exists() and _old(final).exists():
        partial = final.with_name(f".{final.name}.partial")
        os.rename(partial if (partial / _MANIFEST).exists() else _old(final), final)


def _old(final):
    return final.with_name(f".{final.name}.old")


def read_json(path):
    """A JSON object of ours. Raises NeardupError where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise NeardupError(f"{path} is damaged ({error}): remove {path.parent} and run the scripts again") from error
    if not isinstance(content, dict):
        raise NeardupError(f"{path} holds no JSON object: remove {path.parent} and run the scripts again")
    return content


@contextmanager
def atomic(path, flush=True):
    """Yield a temporary path beside `path`; what is written there appears as `path` whole, or not at all.

    flush: also if the power fails.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    if flush:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    os.replace(temporary, path)
    if flush:
        _sync_folder(path.parent)


@lru_cache
def _boot_id():
    """What is different after each start of the machine; the same always where the system doesn't tell."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else "boot"


def write_json(path, content):
    """Write small values as JSON, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


def write_npy(path, array, flush=True):
    """Write an array as .npy, whole or not at all. flush: as of `atomic`."""
    with atomic(path, flush) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def write_npz(path, **arrays):
    """Write arrays as .npz, whole or not at all, with the same bytes each time: numpy.savez puts the clock in."""
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


class _Items:
    """A dict to be pickled from an iterator of its items: never in memory, though it loads as a plain dict."""

    def __init__(self, items):
        self.items = items

    def __reduce__(self):
        return dict, (), None, None, self.items


def write_stream(path, items):
    """Write a pickle of the dict with these items, for users, holding one item at a time."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        pickler = pickle.Pickler(file, protocol=4)
        pickler.fast = True  # no memo of everything written
        pickler.dump(_Items(items))


@contextmanager
def npy_rows(path, shape, flush=True):
    """Yield a function that appends blocks of float32 rows to a .npy file of this shape, which appears when full.

    flush: as of `atomic`. Written, not mapped: a full disk then is an error that can be reported, not a signal.
    """
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with atomic(path, flush) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda block: file.write(np.ascontiguousarray(block, dtype="<f4").data)


def _sync_folder(folder: Path):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
