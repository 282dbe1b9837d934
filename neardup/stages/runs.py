"""What a script begins with: its settings, its input, the stages before it, and what is left of earlier runs."""

import time
from functools import partial
from itertools import groupby
from pathlib import Path, PurePath

import numpy as np

from neardup import NeardupError
from neardup.input import copies
from neardup.input.beside import copied_too
from neardup.input.column_digest import digest_of_column
from neardup.input.embeddings import shard_starts, total_rows
from neardup.input.freshness import changed_shards, fingerprint, times
from neardup.input.metadata import BESIDE
from neardup.input.preview import OTHERWISE, Preview
from neardup.input.shards import Reading, find_shards, joined, wanted
from neardup.machine import budget, mirror
from neardup.machine.checksums import digest_of_file, digest_of_sample, digest_of_sources, digest_of_values
from neardup.machine.files import read_json, resolved, write_json
from neardup.notices import notice
from neardup.stages.artifacts import STAGES, Stage, stage_folders
from neardup.stages.folders import BEGUN, OLD, PARTIAL, hidden, publish, recover, remove, remove_temporary, tidy
from neardup.stages.growth import Growth, growth_of
from neardup.stages.manifests import (
    FORMAT,
    MANIFEST,
    differences,
    of_other_shards,
    read_manifest,
    searched_lower,
    some_of,
)

N_REFERENCE = 3  # the first stages, which a second set has of its own
_FIRST, LAST = "01_pca_variance", "045_merge"  # which sketches what is held against a second set; which reads metadata
_OF_OUTPUT = "tabulate", "preview", "export", "tables"  # of stage 045, which groups don't depend on
_OF_GROUPS = "target_rows", "grouping", "representative", "keep_previous", "tabulate"  # of two sets there are none


class Run:
    """What a script found when it began: settings, shards, and what identifies the input.

    reference: of a second set, whose `n_reference_shards` come first, {name: finished `Stage`} of its own; locked:
    whether the work folder is this process's alone, which then completes what was cut off there.
    """

    def __init__(self, config, shards, reference=None, n_reference_shards=0, locked=True):
        self.config, self.shards, self.locked = config, shards, locked
        self.reference, self.n_reference_shards = reference, n_reference_shards
        self.fingerprint, self.times, self.content = fingerprint(shards), times(shards), None
        self.memory = budget.working_memory(config.memory_limit, total_rows(shards), shards[0].dim)
        self.began = time.perf_counter()

    @property
    def own_shards(self):
        """Those that aren't the second set's."""
        return self.shards[self.n_reference_shards :]

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
    check_folders(config)
    shards, reference, n_reference_shards = _shards_of(config), None, 0
    if config.against_dir is not None:
        number = list(STAGES).index(name)
        second = Run(config.reference, _shards_of(config.reference), locked=number < N_REFERENCE)
        reference, _ = _earlier(second, list(STAGES)[min(number + 1, N_REFERENCE)])
        shards, n_reference_shards = joined(second.shards, shards), len(second.shards)
    run = Run(config, shards, reference, n_reference_shards)
    copies.forget_others(run.own_shards, config.work_dir / copies.FOLDER)
    earlier, key = _earlier(run, name)
    return _open(run, name, key), run.shards, earlier


def open_finished(config):
    """All five stages, finished, by name, and the shards, of which copies are made as by `begin`. Raises as that.

    Whatever settings only say how groups are shown.
    """
    last = list(STAGES)[-1]
    run = Run(config, _shards_of(config), locked=False)
    stages, key = _earlier(run, last)
    return stages | {last: _finished_stage(run, last, key, whatever=_OF_OUTPUT)}, run.shards


def _shards_of(config):
    """The shards of an input, decoded where they have to be."""
    shards = find_input(config)
    copies.make(shards, config.n_workers, config.verify_input, allow_missing=config.bad_rows == "skip")
    return shards


def _earlier(run, name):
    """The finished stages before one, by name, and the key of that one."""
    source, earlier = run.fingerprint, {}
    for stage, (_, settings) in STAGES.items():
        key = {"stage": stage, "format": FORMAT, "settings": {s: getattr(run.config, s) for s in settings}}
        key["source"] = source
        if stage == LAST:
            key["settings"]["tables"] = _tables_digest(run)
        if run.reference:
            key["settings"] = {s: v for s, v in key["settings"].items() if s not in _OF_GROUPS}
            second = run.reference.get(stage)
            key["settings"]["against"] = second and digest_of_values([second.key, second.files])
            if stage == _FIRST:
                key["settings"]["sketch_dims"] = run.config.sketch_dims
        if stage == name:
            break
        earlier[stage] = _finished_stage(run, stage, key)
        key = earlier[stage].key
        run.content = run.content or earlier[stage].results["content"]
        source = digest_of_values([key, run.content, earlier[stage].files])
    return earlier, key


def _tables_digest(run):
    """What identifies the texts and the metadata that a run's settings name. Memory: as in `digest_of_column`.

    Of tables just those columns; texts with their folder. Where a copy is made all that is copied, by name, of vectors
    and of shards a sample, and when they were changed last. Raises as `column_blocks`.
    """
    config, shards = run.config, run.shards
    preview, columns = Preview(config.preview, shards, ids=None), {}
    if config.against_dir is None:  # else there are no groups
        columns = dict.fromkeys(config.tabulated, "set tabulate right")
        columns |= dict.fromkeys(config.representative.split(":", 1)[1:], "set representative right")
    columns |= {preview.setting: f"set preview right, {OTHERWISE}"} if preview.is_column else {}
    tables = [shard for shard in shards if shard.table]
    texts = {path: digest_of_file(path) for path in dict.fromkeys(preview.files) if path}
    folders = [PurePath(shard.name).parent.as_posix() for shard in shards]
    found = [[folder, texts.get(path)] for (folder, path), _ in groupby(zip(folders, preview.files, strict=True))]
    paths, is_remote = {shard.path for shard in shards}, not isinstance(config.data_dir, Path)
    for name, path in copied_too(run.own_shards) if config.export else ():
        is_whole = path.suffix in (".json", *BESIDE) and path not in paths
        found.append(
            [name, digest_of_file(path) if is_whole else [digest_of_sample(path), copies.state(path, is_remote)]]
        )
    named = sorted(columns.items())
    return found + [digest_of_column(s.table, column, s.rows, advice) for column, advice in named for s in tables]


def reading_of(config):
    """How the settings say to read the input."""
    return Reading(*(getattr(config, setting) for setting in Reading._fields))


def wanted_by(config):
    """`shards.wanted` with all but the names, to say which files of a remote folder to fetch."""
    export = config.export and not config.is_reference
    return partial(wanted, reading_of(config), config.data_dir, export=export)


def find_input(config):
    """The shards of the input; what is remote is fetched, as far as needed."""
    copy_dir, data_dir, ours = config.work_dir / copies.FOLDER, config.data_dir, our_folders(config)
    if not isinstance(data_dir, Path):
        data_dir, ours = copies.fetch(data_dir, copy_dir, wanted_by(config), config.n_workers, config.set_by), set()
    return find_shards(data_dir, reading_of(config), copy_dir / copies.DECODED, ours)


def our_folders(config):
    """Folders that hold no input, though they may lie in its folder; as a set, without links."""
    return {folder for work_dir in config.work_dirs for folder in _without_links(work_dir)}


def _without_links(work_dir):
    """The folders of stages, which are never links, and those of copies, as they are without links."""
    return [*stage_folders(resolved(work_dir)), *map(resolved, _folders_of_copies(work_dir))]


def _folders_of_copies(work_dir):
    return [work_dir / copies.FOLDER / name for name in (copies.FETCHED, copies.DECODED)]


def check_folders(config):
    """Raises NeardupError where a stage's folder would replace what isn't a stage's; of two sets also those of both."""
    inputs, work_dirs = {"data_dir": config.data_dir}, [config.work_dir]
    if config.against_dir is not None:
        inputs["against_dir"] = config.against_dir
        work_dirs.append(config.reference.work_dir)
        if resolved(work_dirs[0]) == resolved(work_dirs[1]):
            raise NeardupError(f"against_work_dir {work_dirs[1]} is work_dir: set it to a folder of that set's own")
        inputs |= {"work_dir": work_dirs[0], "against_work_dir": work_dirs[1]}
    places = {setting: resolved(place) for setting, place in inputs.items() if isinstance(place, Path)}
    for work_dir in work_dirs:
        folders = stage_folders(work_dir)
        linked = next(filter(Path.is_symlink, folders), None)
        if linked:
            raise NeardupError(f"{linked} is a link, and stages replace their folders: make work_dir one instead")
        why = dict.fromkeys(folders, "which a stage replaces")
        why |= dict.fromkeys(_folders_of_copies(work_dir), "where copies of input are kept")
        for (folder, reason), real in zip(why.items(), _without_links(work_dir), strict=True):
            for setting, place in places.items():
                if place.is_relative_to(real):
                    raise NeardupError(f"{setting} {inputs[setting]} lies in {folder}, {reason}: set another work_dir")
    for folder in (work_dir / name for work_dir in work_dirs for name in STAGES):
        if folder.exists() and not ((folder / MANIFEST).exists() or hidden(folder, OLD).exists()):
            raise NeardupError(f"{folder} exists but no stage made it: move it away, or set another work_dir")


def _finished_stage(run, name, key, whatever=()):
    """A stage that is finished and has this key, `whatever` these settings. Raises NeardupError with what to run."""
    folder, script = run.config.work_dir / name, STAGES[name][0]
    if run.locked:
        recover(folder)
    if not (folder / MANIFEST).exists():
        raise NeardupError(f"{mirror.shown(folder)} is missing: run {script} first")
    manifest = read_manifest(folder / MANIFEST)
    key = searched_lower(manifest, key)
    then = manifest.get("settings", {})
    key |= {"settings": key["settings"] | {name: then[name] for name in whatever if name in then}}
    other = differences(manifest, key) or _changes(run, manifest)
    if other:
        raise NeardupError(f"{mirror.shown(folder)} was made {other}: run {script} again, or set it back")
    return Stage(name, folder, key, manifest)


def _changes(run, manifest):
    """How the input differs from what stage 1 read, in words; empty if it doesn't. Of other stages always empty."""
    if "content" not in manifest["results"]:
        return ""
    changed = changed_shards(run, run.times, manifest["results"]["content"], run.config.verify_input)
    return f"from other input ({some_of(run.names(changed))} changed)" if changed else ""


def _open(run, name, key):
    """The finished stage if it has this key, else its folder under construction."""
    final = run.config.work_dir / name
    folder = hidden(final, PARTIAL)
    recover(final)
    if (folder / MANIFEST).exists() and not differences(read_manifest(folder / MANIFEST), key):
        publish(folder, final)  # killed after the manifest was written, before the folder was renamed
    if (final / MANIFEST).exists():
        manifest = read_manifest(final / MANIFEST)
        if not (differences(manifest, key) or _changes(run, manifest)):
            tidy(final)
            stage = Stage(name, final, key, manifest)
            damage = stage.damage(also_altered=name == LAST) if mirror.shown(final) == final else ""  # else elsewhere
            if damage:
                notice(f"{stage.shown} {damage}: remove it to have all made again")
            return stage
        what = ""
        if ("against" in manifest.get("settings", {})) != ("against" in key["settings"]):
            what = f"a run {'of one set alone' if run.reference else 'against a second set'}"
        elif of_other_shards(manifest, key):
            what = f"other shards ({some_of([shard['name'] for shard in manifest['source']])})"
        if what:
            notice(f"{mirror.shown(final)} is of {what}, and is replaced: to keep it set another work_dir")
    previous = _previous(run, final, key)
    begun, what = folder / BEGUN, key | {"sources": digest_of_sources()}  # another version may cut its tasks otherwise
    if not run.content:
        what |= {"times": run.times}
    if previous and previous[0]:
        what |= {"grows": digest_of_values([previous[0].files, previous[1].of.tolist()])}
    remove_temporary(folder)
    if not (begun.exists() and read_json(begun) == what):
        remove(folder, final)
        folder.mkdir(parents=True)
        write_json(begun, what)
    return Stage(name, folder, key, run=run, memory=run.memory, previous=previous)


def _previous(run, final, key):
    """The same stage of other shards, finished, and the `Growth` from those; None where nothing of it is of use.

    Of a run against a second set those are that one's, as far as it has such a stage.
    """
    if run.reference:
        starts, count = shard_starts(run.shards), run.n_reference_shards
        growth = Growth(starts[: count + 1], starts, np.arange(count), against=True)
        return run.reference.get(key["stage"]), growth
    if not (final / MANIFEST).exists():
        return None
    manifest = read_manifest(final / MANIFEST)
    key = key | {"source": manifest.get("source")}
    if "against" in manifest.get("settings", {}):  # which holds no pairs within a set
        return None
    if key["stage"] == LAST:
        key["settings"] = manifest.get("settings")
    if differences(manifest, searched_lower(manifest, key)):
        return None
    growth = growth_of(run, manifest)
    return growth and (Stage(key["stage"], final, key, manifest), growth)
