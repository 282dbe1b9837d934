"""Manifests: what a stage was made from and left, and how that differs from what is wanted."""

from neardup.machine.checksums import digest_of_values
from neardup.machine.files import damaged, read_json, write_json

FORMAT = 10  # of the artifacts; a new one makes all older work stale
_OF_FILES = {
    "against": "against a second set that has changed",
    "tables": "with other texts, columns of metadata or files to export",
}
MANIFEST = "manifest.json"  # written last: a stage's folder that has one is whole


def read_manifest(path):
    """A manifest. Raises NeardupError where it is damaged; of another version of the scripts it is what it is."""
    manifest = read_json(path)
    if manifest.get("format") == FORMAT:
        content = {name: value for name, value in manifest.items() if name != "checksum"}
        if manifest.get("checksum") != digest_of_values(content):
            raise damaged(path)
    return manifest


def write_manifest(path, content):
    """Write a manifest: a dict of small JSON values."""
    write_json(path, content | {"checksum": digest_of_values(content)})


def searched_lower(manifest, key):
    """The key of a stage, with the threshold it was searched at where that is lower: it holds all pairs above, too."""
    wanted = key["settings"].get("search_threshold")
    then = manifest.get("settings", {}).get("search_threshold")
    if wanted is None or not isinstance(then, float) or then > wanted or key["settings"]["pairs"] == "joining":
        return key
    return key | {"settings": key["settings"] | {"search_threshold": then}}


def some_of(names):
    """The first few names, in words."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def of_other_shards(manifest, key):
    """Whether a stage was made of shards none of which is in those of `key`, by its name or a sample of what it holds.

    Of a stage that reads what another one left, False.
    """
    both = manifest.get("source"), key["source"]
    if manifest.get("format") != key["format"] or not all(isinstance(source, list) for source in both):
        return False
    then, now = ({shard[known] for shard in source for known in ("name", "sample")} - {None} for source in both)
    return then.isdisjoint(now)


def differences(manifest, key):
    """How what a stage was made from differs from `key`, in words; empty if it doesn't."""
    if manifest.get("format") != key["format"]:
        return "by another version of the scripts"
    then, now = manifest["settings"], key["settings"]
    if ("against" in then) != ("against" in now):
        return "against a second set" if "against" in then else "of one set alone"
    both = [s for s in {**now, **then} if (s in now, now.get(s)) != (s in then, then.get(s))]
    changed = [_OF_FILES.get(s) or f"with {s.removeprefix('search_')} {then.get(s)}, not {now.get(s)}" for s in both]
    if changed:
        return " and ".join(changed)
    source = manifest.get("source")
    if source == key["source"]:
        return ""
    if not isinstance(source, list):
        return "from an earlier stage that has changed since"
    old, new = ({s["name"]: s for s in shards} for shards in (source, key["source"]))
    kinds = {
        "changed": [name for name in new if name in old and old[name] != new[name]],
        "came": [name for name in new if name not in old],
        "went": [name for name in old if name not in new],
    }
    what = "; ".join(f"{some_of(names)} {kind}" for kind, names in kinds.items() if names)
    return f"from other input ({what or 'its shards changed'})"
