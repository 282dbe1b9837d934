"""What stage 045 found, in small values and in words."""

import json

import numpy as np

from neardup.grouping.chains import UNCUT
from neardup.words import counted, for_terminal, in_words, shorten

_SHOWN_GROUPS, _SHOWN_IDS, _SHOWN_TEXT = 5, 6, 100


def summary(groups, threshold, keep, n_rejected):
    """What the run found, with the largest groups, as small JSON values. keep: (n,) bool."""
    shown = []
    for number in np.argsort(-groups.sizes, kind="stable")[:_SHOWN_GROUPS]:
        members, representative = groups.rows[groups.members(number)], groups.representative[number]
        first = members[members != representative][:_SHOWN_IDS]
        shown.append(
            {
                "name": groups.name(number),
                "rows": [int(representative), *first.tolist()],  # the representative, and some others
                "size": len(members),
                "weakest": float(groups.weakest[number]),
            }
        )
    kept = int(np.count_nonzero(keep))
    return {
        "threshold": threshold,
        "groups": len(groups),
        "rows_in_groups": len(groups.rows),
        "chains": int(np.count_nonzero(groups.are_chains(threshold))),
        "kept": kept,
        "dropped": len(keep) - kept - n_rejected,
        "rejected": n_rejected,
        "largest": shown,
    }


def report(preview, config, stage):
    """Say what was found and where it is, and show the largest groups, with the texts of their ids where known."""
    found = stage.results
    total = found["kept"] + found["dropped"] + found["rejected"]
    if config.target_rows:
        print(f"threshold {found['threshold']!r}, the highest that leaves at most {counted(config.target_rows, 'row')}")
    of_kind = "" if config.grouping == "connected" else f" with grouping {config.grouping!r}"
    print(
        f"{counted(found['groups'], 'group')} of {counted(found['rows_in_groups'], 'row')} at {found['threshold']!r}"
        f"{of_kind}, {found['chains']:,} of them chains (a member lies below the threshold from the representative)"
    )
    single = total - found["rows_in_groups"] - found["rejected"]
    print(
        f"{counted(total, 'row')} = {found['rows_in_groups']:,} in groups + {single:,} single + "
        f"{found['rejected']:,} rejected; keep {found['kept']:,} and drop {found['dropped']:,}"
    )
    if found["changes"]:
        show_changes(found["changes"])
    if found["held_apart"]:
        joins = counted(found["held_apart"], "join")
        print(f"keep_previous leaves out {joins} of two connected groups that each hold a row kept before", end="")
        print(", in thresholds.csv and the report, too")
    for name, other in found["groupings"].items():
        if name != config.grouping:
            print(f"with grouping {name!r}: {counted(other['groups'], 'group')}", end=", ")
            print(f"{other['chains']:,} of them chains; drop {other['dropped']:,}")
    if found["uncut"]:
        print(f"grouping 'split' leaves chains {UNCUT}, as they are: {found['uncut']:,}")
    tell_of_export(stage)
    for line in found["warnings"]:
        print(f"look at this: {line}")
    print(f"-> {stage.shown} (report.html to look at, groups.parquet, keep.txt, drop.txt; README.md lists all)")
    if found["largest"]:
        show_groups(found["largest"], preview)


def tell_of_export(stage):
    """Print where a copy of the input is, if one was wanted, and which files it leaves out."""
    names = stage.results["not_exported"]
    if stage.key["settings"]["export"]:
        print(f"-> {stage.shown}/export (a copy of the input with just the rows kept)")
    if names:
        print(f"not exported, for no row of them is kept, or they aren't one a row: {', '.join(names)}")


def show_changes(changes):
    """Print what is otherwise than in the run before."""
    print(f"since the run before: {counted(changes['new_rows'], 'row')} came, {changes['gone_rows']:,} went", end="; ")
    print(f"groups grown {changes['grown']:,}, joined {changes['joined']:,}, new {changes['new']:,}", end="; ")
    print(f"kept before and dropped now {changes['kept_before_and_dropped']:,}")


def show_groups(largest, preview):
    """Print the largest groups; and a line if none of their texts or pictures is where `preview` says."""
    rows = [row for group in largest for row in group["rows"]]
    known = dict(zip(rows, zip(preview.ids.take(rows), preview.texts(rows), strict=True), strict=True))
    print("largest groups, the representative first:")
    for group in largest:
        print(f"  {group['size']:,} rows, similarity >= {in_words(group['weakest'])} to the first")
        for name, text in map(known.get, group["rows"]):
            name, text = json.dumps(name, ensure_ascii=False), " ".join(text.split())
            print(for_terminal(f"    {shorten(name, _SHOWN_TEXT)}  {shorten(text, _SHOWN_TEXT)}".rstrip()))
        if len(group["rows"]) < group["size"]:
            print(f"    … {group['size'] - len(group['rows']):,} more")
    missing = preview.missing([name for name, _ in known.values()])
    if missing:
        print(f"look at this: {missing}: set preview right")
