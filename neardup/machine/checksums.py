"""What files hold, in 128 bits: tells a changed input, and an artifact that is not what its stage wrote.

XXH3 reads as fast as memory does. It tells accidents, not forgery: who can write to the work folder can do anything.
"""

import json
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash

_BLOCK = 1 << 18  # bytes read together: of a larger block new memory takes longer than a small file
_SAMPLES = 64  # places of a file that a sample reads
_SAMPLE_BYTES = 4096  # bytes read at each


class Digest:
    """Of what is added piece by piece; the same whatever the pieces."""

    def __init__(self):
        self._state = xxhash.xxh3_128()
        self.hexdigest = self._state.hexdigest

    def update(self, array):
        """Add the bytes of an array, or of anything that holds bytes."""
        self._state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def digest_of_bytes(*parts):
    """Digest of some bytes that follow each other, as 32 hexadecimal digits."""
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


@lru_cache
def digest_of_sources():
    """Digest of the scripts and this package, but for config.py, which is everyone's own."""
    root = Path(__file__).parents[2]
    return digest_of_bytes(*(p.read_bytes() for p in sorted([*root.glob("faiss_*.py"), *root.glob("neardup/**/*.py")])))


def digest_of_values(content):
    """Digest of small JSON values."""
    return digest_of_bytes(json.dumps(content, sort_keys=True, default=str).encode())


def digest_of_file(path):
    """Digest of all that a file holds. Memory: 0.25 MB."""
    digest, buffer = xxhash.xxh3_128(), bytearray(_BLOCK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def digest_of_sample(path):
    """Digest of a file's size and evenly spread pieces, its first and last bytes among them: at most 256 KB."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        every = -(-size // _SAMPLE_BYTES)  # aligned, for the system reads whole pages
        offsets = np.linspace(0, every - 1, min(every, _SAMPLES), dtype=np.int64) * _SAMPLE_BYTES
        if hasattr(os, "posix_fadvise"):  # so that nothing else is read, and these are not waited for one by one
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for offset in offsets.tolist():
                os.posix_fadvise(file.fileno(), offset, _SAMPLE_BYTES, os.POSIX_FADV_WILLNEED)
        pieces = [str(size).encode()]
        for offset in offsets.tolist():
            file.seek(offset)
            pieces.append(file.read(_SAMPLE_BYTES))
    return digest_of_bytes(*pieces)
