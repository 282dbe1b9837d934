"""What stages leave on disk: a folder each, whole or absent, that says what it was made from."""

import os
import resource
import shutil
import time
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from neardup import NeardupError, copies, engine, mirror
from neardup.checksums import digest_of_file, digest_of_values
from neardup.embeddings import shard_starts
from neardup.files import link, read_json, sync_folder, write_json
from neardup.freshness import changed_shards, fingerprint, remember, tables_digest, times
from neardup.growth import Growth, growth_of
from neardup.manifests import (
    FORMAT,
    MANIFEST,
    differences,
    read_manifest,
    searched_lower,
    some_of,
    write_manifest,
)
from neardup.shards import Reading, blocks, find_shards, joined, wanted

STAGES = {  # folder of a stage, in their order: the script that writes it, and the settings that shape it
    "01_pca_variance": ("faiss_01_pca_variance.py", ("target_variance", "bad_rows", "duplicate_ids")),
    "02_pca_reduce": ("faiss_02_pca_reduce.py", ("sketch_dims",)),
    "03_kmeans": ("faiss_03_kmeans.py", ("n_clusters", "random_state")),
    "04_neighbor_search": ("faiss_04_neighbor_search.py", ("search_threshold", "pairs", "audit_rows", "random_state")),
    "045_merge": (
        "faiss_045_merge.py",
        ("threshold", "target_rows", "grouping", "representative", "keep_previous", "tabulate", "preview", "export"),
    ),
}
_CHOOSES = "045_merge"  # which reads metadata, whose change concerns no other stage, and all that can be chosen anew
N_REFERENCE = 3  # the first stages, which a second set has of its own
TIMES, REPORT = "times.json", "report.html"  # of a stage, but not the same in each run: what it took, and what shows it
_ENDINGS = "partial", "old", "removed"  # of hidden folders: being built, being replaced, being removed
_PARTS = "parts"  # folder of work in progress
_BEGUN = "begun.json"  # in a folder under construction: the key of what it will be
LEADING = [  # of a work folder: what the files of its folders go together with
    entry for name in STAGES for entry in ((name, (MANIFEST,)), (f".{name}.partial", (_BEGUN, MANIFEST)))
]


class Stage:
    """The folder of one stage: being built at `folder`, or already `finished` there, with its `results`.

    manifest: of a finished one; run: the `Run` that builds it; memory: bytes its blocks may take; previous:
    the same stage, finished, of other shards, and the `Growth` from those; None where none is of use.
    """

    def __init__(self, name, folder, key, manifest=None, run=None, memory=None, previous=None):
        self.name, self.folder, self.key, self.run, self.memory = name, folder, key, run, memory
        self.previous, self.growth = previous or (None, None)
        self.boot = _boot_id() if engine.is_local() else None
        self.results = manifest and manifest["results"]
        self.files = manifest["files"] if manifest else {}  # digests, by name; while it is built those it took over
        self._unseen = dict(self.files)

    def __getstate__(self):
        """What tasks need of it, wherever they run."""
        return self.__dict__ | {"run": None, "previous": None}

    @property
    def finished(self):
        return self.results is not None

    @property
    def shown(self):
        """Its folder as users know it."""
        return mirror.shown(self.folder)

    def path(self, *parts):
        """A file of this stage; of a finished one, after a look that it is what the stage wrote."""
        path = mirror.here(self.folder.joinpath(*parts))
        if self.finished:
            self._verify("/".join(parts), path)
        return path

    def paths(self, names, n_workers):
        """As `path`, of many files of a finished stage, which are read in tasks."""
        paths = [self.folder / name for name in names]
        new = [(name, path) for name, path in zip(names, paths, strict=True) if self._unseen.get(name, "") is not None]
        found = engine.run(_digest_if_there, [(path,) for _, path in new], n_workers, "checksums")
        for (name, path), digest in zip(new, found, strict=True):
            self._verify(name, path, digest)
        return paths

    def _verify(self, name, path, digest=None):
        """Raises NeardupError where a file isn't what its stage wrote. Each is read once."""
        expected = self._unseen.get(name, "")
        if expected is None:
            return
        if (digest or _digest_if_there(path)) != expected:
            raise NeardupError(
                f"{mirror.shown(path)} is missing or not what {STAGES[self.name][0]} wrote: remove {self.shown} and "
                "run it again"
            )
        self._unseen[name] = None

    def take_over(self, name, then=None):
        """Have a file of the previous stage, as it is. then: its name there, where it is another."""
        then = then or name
        source = mirror.here(self.previous.folder / then)
        if not self.path(name).exists():
            link(source if source.exists() else self.previous.path(then), self.path(name))
        self.files[name] = self.previous.files[then]

    def needs(self, size):
        """Raises NeardupError where the disk has no room for so many bytes, less those that are there."""
        there = sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
        free = shutil.disk_usage(self.folder).free
        if size - there > free:
            raise NeardupError(
                f"{self.folder} needs about {(size - there) / 1e9:.3g} GB more, and its disk has {free / 1e9:.3g} GB "
                "free: make room there, or set another work_dir"
            )

    def finish(self, results):
        """Publish what was built in one rename, its manifest written last. results: small JSON values.

        Returns the finished stage. An earlier version of it is there until the moment the new one is.
        Raises NeardupError where the input isn't any more what it was when the stage began.
        """
        self._check_input(results)
        _remove_temporary(self.folder)
        files = {p.relative_to(self.folder).as_posix(): p for p in mirror.files(self.folder) if self._is_result(p)}
        new = [name for name in files if name not in self.files]
        digests = engine.run(_digest_if_there, [(files[n],) for n in new], self.run.config.n_workers, "checksums")
        digests = self.files | dict(zip(new, digests, strict=True))
        self.note_times()
        content = {**self.key, "results": results, "files": {name: digests[name] for name in files}}
        self.run.content = results.get("content", self.run.content)
        content["shards"] = self.run.shards_held()
        write_manifest(self.path(MANIFEST), content)
        final = self.folder.with_name(self.name)
        _publish(self.folder, final)
        return Stage(self.name, final, self.key, content)

    def _is_result(self, path):
        return self.path(_PARTS) not in path.parents and path.name not in (_BEGUN, MANIFEST, TIMES, REPORT)

    def note_times(self):
        """Write what this run took, and at most held in memory, into times.json, and return it."""
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        seconds = round(time.perf_counter() - self.run.began, 3)
        took = {"seconds": seconds, "peak_bytes": peak_bytes, "tasks": engine.took()}
        write_json(self.folder / TIMES, took)
        return took

    def _check_input(self, results):
        run, work_dir = self.run, self.folder.parent
        content = results.get("content", run.content)
        if "content" in results:
            remember(work_dir, run.shards, run.times, content)
        before, now = run.fingerprint, fingerprint(run.shards)
        changed = [n["name"] for b, n in zip(before, now, strict=True) if b != n]
        changed = changed or [s.name for s in run.shards if not copies.is_current(s)]
        changed = changed or run.names(changed_shards(work_dir, run.shards, content, run.config.n_workers))
        if changed:
            _remove(self.folder, self.folder.with_name(f".{self.name}.removed"))
            script = next(iter(STAGES.values()))[0]
            raise NeardupError(f"the input ({some_of(changed)}) changed while it was read: run {script} again")

    def part(self, *name, suffix=".npy"):
        """A file of work in progress, which an interrupted run leaves to the next, and a finished stage drops."""
        return self.path(_PARTS, "_".join(f"{n:05d}" if isinstance(n, int) else n for n in name) + suffix)

    def volatile(self, *name):
        """As `part`, of what is soon made anew: on this machine not looked for after it starts again.

        So it need not be flushed, but where others write it (`self.boot` is None).
        """
        return self.part(*name).parent / (self.boot or "kept") / self.part(*name).name

    def drop_parts(self):
        """Remove all work in progress: it led to something that can't be."""
        _remove(self.path(_PARTS), self.folder.with_name(f".{self.name}.removed"))


def _digest_if_there(path):
    """Digest of a file; of none something else."""
    return digest_of_file(path) if mirror.here(path).is_file() else "missing"


class Run:
    """What a script found when it began: settings, shards, and what identifies the input.

    reference: of a second set, whose `n_before` shards come first, {name: finished `Stage`} of its own.
    """

    def __init__(self, config, shards, reference=None, n_before=0):
        self.config, self.shards, self.reference, self.n_before = config, shards, reference, n_before
        self.fingerprint, self.times, self.content = fingerprint(shards), times(shards), None
        self.memory = engine.working_memory(config.memory_limit, sum(s.rows for s in shards))
        self.began = time.perf_counter()

    def names(self, numbers):
        """Names of some shards."""
        return [self.shards[number].path.name for number in numbers]

    def shards_held(self):
        """What each shard holds, in a digest, and its rows."""
        return [[digest_of_values(both), both[0]["rows"]] for both in zip(self.fingerprint, self.content, strict=True)]


def begin(config, name):
    """Check the stages before this one and open its folder.

    Returns (stage, shards, earlier): the stage is `finished` if it was made from this input with these settings;
    else its folder holds what an interrupted run of the same left. `earlier` maps names to finished stages.
    Raises NeardupError if an earlier stage is missing or was made from something else.
    """
    _check_folders(config.data_dir, config.work_dir)
    shards, reference, n_before = _shards_of(config), None, 0
    if config.against_dir is not None:
        second = Run(config.reference, _shards_of(config.reference))
        names = list(STAGES)
        reference, _ = _earlier(second, names[min(names.index(name) + 1, N_REFERENCE)])
        shards, n_before = joined(second.shards, shards), len(second.shards)
    run = Run(config, shards, reference, n_before)
    earlier, key = _earlier(run, name)
    return _open(run, name, key), run.shards, earlier


def open_finished(config):
    """All five stages, finished, by name, and the shards. Raises NeardupError as `begin`; writes nothing."""
    last = list(STAGES)[-1]
    run = Run(config, _shards_of(config))
    stages, key = _earlier(run, last)
    return stages | {last: _finished_stage(run, last, key)}, run.shards


def _shards_of(config):
    """The shards of an input, decoded where they have to be."""
    shards = find_input(config)
    copies.make(shards, blocks, config.n_workers)
    return shards


def _earlier(run, name):
    """The finished stages before one, by name, and the key of that one."""
    source, earlier = run.fingerprint, {}
    for stage, (_, settings) in STAGES.items():
        key = {"stage": stage, "format": FORMAT, "settings": {s: getattr(run.config, s) for s in settings}}
        key["source"] = source
        if stage == _CHOOSES:
            key["settings"]["tables"] = tables_digest(run.config, run.shards)
        if run.reference:
            second = run.reference.get(stage)
            key["settings"]["against"] = second and digest_of_values([second.key, second.files])
        if stage == name:
            break
        earlier[stage] = _finished_stage(run, stage, key)
        key = earlier[stage].key
        run.content = run.content or earlier[stage].results["content"]
        source = digest_of_values([key, run.content, earlier[stage].files])
    return earlier, key


def reading_of(config):
    """How the settings say to read the input."""
    return Reading(*(getattr(config, setting) for setting in Reading._fields))


def find_input(config):
    """The shards of the input; what is remote is fetched, as far as needed."""
    reading = reading_of(config)
    copy_dir, data_dir = config.work_dir / copies.FOLDER, config.data_dir
    ours = [*_stage_folders(config.work_dir), copy_dir]
    if config.against_dir is not None:
        ours += [*_stage_folders(config.reference.work_dir), config.reference.work_dir / copies.FOLDER]
    if not isinstance(data_dir, Path):
        data_dir, ours = copies.fetch(data_dir, copy_dir, partial(wanted, reading, data_dir), config.n_workers), []
    return find_shards(data_dir, reading, copy_dir / copies.DECODED, ours)


def _stage_folders(work_dir):
    """Every folder in `work_dir` that a stage may write or remove."""
    return [f for name in STAGES for f in (work_dir / name, *(work_dir / f".{name}.{end}" for end in _ENDINGS))]


def _check_folders(data_dir, work_dir):
    """Raises NeardupError where a stage's folder would replace what isn't a stage's."""
    for folder in _stage_folders(work_dir):
        if isinstance(data_dir, Path) and data_dir.resolve().is_relative_to(folder.resolve()):
            raise NeardupError(f"data_dir {data_dir} lies in {folder}, which a stage replaces: set another work_dir")
    for folder in (work_dir / name for name in STAGES):
        if folder.exists() and not ((folder / MANIFEST).exists() or _old(folder).exists()):
            raise NeardupError(f"{folder} exists but no stage made it: move it away, or set another work_dir")


def _finished_stage(run, name, key):
    """A stage that is finished and has this key. Raises NeardupError that says which script to run."""
    folder, script = run.config.work_dir / name, STAGES[name][0]
    _recover(folder)
    if not (folder / MANIFEST).exists():
        raise NeardupError(f"{mirror.shown(folder)} is missing: run {script} first")
    manifest = read_manifest(folder / MANIFEST)
    key = searched_lower(manifest, key)
    other = differences(manifest, key) or _changes(run, manifest)
    if other:
        raise NeardupError(f"{mirror.shown(folder)} was made {other}: run {script} again, or set it back")
    return Stage(name, folder, key, manifest)


def _changes(run, manifest):
    """How the input differs from what stage 1 read, in words; empty if it doesn't. Of other stages always empty."""
    if "content" not in manifest["results"]:
        return ""
    recorded, config = manifest["results"]["content"], run.config
    changed = changed_shards(config.work_dir, run.shards, recorded, config.n_workers, config.verify_input)
    return f"from other input ({some_of(run.names(changed))} changed)" if changed else ""


def _open(run, name, key):
    """The finished stage if it has this key, else its folder under construction."""
    final, folder = run.config.work_dir / name, run.config.work_dir / f".{name}.partial"
    _recover(final)
    if (folder / MANIFEST).exists() and not differences(read_manifest(folder / MANIFEST), key):
        _publish(folder, final)  # killed between its last word and its publication
    if (final / MANIFEST).exists():
        manifest = read_manifest(final / MANIFEST)
        if not (differences(manifest, key) or _changes(run, manifest)):
            _tidy(final)
            return Stage(name, final, key, manifest)
    previous = _previous(run, final, key)
    begun, what = folder / _BEGUN, key if run.content else key | {"times": run.times}
    if previous and previous[0]:
        what = what | {"grows": digest_of_values(previous[0].files)}
    _remove_temporary(folder)
    if not (begun.exists() and read_json(begun) == what):
        _remove(folder, folder.with_name(f".{name}.removed"))
        folder.mkdir(parents=True)
        write_json(begun, what)
    return Stage(name, folder, key, run=run, memory=run.memory, previous=previous)


def _previous(run, final, key):
    """The same stage of other shards, finished, and the `Growth` from those; None where nothing of it is of use.

    Of a run against a second set those are that one's, as far as it has such a stage.
    """
    if run.reference:
        starts, n_before = shard_starts(run.shards), run.n_before
        growth = Growth(starts[: n_before + 1], starts, np.arange(n_before), against=True)
        return run.reference.get(key["stage"]), growth
    if not (final / MANIFEST).exists():
        return None
    manifest = read_manifest(final / MANIFEST)
    key = key | {"source": manifest.get("source")}
    if "against" in manifest.get("settings", {}):  # which holds no pairs within a set
        return None
    if key["stage"] == _CHOOSES:
        key["settings"] = manifest.get("settings")
    if differences(manifest, searched_lower(manifest, key)):
        return None
    growth = growth_of(run, manifest)
    return growth and (Stage(key["stage"], final, key, manifest), growth)


def _publish(folder, final):
    """Put a finished folder in the place of an earlier one."""
    names = [path.relative_to(folder).as_posix() for path in mirror.files(folder) if path.name != _BEGUN]
    mirror.publish(folder, final, [name for name in names if not name.startswith(f"{_PARTS}/")], last=MANIFEST)
    old = _old(final)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(folder, final)
    sync_folder(final.parent)
    _tidy(final)


def _tidy(final):
    """Remove what a finished stage needs no more."""
    (final / _BEGUN).unlink(missing_ok=True)
    for leftover in (final / _PARTS, _old(final), final.with_name(f".{final.name}.removed")):
        shutil.rmtree(leftover, ignore_errors=True)


def _remove(folder, aside):
    """Remove a folder whose content belongs together: out of the way in one step, for removing may be cut off."""
    mirror.remove(folder)
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _recover(final):
    """Complete a publication that was cut off between its two renames."""
    if not final.exists() and _old(final).exists():
        partial = final.with_name(f".{final.name}.partial")
        os.rename(partial if (partial / MANIFEST).exists() else _old(final), final)


def _remove_temporary(folder):
    """Remove the files that an interrupted run was writing."""
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _old(final):
    return final.with_name(f".{final.name}.old")


@lru_cache
def _boot_id():
    """What is different after each start of the machine; the same always where the system doesn't tell."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else "boot"
