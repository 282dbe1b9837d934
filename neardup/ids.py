"""Names of rows: read from the shards' sidecars once, then kept as one Arrow file that is memory-mapped."""

import hashlib
import json

import numpy as np
import pyarrow as pa

from neardup import NeardupError

_SCHEMA = pa.schema([("id", pa.large_string())])


def read_sidecar(shard):
    """The ids of a shard from its .txt file, a JSON list of as many strings (or integers) as it has rows.

    Raises NeardupError, naming the file and what is wrong. Memory: the ids of one shard.
    """
    path = shard.ids_path
    advice = f"write a JSON list of the {shard.rows} ids of {shard.path.name}"
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NeardupError(f"{path} is missing: {advice}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise NeardupError(f"{path} is not JSON in UTF-8 ({error}): {advice}") from error
    if not isinstance(ids, list):
        raise NeardupError(f"{path} holds a JSON {type(ids).__name__}, not a list: {advice}")
    if len(ids) != shard.rows:
        raise NeardupError(f"{path} lists {len(ids)} ids but {shard.path.name} has {shard.rows} rows: {advice}")
    for row, value in enumerate(ids):
        if isinstance(value, int) and not isinstance(value, bool):
            ids[row] = str(value)
        elif not isinstance(value, str) or _has_surrogate(value):
            raise NeardupError(f"{path}: id {row} ({value!r}) is not a string of valid Unicode or an integer: mend it")
    return ids


def _has_surrogate(text):
    return not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)


def write_table(path, shards):
    """All ids as one Arrow IPC file, a record batch a shard. Returns (n,) uint64 hashes, one an id.

    Memory: the ids of one shard, and 8 bytes a row.
    """
    hashes = np.empty(sum(s.rows for s in shards), dtype=np.uint64)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        for shard in shards:
            ids = read_sidecar(shard)
            writer.write_batch(pa.record_batch([pa.array(ids, pa.large_string())], schema=_SCHEMA))
            hashes[shard.start : shard.start + shard.rows] = [_hash(i) for i in ids]
    return hashes


def _hash(text):
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def repeated_rows(hashes, table):
    """Rows whose id another row has too, ascending. hashes: (n,) uint64; table: of `IdTable`. Memory: 16 n bytes."""
    order = np.argsort(hashes, kind="stable")
    same = hashes[order][1:] == hashes[order][:-1]
    suspects = np.unique(np.concatenate([order[1:][same], order[:-1][same]]))
    names = table.take(suspects)  # equal hashes may still be different ids
    _, inverse, counts = np.unique(np.array(names, dtype=object), return_inverse=True, return_counts=True)
    return suspects[counts[inverse] > 1] if len(suspects) else suspects


class IdTable:
    """The ids of all rows, memory-mapped."""

    def __init__(self, path):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self.column = table.column("id")

    def __len__(self):
        return len(self.column)

    def take(self, rows):
        """The ids of these rows as a list of strings. rows: (r,) integers."""
        # a chunk at a time: taking from a column of several chunks may join them in memory first
        rows = np.asarray(rows, dtype=np.int64)
        starts = np.cumsum([0] + [len(c) for c in self.column.chunks])
        of_chunk = np.searchsorted(starts, rows, side="right") - 1
        out = np.empty(len(rows), dtype=object)
        for chunk in np.unique(of_chunk):
            here = of_chunk == chunk
            out[here] = self.column.chunk(chunk).take(pa.array(rows[here] - starts[chunk])).to_pylist()
        return out.tolist()


def store_ids(group, ids):
    """Ids as two flat HDF5 data sets, `id_utf8` and `id_offset`: id i is bytes offset[i] to offset[i + 1].

    HDF5's own strings can't hold a NUL and open slowly by the million.
    """
    encoded = [i.encode() for i in ids]
    group["id_utf8"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    group["id_offset"] = np.cumsum([0] + [len(e) for e in encoded], dtype=np.int64)
