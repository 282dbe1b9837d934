"""What a run would take, without running it: rows and shards from headers, the rest from a short measurement."""

import shutil
import time
from pathlib import Path

import numpy as np

from neardup.input import copies
from neardup.input.embeddings import open_shards, total_rows
from neardup.input.ids import expected_bytes
from neardup.input.shards import find_shards
from neardup.machine import budget
from neardup.machine.files import resolved
from neardup.machine.mirror import folder_for
from neardup.search import geometry
from neardup.search.moments import component_count
from neardup.search.pairs import BYTES_A_PAIR, BYTES_A_ROW
from neardup.stages.runs import find_input, reading_of, wanted_by
from neardup.words import counted, disk_size, memory_size

_SAMPLE, _RUN = 4096, 256  # rows that are read and multiplied; of them that follow each other
_PIPELINE = 3.0, 0.12  # of docs/performance.md: all five scripts take so many times the products' seconds at 10^6 rows,
# and more by this power of the number of rows
_SPECTRA = 4  # times as long as eigenvalues take eigenvectors, and what else is as long as a row squared
_FIXED_S = 6  # seconds that five processes take to start and end


def plan(config):
    """Rows, shards, disk, memory and time as small values. Reads headers, and a few thousand rows where they lie.

    Of two sets also those of the second one, but for the time, as `second_set`.
    """
    second = {} if config.against_dir is None else plan(config.reference)
    folders = {"work_dir": config.work_dir, "against_work_dir": second and config.reference.work_dir}
    folders = {name: folder_for(url) for name, url in folders.items() if isinstance(url, str)}
    found = _plan_of(config.model_copy(update=folders))
    second.pop("seconds", None)
    return found | ({"second_set": second} if second else {})


def _plan_of(config):
    """As `plan`, of one set."""
    if isinstance(config.data_dir, Path):
        shards = find_input(config)
    else:
        folder = config.work_dir / copies.FOLDER
        sizes, path = copies.files_at(config.data_dir, folder, wanted_by(config), config.set_by)
        if path is None:
            return {"files": len(sizes), "input_bytes": sum(sizes)}
        shards = find_shards(path, reading_of(config), folder / copies.DECODED)
    rows, dim = total_rows(shards), shards[0].dim
    copied = sum(s.rows * s.dim * s.dtype.itemsize for s in shards if s.copy)
    found = {"rows": rows, "dim": dim, "shards": len(shards), "input_bytes": sum(s.path.stat().st_size for s in shards)}
    readable = [s for s in shards if copies.is_current(s) and s.rows]
    measured = _measure(open_shards(readable), config) if readable else (None, None, dim // 3)
    seconds_a_row, spectrum_s, components = measured
    sketch = min(config.sketch_dims, components) + 1
    reduced = components if config.against_dir is None else 0  # of what is held against a second set just sketches stay
    disk = copied + rows * disk_of_a_row(reduced, sketch) + 3 * expected_bytes(shards)
    disk += 8 * dim * (dim + 3 * components) + config.export * found["input_bytes"]  # the model, three times
    least = budget.least_memory(rows, dim)
    memory = max(least, min(config.memory_limit, least + 8 * rows * dim))
    found |= {
        "components": components,
        "disk_bytes": int(disk),
        "disk_free_bytes": shutil.disk_usage(_existing(config.work_dir)).free,
    }
    found |= {"memory_bytes": int(memory), "memory_limit_bytes": int(config.memory_limit), "seconds": None}
    if seconds_a_row is not None:
        factor = _PIPELINE[0] * max(1, rows / 1e6) ** _PIPELINE[1]
        found["seconds"] = round(_FIXED_S + _SPECTRA * spectrum_s + rows * seconds_a_row * factor, 1)
    return found


def disk_of_a_row(reduced, sketch):
    """Bytes that all stages write for a row, without its id, about. reduced, sketch: values of it that stay."""
    return 4 * reduced + 8 * sketch + 16 + BYTES_A_ROW


def _measure(rows, config):
    """Seconds that a row takes to be multiplied as PCA does, those of a spectrum, and about how many components."""
    starts = np.linspace(0, max(0, len(rows) - _RUN), _SAMPLE // _RUN).astype(np.int64)
    numbers = np.unique(np.concatenate([np.arange(s, min(s + _RUN, len(rows))) for s in starts]))
    unit, bad = geometry.unit_rows32(rows.gather(numbers))
    gram = unit.T @ unit
    start = time.perf_counter()
    gram = unit.T @ unit
    unit @ gram[:, : max(1, rows.dim // 3)]
    seconds = (time.perf_counter() - start) / len(numbers)
    count = max(1, len(unit) - np.count_nonzero(bad))
    mean, start = unit.sum(axis=0, dtype=np.float64) / count, time.perf_counter()
    variances = np.maximum(np.linalg.eigvalsh(gram / count - np.outer(mean, mean))[::-1], 0)
    spectrum_s = time.perf_counter() - start
    return seconds, spectrum_s, component_count(variances, config.target_variance)[0]


def _existing(folder):
    """A folder, or the nearest above it that is there."""
    return next(f for f in (resolved(folder), *resolved(folder).parents) if f.exists())


def print_plan(found):
    """Say it."""
    size = disk_size(found["input_bytes"])
    if "rows" not in found:
        print(f"{found['files']:,} files of {size} to fetch: how many rows they hold is known when they are here")
        print_second(found)
        return
    shards = counted(found["shards"], "shard")
    print(f"{counted(found['rows'], 'row')} of {counted(found['dim'], 'value')} in {shards}, {size}")
    print(f"disk: about {disk_size(found['disk_bytes'])} and {BYTES_A_PAIR} bytes a pair of near rows", end=", ")
    lacks = found["disk_bytes"] > found["disk_free_bytes"]
    print(f"of {disk_size(found['disk_free_bytes'])} free{', which is too little' * lacks}")
    more = found["memory_bytes"] > found["memory_limit_bytes"]
    print(f"memory: about {memory_size(found['memory_bytes'])}", end="")
    limit = f", up to {memory_size(found['memory_limit_bytes'])} where very many rows are near"
    print(": set memory_limit to as much" if more else limit)
    print_second(found)
    if found.get("seconds"):
        print(f"time: about {_duration(found['seconds'])} for all five scripts, at thresholds of 0.95 and above")
    elif "seconds" in found:
        print("time: not known before the input is decoded")


def print_second(found):
    """Say what there is to say of a second set."""
    if "second_set" in found:
        print("the second set, whose stages are made first where they aren't there yet:")
        print_plan(found["second_set"])


def _duration(seconds):
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
