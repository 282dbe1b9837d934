"""What stages leave on disk: a folder each, whole or absent, that says what it was made from."""

import time
from functools import lru_cache, partial
from pathlib import Path

from neardup import NeardupError
from neardup.input import copies
from neardup.input.freshness import changed_shards, fingerprint, remember, times
from neardup.machine import engine, mirror
from neardup.machine.checksums import digest_of_file
from neardup.machine.files import link, need_room, sync_folder, write_json, write_npy
from neardup.machine.npy import read_npy
from neardup.stages.folders import BEGUN, OLD, PARTIAL, PARTS, REMOVED, hidden, publish, remove, remove_temporary
from neardup.stages.manifests import MANIFEST, some_of, write_manifest

STAGES = {  # folder of a stage, in their order: the script that writes it, and the settings that shape it
    "01_pca_variance": ("faiss_01_pca_variance.py", ("target_variance", "basis_rows", "bad_rows", "duplicate_ids")),
    "02_pca_reduce": ("faiss_02_pca_reduce.py", ("sketch_dims",)),
    "03_kmeans": ("faiss_03_kmeans.py", ("n_clusters", "random_state")),
    "04_neighbor_search": ("faiss_04_neighbor_search.py", ("search_threshold", "pairs", "audit_rows", "random_state")),
    "045_merge": (
        "faiss_045_merge.py",
        ("threshold", "target_rows", "grouping", "representative", "keep_previous", "tabulate", "preview", "export"),
    ),
}
TIMES, REPORT = "times.json", "report.html"  # differ between runs, so they aren't hashed
_LOOKED_AT = 1 << 20  # bytes of a file, up to which it is hashed before another stage has it, too
_NOT_LARGE = 1 << 26  # bytes of a file, hashed in a few milliseconds
LEADING = [  # for `mirror.attach`: each stage's folders, and the files that change whenever anything there does
    entry for name in STAGES for entry in ((name, (MANIFEST,)), (f".{name}.{PARTIAL}", (BEGUN, MANIFEST)))
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
        self.flush = self.boot is None  # of `volatile` files: others write and read them
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
    def final(self):
        """Where it is, or will be when it is finished."""
        return self.folder.with_name(self.name)

    @property
    def against(self):
        """Whether it is of two sets, of which only pairs between them are of interest."""
        return bool(self.growth and self.growth.against)

    @property
    def scans(self):
        """As `Growth.scans`."""
        return bool(self.growth and self.growth.scans)

    @property
    def shown(self):
        """Its folder as users know it."""
        return mirror.shown(self.folder)

    def shown_beside(self, name):
        """The folder of another stage of the same set, as users know it."""
        return mirror.shown(self.folder.with_name(name))

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

    def damage(self, also_altered):
        """Which files of a finished stage are gone, in words; empty where none is.

        also_altered: or aren't what it wrote, but for large ones, which take long: of a stage that no other one reads.
        """
        gone = [name for name in self.files if not (self.folder / name).exists()]
        if gone or not also_altered:
            return f"lacks {some_of(gone)}" if gone else ""
        names = [name for name in self.files if (self.folder / name).stat().st_size < _NOT_LARGE]
        found = engine.run(_digest_if_there, [(self.folder / name,) for name in names], None, "checksums")
        others = [name for name, digest in zip(names, found, strict=True) if digest != self.files[name]]
        return f"holds others than were written ({some_of(others)})" if others else ""

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

    def take_over(self, names, then=None, of=None):
        """Have files of another stage, as they are. then: their names there, if others; of: it, or the previous one."""
        of, both = of or self.previous, [*zip(names, then or names, strict=True)]
        engine.run(partial(_take, of, self.folder), both, self.run.config.n_workers, "taken over")
        self.sync_names(names)
        self.files |= {name: of.files[there] for name, there in both}

    def sync_names(self, names):
        """Flush the folders of some files, which were left to flush once for all; those that are on this machine."""
        for folder in filter(Path.exists, {(self.folder / name).parent for name in names}):
            sync_folder(folder)

    def needs(self, size, more=False):
        """Raises NeardupError where the disk has no room for so many bytes, less those that are there.

        more: they are not, for they come beside what is there.
        """
        there = 0 if more else sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
        need_room(self.folder, size - there)

    def finish(self, results):
        """Publish what was built in one rename, its manifest written last. results: small JSON values.

        Returns the finished stage. An earlier version of it is there until the moment the new one is.
        Raises NeardupError where the input isn't any more what it was when the stage began.
        """
        self._check_input(results)
        remove_temporary(self.folder)
        files = {p.relative_to(self.folder).as_posix(): p for p in mirror.files(self.folder) if self._is_result(p)}
        new = [name for name in files if name not in self.files]
        digests = engine.run(_digest_if_there, [(files[n],) for n in new], self.run.config.n_workers, "checksums")
        digests = self.files | dict(zip(new, digests, strict=True))
        self.note_times()
        content = {**self.key, "results": results, "files": {name: digests[name] for name in files}}
        self.run.content = results.get("content", self.run.content)
        content["shards"] = self.run.shards_held()
        write_manifest(self.path(MANIFEST), content)
        publish(self.folder, self.final)
        return Stage(self.name, self.final, self.key, content)

    def _is_result(self, path):
        return self.path(PARTS) not in path.parents and path.name not in (BEGUN, MANIFEST, TIMES, REPORT)

    def note_times(self):
        """Write what this run took, and at most held in memory, into times.json."""
        seconds = round(time.perf_counter() - self.run.began, 3)
        took = {"seconds": seconds, "peak_bytes": engine.peak_bytes(), "tasks": engine.took()}
        write_json(self.folder / TIMES, took)

    def check_input(self):
        """Raises NeardupError where the input isn't any more what it was when the stage began."""
        self._check_input({})

    def _check_input(self, results):
        run, work_dir = self.run, self.folder.parent
        content = results.get("content", run.content)
        if "content" in results:
            remember(work_dir, run.shards, run.times, content)
        before, now, seen = run.fingerprint, fingerprint(run.shards), times(run.shards)
        changed = [n["name"] for b, n in zip(before, now, strict=True) if b != n]
        if "content" in results:  # ids were read when the stage began, and hashed now
            both = enumerate(zip(run.times, seen, strict=True))
            changed += run.names([number for number, (then, now) in both if then[2:] != now[2:]])
        changed = changed or [s.name for s in run.shards if not copies.is_current(s)]
        changed = changed or run.names(changed_shards(run, seen, content))
        if changed:
            self.refuse_input(changed)

    def refuse_input(self, changed):
        """Remove what was made of shards that have changed since stage 1. changed: their names. Raises NeardupError."""
        remove(self.folder, self.final)
        script = next(iter(STAGES.values()))[0]
        raise NeardupError(f"the input ({some_of(changed)}) changed while it was read: run {script} again")

    def part(self, *name, suffix=".npy"):
        """A file of work in progress, which an interrupted run leaves to the next, and a finished stage drops."""
        return self.path(PARTS, "_".join(f"{n:05d}" if isinstance(n, int) else n for n in name) + suffix)

    def once(self, make, *name):
        """The array that make() returns, from the `part` of this name: an interrupted run leaves it to the next."""
        path = self.part(*name)
        if not path.exists():
            write_npy(path, make())
        return read_npy(path)

    def volatile(self, *name):
        """As `part`, of what is cheap to make: in a folder named after this start of the machine.

        So after another start it isn't found, and need not be flushed; but where other machines write it, too (`boot`
        is None).
        """
        path = self.part(*name)
        return path.parent / (self.boot or "kept") / path.name

    def drop_parts(self):
        """Remove all work in progress: it led to something that can't be."""
        remove(self.path(PARTS), self.final)


def _take(of, folder, name, then):
    """Have a file of a finished stage in another folder; those that an interrupted run took stay.

    A small one is verified first, so that an error names the stage that wrote it.
    """
    source, path = of.folder / then, folder / name
    if source.exists() and source.stat().st_size < _LOOKED_AT:
        of.path(then)
    if not path.exists() and (source.exists() or not mirror.copy(source, path)):
        link(source if source.exists() else of.path(then), path)


def _digest_if_there(path):
    """Digest of a file; of none something else."""
    return digest_of_file(path) if mirror.here(path).is_file() else "missing"


def stage_folders(work_dir):
    """Every folder in `work_dir` that a stage may write or remove."""
    finals = [work_dir / name for name in STAGES]
    return [f for final in finals for f in (final, *(hidden(final, ending) for ending in (PARTIAL, OLD, REMOVED)))]


@lru_cache
def _boot_id():
    """What is different after each start of the machine; the same always where the system doesn't tell."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else "boot"
