"""Every setting of the five scripts: one class, a field a setting.

A value comes from, first found wins: the command line (`--data-dir DIR`), the environment
(`NEARDUP_DATA_DIR=DIR`), the default below, which is yours to edit for each data set.
"""

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import BeforeValidator, ByteSize, Field, PrivateAttr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent
SECTIONS = {  # of the settings in --help: the first setting of each
    "data_dir": "what is read, and where results go",
    "target_variance": "faiss_01: check the input, count the components",
    "sketch_dims": "faiss_02: reduce",
    "n_clusters": "faiss_03: split into clusters",
    "threshold": "faiss_04: find the pairs",
    "grouping": "faiss_045: groups, and what to keep of each",
    "memory_limit": "the machine, and how scripts run",
}


def _utf8(value):
    """A text as it is. Raises ValueError where it isn't UTF-8, which files of ours are."""
    str(value).encode()
    return value


def _location(value):
    """A URL, or the path of a folder, also where a shell left its ~ or a URL is that of a file here."""
    _utf8(value)
    if value in ("", None):
        raise ValueError("is empty: give a folder or URL")
    if str(value).startswith("file:///"):
        return Path(unquote(str(value).removeprefix("file://")))
    if "://" in str(value):
        return value
    try:
        return Path(value).expanduser() if f"{value}/".startswith("~/") else Path(value)
    except RuntimeError as error:
        raise ValueError("is below ~, and no home folder is known: give its path") from error


def _expanded(value):
    """A text as it is, a ~ at its beginning, which a shell left, as the home folder."""
    return str(_location(value)) if str(value).startswith("~/") else value


Location = Annotated[Path | str, BeforeValidator(_location)]
_Text = Annotated[str, BeforeValidator(lambda value: _utf8(value if value is None else str(value)))]


class Config(BaseSettings):
    """Settings of a run; every stage reads those it needs and records those that shaped its output."""

    model_config = SettingsConfigDict(
        env_prefix="NEARDUP_",
        env_parse_none_str="None",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
        cli_shortcuts={"json-output": "json"},
        frozen=True,
        validate_default=True,
    )

    # what is read, and where results go
    data_dir: Location = Field(
        ROOT / "examples" / "debian", description="folder of the embeddings, or a single file; or a URL such as s3://…"
    )
    input_format: Literal["npy", "clip-retrieval", "npz", "hdf5", "vecs", "faiss", "arrow", "parquet"] | None = Field(
        None, description="what the embeddings come in; None: seen from the files in data_dir"
    )
    shard_pattern: str | None = Field(
        None, min_length=1, description="which files of data_dir are shards, such as 'DFN5B*.npy'; None: by format"
    )
    vectors: str | None = Field(
        None, description="column, array, data set or folder of the vectors, where there are several; None: found"
    )
    id_column: str | None = Field(
        None,
        description="column of the ids, in the shards or in tables beside them; '': rows are numbered; None: found, or "
        ".txt files",
    )
    work_dir: Location = Field(
        ROOT / "work", description="folder for all results, a subfolder a stage; or a URL such as s3://…"
    )

    against_dir: Location | None = Field(
        None,
        description="a second set, read in the same way: find the rows of data_dir that are near one of its rows",
    )
    against_work_dir: Location | None = Field(
        None, description="folder for the stages of that set, made once for any number of runs; None: work_dir/against"
    )

    # faiss_01: check the input, count the components
    target_variance: float = Field(
        0.95, gt=0, le=1, description="share of the variance that the reduced vectors keep, above 0 to 1"
    )
    basis_rows: int = Field(
        131_072,
        ge=1,
        description="rows, chosen at random, that the components are made of; all where there are fewer; speed only",
    )
    bad_rows: Literal["error", "skip"] = Field(
        "error", description="rows with NaN, infinity, only zeros, or nothing: stop, or list in rejected.csv and go on"
    )
    duplicate_ids: Literal["error", "allow"] = Field(
        "error", description="an id that two rows share: stop, or treat them as two rows of one name"
    )
    verify_input: bool = Field(
        False, description="hash all of the input, not samples, to see whether it changed since stage 1 read it"
    )

    # faiss_02: reduce
    sketch_dims: int = Field(
        64, ge=1, le=512, description="PCA coordinates in the sketch that is searched, 1 to 512; speed only"
    )

    # faiss_03: split into clusters
    n_clusters: int | None = Field(
        50,
        ge=1,
        le=65_535,
        description="k-means clusters, 1 to 65,535; None: by the number of rows (docs/performance.md); speed only",
    )
    random_state: int = Field(42, ge=0, lt=2**31, description="seed of the k-means and audit samples, 0 to 2^31 - 1")

    # faiss_04: find the pairs
    threshold: float = Field(
        0.98, gt=0, le=1, description="lowest cosine of a near-duplicate pair, inclusive, above 0 to 1"
    )
    pairs: Literal["all", "joining"] = Field(
        "all", description="pairs to keep: all, or just enough to join each group, for rows that repeat by the 10,000"
    )
    audit_rows: int = Field(
        1000,
        ge=0,
        description="random rows compared with every row, and pairs computed anew, to check the answer, 0 or more",
    )

    report_threshold: float | None = Field(
        None, gt=0, le=1, description="search down to this, to see what the thresholds above it would give; None: don't"
    )

    # faiss_045: groups, and what to keep of each
    grouping: Literal["connected", "star", "split"] = Field(
        "connected",
        description="groups: all that is joined; stars, each member near the row kept; or chains cut at bridges",
    )
    representative: str = Field(
        "central",
        pattern=r"^(central|first|longest_text|(highest|lowest):.+)$",
        description="row to keep of a group: central, first, longest_text, or highest:COLUMN or lowest:COLUMN",
    )
    target_rows: int | None = Field(
        None, ge=1, description="take the highest threshold that leaves at most so many rows, instead of `threshold`"
    )
    tabulate: str | None = Field(
        None, description="columns of metadata, separated by commas, to count dropped rows by, as by shard"
    )
    keep_previous: bool = Field(
        False,
        description="rows that the run before this one kept stay kept, each in a group of its own; others near them go",
    )
    preview: Annotated[_Text, BeforeValidator(_expanded)] | None = Field(
        None,
        description="what ids stand for: a JSON file of id: text, a column of texts, or a pattern of pictures such as "
        "images/{id}.png or https://HOST/{id}.jpg; None: texts.json beside the shards",
    )

    export: bool = Field(
        False, description="write a copy of the input with just the rows kept, in its own format, into 045_merge/export"
    )
    graph_group: int | None = Field(
        None, ge=0, description="number of a group to write as GraphML, with all its pairs that are kept, into graphs/"
    )

    # the machine, and how scripts run
    memory_limit: ByteSize = Field(
        "2GiB",
        description="memory that a script may take (bytes, or '2GiB'), from 320MiB; 80 bytes go with each row",
    )
    n_workers: int | None = Field(
        None, ge=1, le=1024, description="tasks at a time, 1 to 1,024; None: one a core (BLAS threads x tasks = cores)"
    )

    scheduler: str = Field(
        "threads",
        pattern=r"^(threads|processes|\w+://.+|\w+(\.\w+)+)$",
        description="what runs the tasks: threads; processes; tcp://HOST:PORT of a Dask scheduler; or a class, such as "
        "dask_jobqueue.SLURMCluster, of which n_workers are started (docs/cluster.md)",
    )
    scheduler_options: dict[str, Any] = Field({}, description="JSON: what that class is made with")

    dry_run: bool = Field(
        False, description="say what the input is, and what disk, memory and time it takes; write nothing"
    )
    json_output: bool = Field(False, description="print what was found as one JSON object, for other programs")

    _other_work_dir: Path | str | None = PrivateAttr(None)

    @field_validator("memory_limit")
    @classmethod
    def _enough_memory(cls, value):
        if value < 320 * 2**20:
            raise ValueError("should be at least 320MiB")
        return value

    @model_validator(mode="before")
    @classmethod
    def _known_variables(cls, values):
        """A misspelt setting in the environment would be ignored; others may have variables of that prefix there."""
        for variable in os.environ:
            prefix, name = variable[:8].upper(), variable[8:].lower()
            meant = get_close_matches(name, cls.model_fields, 1, cutoff=0.85) if prefix == "NEARDUP_" else []
            if meant and meant != [name]:
                raise ValueError(
                    f"{variable} in the environment is no setting, NEARDUP_{meant[0].upper()} is: rename or unset it"
                )
        return values

    @property
    def reference(self):
        """The settings for the second set alone."""
        folder = self.against_work_dir or (
            self.work_dir / "against" if isinstance(self.work_dir, Path) else f"{self.work_dir.rstrip('/')}/against"
        )
        alone = self.model_copy(update={"data_dir": self.against_dir, "work_dir": folder, "against_dir": None})
        alone._other_work_dir = self.work_dir
        return alone

    @property
    def set_by(self):
        """The setting that `data_dir` was given by."""
        return "against_dir" if self.is_reference else "data_dir"

    @property
    def is_reference(self):
        """Whether these settings are for the second set alone."""
        return self._other_work_dir is not None

    @property
    def work_dirs(self):
        """The work folders of this machine, of both sets, or where that of a second one would be."""
        other = self._other_work_dir if self.is_reference else self.reference.work_dir
        return [folder for folder in (self.work_dir, other) if isinstance(folder, Path)]

    @property
    def search_threshold(self):
        """The threshold that stage 4 searches down to."""
        return min(self.threshold, self.report_threshold or self.threshold)

    @property
    def tabulated(self):
        """The columns of `tabulate`."""
        return list(dict.fromkeys(name.strip() for name in (self.tabulate or "").split(",") if name.strip()))

    @model_validator(mode="after")
    def _two_sets_have_no_groups(self):
        of_groups = {"pairs": "all", "target_rows": None, "keep_previous": False, "graph_group": None}
        wrong = [name for name, value in of_groups.items() if getattr(self, name) != value]
        if self.against_dir is not None and wrong:
            raise ValueError(f"{wrong[0]} is about groups, and a set against another has none: set against_dir to None")
        return self

    @model_validator(mode="after")
    def _joining_pairs_are_enough(self):
        if self.pairs == "joining" and self.search_threshold < self.threshold:
            raise ValueError(
                "pairs = 'joining' joins at one threshold only: set report_threshold to None, or pairs to 'all'"
            )
        if self.pairs == "joining" and (self.grouping != "connected" or self.target_rows):
            raise ValueError("grouping 'star' and 'split', and target_rows, need all pairs: set pairs to 'all'")
        if self.target_rows and self.grouping != "connected":
            raise ValueError("target_rows counts connected groups: set grouping to 'connected'")
        return self
