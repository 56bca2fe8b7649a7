"""docs/changes/fold.py: fragments land in the right section, and none is lost."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[2] / "docs" / "changes" / "fold.py"
_SPEC = importlib.util.spec_from_file_location("fold", _PATH)
if _SPEC is None or _SPEC.loader is None:
    raise ImportError(f"{_PATH} cannot be loaded")
fold = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fold)

LOG = """# Changelog

## [Unreleased]

### Added

- One.

## [0.1.0]

### Added

- Zero.
"""


def test_entries_are_added_below_those_that_stand_there() -> None:
    """A fragment joins its section under Unreleased; older releases stay as they are."""
    folded = fold.fold(LOG, {"two.added.md": "- Two.\n", "leak.fixed.md": "- A leak.\n"})

    assert folded == LOG.replace("- One.\n", "- One.\n- Two.\n\n### Fixed\n\n- A leak.\n")


def test_folding_nothing_changes_nothing() -> None:
    """A second run is no change, so the target may be typed twice; nor is one of the real log."""
    real = (Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")

    assert fold.fold(LOG, {}) == LOG
    assert fold.fold(real, {}) == real


def test_text_and_sections_of_ones_own_stay() -> None:
    """An introduction and a section that the form does not know are kept, the latter at the end."""
    log = LOG.replace("## [Unreleased]\n", "## [Unreleased]\n\nWords.\n").replace(
        "- One.\n", "- One.\n\n### Known limits\n\n- None.\n"
    )

    folded = fold.fold(log, {"leak.fixed.md": "- A leak.\n"})

    assert folded == log.replace("\n### Known", "\n### Fixed\n\n- A leak.\n\n### Known")


@pytest.mark.parametrize("name", ["two.md", "two.news.md", "a.b.added.md"])
def test_a_wrong_name_is_refused(name: str) -> None:
    """A fragment whose name states no section is refused by name, with what is allowed."""
    with pytest.raises(ValueError, match=name) as refused:
        fold.fold(LOG, {name: "- Two.\n"})

    assert "security, removed, deprecated, added, changed, fixed" in str(refused.value)


def test_a_fragment_that_is_no_list_is_refused() -> None:
    """Free text would break the list in the change log."""
    with pytest.raises(ValueError, match=r"two\.added\.md"):
        fold.fold(LOG, {"two.added.md": "Two.\n"})


def test_the_files_are_removed_once_they_are_folded(tmp_path: Path) -> None:
    """The log gets the entries, the fragment files go, the folder's README stays."""
    changes = tmp_path / "docs" / "changes"
    changes.mkdir(parents=True)
    (tmp_path / "CHANGELOG.md").write_text(LOG, encoding="utf-8")
    (changes / "README.md").write_text("how\n", encoding="utf-8")
    (changes / "two.added.md").write_text("- Two.\n", encoding="utf-8")

    said = fold.main(tmp_path)

    assert said.startswith("1 change fragments")
    assert [path.name for path in changes.iterdir()] == ["README.md"]
    assert "- Two." in (tmp_path / "CHANGELOG.md").read_text(encoding="utf-8")
