"""What the tree promises about itself: sizes, docstrings, targets, words, links."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_MODULE_LINES = 400
LINE_LIMITS = {"README.md": 150, "ARCHITECTURE.md": 200, "CONTRIBUTING.md": 120}

# Not ours, or made by a tool.
_SKIPPED = {".git", ".venv", ".cache", ".demo", ".device", "dist", "build", "built", "__pycache__"}
_SKIPPED |= {".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".import_linter_cache"}


def _files() -> list[Path]:
    found = []
    for folder in [ROOT, *(p for p in ROOT.iterdir() if p.is_dir() and p.name not in _SKIPPED)]:
        pattern = "*" if folder == ROOT else "**/*"
        found += [
            path
            for path in folder.glob(pattern)
            # edged/build is ours: only the top-level build/ is made by a tool.
            if path.is_file()
            and not path.name.startswith(".coverage")
            and not _SKIPPED - {"build"} & set(path.relative_to(ROOT).parts[:-1])
        ]
    return sorted(found)


FILES = _files()
MODULES = [path for path in FILES if path.suffix == ".py"]
DOCUMENTS = [path for path in FILES if path.suffix == ".md"]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _tests(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [n for n in ast.walk(tree) if isinstance(n, functions) and n.name.startswith("test_")]


def test_the_walk_sees_the_tree() -> None:
    """The lists below are not empty by mistake: code, tests and documents are all in them."""
    names = {_name(path) for path in FILES}

    assert {"edged/errors.py", "edged/build/__init__.py", "tests/unit/test_docs.py"} <= names
    assert {"README.md", "ARCHITECTURE.md", "docs/glossary.md", "Makefile"} <= names


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_no_module_is_too_long(path: Path) -> None:
    """A module over 400 lines is split where its subject splits."""
    lines = len(path.read_text(encoding="utf-8").splitlines())

    assert lines <= MAX_MODULE_LINES


@pytest.mark.parametrize(("name", "limit"), LINE_LIMITS.items())
def test_the_first_documents_stay_short(name: str, limit: int) -> None:
    """What a newcomer reads first is short enough to be read."""
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= limit


def test_every_test_says_what_should_happen() -> None:
    """Each test function has a docstring, and no two test files share a name."""
    files = [path for path in MODULES if path.name.startswith("test_")]
    silent = [f"{_name(p)}::{t.name}" for p in files for t in _tests(p) if not ast.get_docstring(t)]
    names = [path.name for path in files]

    assert not silent
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("page", "title"),
    [("ARCHITECTURE.md", "## Always true"), ("docs/reporting.md", "## Bad days")],
)
def test_each_sentence_that_is_always_true_has_its_test(page: str, title: str) -> None:
    """The tests that these pages name exist under exactly these names."""
    section = (ROOT / page).read_text(encoding="utf-8").split(title)[1]
    named = set(re.findall(r"`(test_\w+)`", section))
    written = {t.name for p in MODULES if p.name.startswith("test_") for t in _tests(p)}

    assert len(named) >= 5
    assert named - written == set()


def _make_targets() -> set[str]:
    printed = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return {line.split()[0] for line in printed.splitlines()}


def _phony_targets() -> set[str]:
    fragments = [ROOT / "Makefile", *sorted(ROOT.glob("*/*.mk"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in fragments)
    return set(" ".join(re.findall(r"^\.PHONY:(.*)$", text, re.MULTILINE)).split())


def test_help_lists_every_target() -> None:
    """`make help` prints each target that a person may type, and it is the default."""
    # The steps of `install` are not typed alone.
    typed = {name for name in _phony_targets() if not name.startswith("install-")}

    assert _make_targets() == typed
    assert re.search(
        r"^\.DEFAULT_GOAL := help$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )


def test_every_target_is_documented() -> None:
    """Each target stands in CONTRIBUTING.md or docs/ as `make <target>`."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)

    undocumented = {t for t in _make_targets() if not re.search(rf"`(?:sudo )?make {t}\b", text)}

    assert not undocumented


def test_every_documented_target_exists() -> None:
    """A `make something` in any document can be typed."""
    targets = _make_targets()
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)

    named = set(re.findall(r"`(?:sudo )?make ([a-z][a-z0-9-]*)", text))

    assert named <= targets


def test_readme_sets_up_in_exactly_two_commands() -> None:
    """The first shell blocks of README.md hold `make demo` and `make check`, and nothing more."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Set up")[1].split("\n## ")[0]

    commands = [
        line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
        for line in block.splitlines()
    ]  # fmt: skip

    assert commands == ["make demo", "make check"]


def test_ci_runs_what_people_run() -> None:
    """Continuous integration is `make setup check`, so that green here is green there."""
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()

    assert [line for line in lines if "make" in line] == ["exec make setup check </dev/null"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link of a document names a file or folder of the tree."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]

    assert [link for link in local if not (path.parent / link).exists()] == []


def test_the_tree_names_no_machine() -> None:
    """No file holds a path of the machine it was written on, or a package registry's host name."""
    # Pieces, so that this file does not hold what it looks for.
    words = ["/ho" + "me/", "/ro" + "ot/", "/Us" + "ers/", "pypi" + ".org", "pypi.nvi" + "dia"]
    words.append("files.python" + "hosted")
    # The install prefix is the one absolute path that documents may name.
    if len(ROOT.parts) > 2 and str(ROOT) != "/opt/edged":
        words.append(f"{ROOT}/")

    found = [
        f"{_name(path)}: {word}"
        for path in FILES
        for word in words
        if word.encode() in path.read_bytes()
    ]

    assert found == []


def test_a_too_old_python_is_refused_with_a_way_out(tmp_path: Path) -> None:
    """`make` with Python 3.9 names the version, what is needed, and how to choose another."""
    old = tmp_path / "python3.9"
    old.write_text(
        '#!/bin/sh\nif [ "$1" = --version ]; then echo Python 3.9.2; else exit 1; fi\n',
        encoding="utf-8",
    )
    old.chmod(0o755)
    rule = [f"VENV={tmp_path / 'venv'}", f"PYTHON={old}", str(tmp_path / "venv" / ".made")]

    ended = subprocess.run(
        ["make", *rule], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )

    assert ended.returncode != 0
    assert "needs Python 3.10 or newer" in ended.stderr
    assert "Python 3.9.2" in ended.stderr
    assert "make PYTHON=" in ended.stderr


def test_engine_without_a_model_says_which_there_are() -> None:
    """`make engine` alone names the models instead of building some default."""
    ended = subprocess.run(
        ["make", "--silent", "engine", "-o", ".venv/.demo"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert ended.returncode != 0
    assert "make engine MODEL=digits" in ended.stderr


def test_makefile_and_metadata_agree_on_the_oldest_python() -> None:
    """The version that the Makefile refuses below is the one that pyproject.toml requires."""
    required = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    refused = re.search(r"sys\.version_info < \(3, (\d+)\)", (ROOT / "Makefile").read_text())

    assert required is not None
    assert refused is not None
    assert required[1] == refused[1]
