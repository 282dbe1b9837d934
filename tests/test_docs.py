"""What the documents say is what there is: settings, files, packages, and the result of the first run."""

import importlib
import json
import re
import sys

import h5py
import pyarrow.parquet as pq
import pytest
from conftest import EXAMPLE, SCRIPTS, command, run_stages, tree_bytes
from pydantic import create_model

from config import ROOT, SECTIONS, Config

README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
SETTINGS = set(Config.model_fields)


def table(text, heading):
    """Cells of the table below a heading, a list a line."""
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def kind(path):
    """A file of a run by its stage and name, digits of a numbered one as #: `02`, `reduced_#####.npy`."""
    stage, _, name = path.partition("/")
    return stage.split("_")[0], re.sub(r"\d{5}(?=\.)", "#####", name)


@pytest.fixture(scope="module")
def files(example):
    """Every file that a run of the example leaves, by its name below the work folder."""
    return sorted(tree_bytes(example))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_every_setting(script):
    """With its line of explanation and its default, under what the script is for."""
    done = command(script, "--help", COLUMNS="1000")
    assert (done.returncode, done.stderr) == (0, "")
    said = re.sub(r", --(no-[a-z-]+|json)\b", "", " ".join(done.stdout.split()))  # other names of the one before
    options = dict(re.findall(r" --([a-z-]+),? (.*?)(?= --[a-z]|$)", said.split(" options: ")[1]))
    assert {option.replace("-", "_") for option in options} - {"help"} == SETTINGS
    for name, field in Config.model_fields.items():
        option = options[name.replace("_", "-")]
        assert field.description in option
        assert "(default: " in option
    purpose = importlib.import_module(script.removesuffix(".py")).__doc__.splitlines()[0]
    assert purpose in said
    shown = re.findall(r"^(?:(\S.*):$| +--([a-z-]+))", done.stdout, flags=re.MULTILINE)
    assert [option.replace("-", "_") or title for title, option in shown] == ["options", *in_sections()]


def test_a_flag_can_be_given_whatever_its_default():
    """Which config.py may have otherwise."""
    flags = [name for name, field in Config.model_fields.items() if field.annotation is bool]
    edited = create_model("Edited", __base__=Config, **dict.fromkeys(flags, (bool, True)))
    for config in (Config, edited):
        for prefix, value in (("--", True), ("--no-", False)):
            read = config(_cli_parse_args=[f"{prefix}{flag.replace('_', '-')}" for flag in flags])
            assert [getattr(read, flag) for flag in flags] == [value] * len(flags)


def in_sections():
    """Titles of sections, each before its settings, in their order."""
    return [line for name in Config.model_fields for line in ([SECTIONS[name]] if name in SECTIONS else []) + [name]]


def test_every_setting_has_a_line_of_explanation():
    for name, field in Config.model_fields.items():
        assert field.description, name
        assert "\n" not in field.description


def test_every_setting_has_its_variable(monkeypatch):
    for name in SETTINGS:
        monkeypatch.setenv(f"NEARDUP_{name.upper()}", str(getattr(Config(), name)))
    assert Config().model_fields_set == SETTINGS


def test_readme_names_every_file_of_a_run(files):
    names = {kind(file)[1].replace("#####", "00000") for file in files}
    assert sorted(name for name in names if f"`{name}`" not in README) == []


def test_readme_names_only_settings_that_exist(example):
    options = set(re.findall(r"--([a-z][a-z-]*)", README)) - {"help", *Config.model_config["cli_shortcuts"].values()}
    assert {option.replace("-", "_") for option in options} <= SETTINGS
    assert {name.lower() for name in re.findall(r"NEARDUP_([A-Z_]+)", README)} <= SETTINGS
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    names = set(re.findall(r"`([a-z]+(?:_[a-z]+)*)`", prose))
    with h5py.File(example / "04_neighbor_search" / "neighbors.h5") as file:
        columns = set(file) | set(pq.read_schema(example / "045_merge" / "groups.parquet").names)
    assert names - columns <= SETTINGS
    assert len(names & SETTINGS) >= 8


def test_readme_gives_the_defaults():
    assert re.search(rf"`threshold` \([^)]*, {Config.model_fields['threshold'].default};", README)
    for name in ("n_clusters", "memory_limit", "shard_pattern"):
        assert re.search(rf"`{name}` \(`?{re.escape(str(Config.model_fields[name].default))}[;`)]", README), name


def test_readme_shows_what_the_first_run_says(example, capsys):
    """Line by line, in order."""
    run_stages(EXAMPLE, example)
    said = iter(capsys.readouterr().out.splitlines())
    shown = re.search(r"```\n(.*?)```", README, flags=re.DOTALL)[1].splitlines()
    assert len(shown) > 8
    assert [line for line in shown if line not in said] == []


def test_readme_shows_pictures_and_links_that_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) >= 3
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_every_module_is_named():
    tree = ARCHITECTURE.split("## What is where")[1].split("\n## ")[0]
    paths = [path for pattern in ("*.py", "neardup/*.py", "neardup/*/*.py") for path in ROOT.glob(pattern)]
    names = [path.name for path in paths if path.name != "__init__.py"]
    assert [name for name in names if f"{name} " not in tree] == []
    assert set(re.findall(r"\w+\.py", tree)) == set(names)


def test_folders_import_from_those_above_them():
    """As the tree of the architecture has them; what lies beside them is for all, or needs all."""
    tree = ARCHITECTURE.split("## What is where")[1].split("\n## ")[0]
    folders = re.findall(r"^  (\w+)/", tree, re.MULTILINE)
    assert sorted(folders) == sorted(path.parent.name for path in ROOT.glob("neardup/*/__init__.py"))
    for at, folder in enumerate(folders):
        for path in (ROOT / "neardup" / folder).glob("**/*.py"):
            imported = re.findall(r"^\s*from neardup\.(\w+)[. ]", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert not {*imported} & {*folders[at + 1 :]}, path


def test_what_is_meant_for_other_programs_is_there(example):
    """A line a script, of what its manifest holds."""
    lines = table((ROOT / "docs" / "outputs.md").read_text(), "For other programs")
    assert [number for number, _ in lines] == ["01", "02", "03", "04", "045"]
    for number, keys in lines:
        [manifest] = example.glob(f"{number}_*/manifest.json")
        assert set(re.findall(r"`(\w+)`", keys)) <= set(json.loads(manifest.read_text())["results"])


def test_the_table_of_artifacts_is_complete(files):
    """Every file of a run is in it, and nothing else, but for the manifests, which stand below it."""
    named = set()
    for first, *_ in table(ARCHITECTURE, "Artifacts"):
        stage = first.split()[0]
        named |= {(stage, name) for name in re.findall(r"`([^`]+)`", first)}
    sometimes = {("045", "export/"), ("045", "keep_datacomp.npy")}  # asked for; of such ids
    assert named - sometimes == {kind(file) for file in files if not file.endswith("/manifest.json")}
    assert sometimes <= named
    assert {kind(file)[0] for file in files if file.endswith("/manifest.json")} == {"01", "02", "03", "04", "045"}
    assert "`manifest.json`" in ARCHITECTURE


def test_the_table_of_artifacts_names_what_is_in_them(example):
    """The data sets and columns of the files that later stages and users read."""
    what = {cells[0]: cells[1] for cells in table(ARCHITECTURE, "Artifacts")}
    for line, path in {
        "03 `clusters/cluster_#####.h5`": "03_kmeans/clusters/cluster_00000.h5",
        "04 `neighbors.h5`": "04_neighbor_search/neighbors.h5",
        "045 `merged_clusters.h5`": "045_merge/merged_clusters.h5",
    }.items():
        with h5py.File(example / path) as file:
            names = set(file) - {"id_utf8", "id_offset"}  # "ids", described above the table
        assert names == set(re.findall(r"`(\w+)`", what[line])), line
    for name in pq.read_schema(example / "045_merge" / "groups.parquet").names:
        assert name in what["045 `groups.parquet`"]


def packages(name):
    """Names of the packages that a requirements file pins; every one to an exact version."""
    lines = (ROOT / name).read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith(("#", "-r "))]
    matches = [re.fullmatch(r"([\w.-]+)(\[[\w,]+\])?==[\w.]+", pin) for pin in pins]
    assert all(matches), pins
    return {match[1] for match in matches}


def test_every_dependency_has_a_row():
    rows = {name for first, *_ in table(ARCHITECTURE, "Dependencies") for name in first.split(", ")}
    assert packages("requirements.txt") <= rows
    assert rows == packages("requirements.txt") | packages("requirements-dev.txt")


def test_every_import_is_a_dependency():
    """What the scripts and neardup import is in requirements.txt, and all of that is imported."""
    module_of = {"scikit-learn": "sklearn", "faiss-cpu": "faiss", "pydantic-settings": "pydantic_settings"}
    module_of["pillow"] = "PIL"
    sources = [*ROOT.glob("*.py"), *ROOT.glob("neardup/**/*.py")]
    text = "\n".join(path.read_text() for path in sources)
    imported = {name.split(".")[0] for name in re.findall(r"^\s*(?:from|import) ([\w.]+)", text, flags=re.MULTILINE)}
    for package in packages("requirements.txt"):
        assert module_of.get(package, package) in imported, package
    listed = {module_of.get(package, package) for package in packages("requirements.txt")}
    ours = {"neardup", *(path.stem for path in ROOT.glob("*.py"))}
    assert imported - listed - ours <= sys.stdlib_module_names


def test_no_placeholder_is_left():
    """Words in capitals that stand for figures to come."""
    for name, text in ((path.name, path.read_text()) for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))):
        assert re.findall(r"\b[A-Z]+_FIGURES\b|\bTODO\b|\bTBD\b|\bFIXME\b", text) == [], name
