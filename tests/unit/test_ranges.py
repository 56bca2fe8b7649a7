"""ranges.json: deterministic, reviewable, bound to its sources."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edged.build.ranges import (
    Ranges,
    Sources,
    TensorRange,
    parse_ranges,
    read_ranges,
    write_ranges,
)
from edged.build_options import CalibrateOptions
from edged.errors import BuildError

SOURCES = Sources(model="aa", dataset="bb", preprocessing="cc")


def tensor_range(threshold: float = 1.0) -> TensorRange:
    """A range with this threshold."""
    return TensorRange(
        threshold=threshold, amax=2.0, p50=0.1, p99=0.9, p99_9=1.1, zeros=0.5, clipped=0.0,
        sqnr_db=40.0,
    )  # fmt: skip


def ranges(**tensors: TensorRange) -> Ranges:
    """Ranges of these tensors."""
    return Ranges(sources=SOURCES, method="mse", samples=64, tensors=tensors)


def test_text_and_back_gives_the_same_ranges() -> None:
    """What is written is read again without a difference."""
    known = ranges(b=tensor_range(), a=tensor_range(0.25))
    assert parse_ranges(known.to_json()) == known


def test_text_does_not_depend_on_the_order_of_tensors() -> None:
    """A review shows changed ranges only: one line a tensor, sorted by name."""
    one = ranges(b=tensor_range(), a=tensor_range(0.25)).to_json()
    other = ranges(a=tensor_range(0.25), b=tensor_range()).to_json()
    assert one == other
    lines = [line for line in one.splitlines() if "threshold" in line]
    assert [line.strip()[:3] for line in lines] == ['"a"', '"b"']


def test_values_are_rounded_so_that_processors_agree() -> None:
    """Differences in the seventh digit, as between two processors, leave the file as it is."""
    assert ranges(a=tensor_range(1.0000001)).to_json() == ranges(a=tensor_range(1.0)).to_json()


def test_ranges_without_tensors_are_still_json() -> None:
    """An empty table is written as valid JSON."""
    assert json.loads(ranges().to_json())["tensors"] == {}


def test_unchanged_sources_make_no_difference() -> None:
    """Ranges of the same sources, method and tensors can be used again."""
    known = ranges(a=tensor_range())
    assert known.differences(SOURCES, CalibrateOptions(), frozenset({"a"})) == []


@pytest.mark.parametrize(
    ("sources", "options", "tensors", "expected"),
    [
        (SOURCES.model_copy(update={"model": "x"}), CalibrateOptions(), {"a"}, "another model"),
        (SOURCES.model_copy(update={"dataset": "x"}), CalibrateOptions(), {"a"}, "another dataset"),
        (
            SOURCES.model_copy(update={"preprocessing": "x"}),
            CalibrateOptions(),
            {"a"},
            "another preprocessing",
        ),
        (SOURCES, CalibrateOptions(method="minmax"), {"a"}, "method mse, not minmax"),
        (SOURCES, CalibrateOptions(), {"a", "b"}, "no range for 1 tensors, e.g. 'b'"),
    ],
)
def test_each_difference_is_named(
    sources: Sources, options: CalibrateOptions, tensors: set[str], expected: str
) -> None:
    """What made known ranges useless is said, not only that they are."""
    known = ranges(a=tensor_range())
    assert known.differences(sources, options, frozenset(tensors)) == [expected]


def test_another_percentile_is_a_difference() -> None:
    """The percentile counts where the method uses it."""
    known = Ranges(sources=SOURCES, method="percentile", percentile=99.9, samples=9, tensors={})
    options = CalibrateOptions(method="percentile", percentile=99.99)
    assert known.differences(SOURCES, options, frozenset())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"version": 2}',
        "[" * 100_000,
        ranges(a=tensor_range()).to_json().replace('"threshold": 1.0', '"threshold": 0.0'),
        ranges(a=tensor_range()).to_json().replace('"threshold": 1.0', '"threshold": NaN'),
    ],
)
def test_damaged_text_is_refused_with_what_to_do(text: str) -> None:
    """A damaged file stops the build; it may have been edited by hand, so it is not replaced."""
    with pytest.raises(BuildError, match="delete it to calibrate again"):
        parse_ranges(text)


def test_no_file_is_no_ranges(tmp_path: Path) -> None:
    """The first calibration of a model finds none."""
    assert read_ranges(tmp_path / "ranges.json") is None


def test_written_file_is_read_and_nothing_else_stays(tmp_path: Path) -> None:
    """A write replaces the file whole and leaves no temporary one."""
    path = tmp_path / "ranges.json"
    write_ranges(path, ranges())
    write_ranges(path, ranges(a=tensor_range()))
    assert read_ranges(path) == ranges(a=tensor_range())
    assert [item.name for item in tmp_path.iterdir()] == ["ranges.json"]


def test_folder_that_cannot_be_written_is_a_build_error(tmp_path: Path) -> None:
    """A missing folder is reported with the model's name."""
    with pytest.raises(BuildError, match=r"cannot write ranges.json of 'gone'"):
        write_ranges(tmp_path / "gone" / "ranges.json", ranges())


def test_unreadable_file_is_a_build_error(tmp_path: Path) -> None:
    """Bytes that are no text are refused."""
    path = tmp_path / "ranges.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BuildError, match="cannot be read"):
        read_ranges(path)
