"""Files that `edged infer` and `edged bench` send."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from edged.errors import InputFileError
from edged.protocol import JPEG, PNG
from edged.sample_file import read_sample_file

NOTHING = io.BytesIO()


def test_npy_gets_the_given_input_name(tmp_path: Path) -> None:
    """The array of a .npy file is for the input that the caller names; the suffix is not asked."""
    path = tmp_path / "samples.bin"
    with path.open("wb") as file:
        np.save(file, np.arange(4))
    sample = read_sample_file(str(path), NOTHING, input_name="image")
    np.testing.assert_array_equal(sample.arrays["image"], np.arange(4))


def test_npz_names_its_own_inputs(tmp_path: Path) -> None:
    """Every array of a .npz file is the input of that name."""
    path = tmp_path / "samples.npz"
    np.savez(path, a=np.zeros(2), b=np.ones(3))
    sample = read_sample_file(str(path), NOTHING, input_name="unused")
    assert {name: len(data) for name, data in sample.arrays.items()} == {"a": 2, "b": 3}


@pytest.mark.parametrize(
    ("start", "content_type"), [(b"\x89PNG\r\n\x1a\n", PNG), (b"\xff\xd8\xff\xe0", JPEG)]
)
def test_image_is_read_from_standard_input(start: bytes, content_type: str) -> None:
    """``-`` reads standard input; an image stays as it is."""
    sample = read_sample_file("-", io.BytesIO(start + b"rest"), input_name="x")
    assert (sample.image, sample.content_type) == (start + b"rest", content_type)


def test_unknown_and_missing_files_are_refused(tmp_path: Path) -> None:
    """A file that is not there, a folder and text each get a message that says which file."""
    (tmp_path / "text").write_text("hello")
    for name, why in [("none", "No such file"), (".", "directory"), ("text", "is no .npy")]:
        with pytest.raises(InputFileError, match=why):
            read_sample_file(str(tmp_path / name), NOTHING, input_name="x")


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    """An object array would run code when loaded: it is refused."""
    path = tmp_path / "evil.npy"
    np.save(path, np.array([pickle.Pickler], dtype=object), allow_pickle=True)
    with pytest.raises(InputFileError, match="no plain arrays"):
        read_sample_file(str(path), NOTHING, input_name="x")


def test_damaged_file_is_refused_at_every_length(tmp_path: Path) -> None:
    """A .npz that was cut anywhere after its magic is refused, or is empty of surprises."""
    path = tmp_path / "cut.npz"
    np.savez(path, a=np.zeros(2))
    whole = path.read_bytes()
    for end in range(4, len(whole)):
        with pytest.raises(InputFileError):
            read_sample_file("-", io.BytesIO(whole[:end]), input_name="x")
