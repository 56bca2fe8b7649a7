"""Samples of variable length: read, grouped, padded as in serving, or refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edged.build.dataset import load_dataset, model_inputs
from edged.build.dataset_files import file_digest
from edged.errors import BuildError
from edged.recipe import InputSpec, LengthSpec

LENGTH = LengthSpec(buckets=(2, 4), pad=-1.0, mask="mask")
INPUTS = (InputSpec(name="x", datatype="FP32", shape=(6, 1), length=LENGTH),)
PLAIN = (INPUTS[0].model_copy(update={"length": LENGTH.model_copy(update={"mask": ""})}),)
HEAD = 'source = "a test"\nlicense = "none"\n'
LENGTHS = np.tile([1, 2, 3, 4, 5, 6], 2)


def write(folder: Path, **arrays: npt.NDArray[Any]) -> None:
    """dataset.toml and one .npz for both splits."""
    np.savez(folder / "all.npz", allow_pickle=False, **arrays)
    digest = file_digest(folder / "all.npz")
    entry = f'path = "all.npz"\nsha256 = "{digest}"\ncount = {len(arrays["x"])}\n'
    text = "".join(f"[[{split}.files]]\n{entry}" for split in ("calibration", "heldout"))
    (folder / "dataset.toml").write_text(HEAD + text, encoding="utf-8")


def rows() -> npt.NDArray[np.float32]:
    """``[12, 6, 1]``: sample n is n + 1 all along, with NaN behind its length."""
    made = np.full((12, 6, 1), np.nan, np.float32)
    for n, length in enumerate(LENGTHS):
        made[n, :length] = n + 1
    return made


def test_calibration_with_a_mask_has_no_padding(tmp_path: Path) -> None:
    """Each batch has one length, its own, and a mask of ones; no sample is left out."""
    write(tmp_path, x=rows(), lengths=LENGTHS)

    batches = list(load_dataset(tmp_path, INPUTS).calibration.batches(8))

    assert [(batch.padded, len(batch)) for batch in batches] == [(n, 2) for n in range(1, 7)]
    for batch in batches:
        ready = model_inputs(batch, INPUTS)
        assert ready["x"].shape == (2, batch.padded, 1)
        assert ready["mask"].all()
        assert ready["x"][:, 0, 0].tolist() == [batch.padded, batch.padded + 6]


@pytest.mark.parametrize(
    ("split", "inputs"), [("heldout", INPUTS), ("calibration", PLAIN)], ids=["held out", "no mask"]
)
def test_samples_are_padded_to_their_bucket(
    tmp_path: Path, split: str, inputs: tuple[InputSpec, ...]
) -> None:
    """As serving does: `pad` behind the data, whatever the file has there."""
    write(tmp_path, x=rows(), lengths=LENGTHS)

    batches = list(getattr(load_dataset(tmp_path, inputs), split).batches(8))

    assert [(batch.padded, len(batch)) for batch in batches] == [(2, 4), (4, 4), (6, 4)]
    for batch in batches:
        assert batch.lengths is not None
        ready = model_inputs(batch, inputs)
        behind = np.arange(batch.padded) >= batch.lengths[:, None]
        assert (ready["x"][..., 0] == -1).tolist() == behind.tolist()
        if "mask" in ready:
            assert (ready["mask"] == 0).tolist() == behind.tolist()


def test_without_lengths_all_are_as_long_as_the_array(tmp_path: Path) -> None:
    """An array of five positions, of at most six."""
    write(tmp_path, x=np.zeros((9, 5, 1), np.float32))
    (batch,) = load_dataset(tmp_path, INPUTS).heldout.batches(16)
    assert batch.lengths is not None
    assert (batch.padded, set(batch.lengths)) == (6, {5})


def test_a_function_yields_samples_of_their_own_length(tmp_path: Path) -> None:
    """They are kept with their lengths, and read from there the second time."""
    source = "import numpy as np\ndef made():\n    for n in range(99):\n"
    source += '        yield {"x": np.full((1 + n % 6, 1), n + 1, np.float32)}\n'
    (tmp_path / "own.py").write_text(source)
    split = 'samples = "own:made"\ncount = 12\n'
    (tmp_path / "dataset.toml").write_text(f"{HEAD}[calibration]\n{split}[heldout]\n{split}")

    for _ in range(2):
        batches = list(load_dataset(tmp_path, INPUTS).calibration.batches(8))
        assert [(batch.padded, len(batch)) for batch in batches] == [(n, 2) for n in range(1, 7)]
        assert [batch.inputs["x"][1, 0, 0] for batch in batches] == [7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        (LENGTHS.astype(np.int32), r"'lengths' is int32 \[12\], wanted is int64 \[12\]"),
        (LENGTHS[:5], r"'lengths' is int64 \[5\], wanted is int64 \[12\]"),
        (LENGTHS - 1, "lengths go from 0 to 5, allowed are 1 to 6"),
        (LENGTHS + 1, "lengths go from 2 to 7, allowed are 1 to 6"),
    ],
)
def test_wrong_lengths_are_refused(
    tmp_path: Path, lengths: npt.NDArray[Any], expected: str
) -> None:
    """What was found and what is wanted."""
    write(tmp_path, x=rows(), lengths=lengths)
    with pytest.raises(BuildError, match=expected):
        load_dataset(tmp_path, INPUTS)


def test_what_is_longer_than_the_largest_length_is_refused(tmp_path: Path) -> None:
    """The message names the range of lengths."""
    write(tmp_path, x=np.zeros((9, 7, 1), np.float32))
    with pytest.raises(BuildError, match=r"shape \[9, 7, 1\], wanted is \[n, 1..6, 1\]"):
        load_dataset(tmp_path, INPUTS)


def test_a_value_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    """Within the data it counts, behind it it does not."""
    spoilt = rows()
    spoilt[4, 2] = np.inf
    write(tmp_path, x=spoilt, lengths=LENGTHS)
    with pytest.raises(BuildError, match="sample 4 of input 'x' holds NaN or an infinity"):
        list(load_dataset(tmp_path, INPUTS).calibration.batches(8))
