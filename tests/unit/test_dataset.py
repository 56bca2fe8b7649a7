"""dataset: what dataset.toml names is read, checked and streamed, or refused with a reason."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edged.build.dataset import Dataset, load_dataset, model_inputs
from edged.build.dataset_files import file_digest
from edged.errors import BuildError
from edged.recipe import InputSpec

VECTOR = (InputSpec(name="x", datatype="FP32", shape=(3,)),)
IMAGE = (InputSpec(name="image", datatype="UINT8", shape=(4, 4, 1), image="L", scale=(0.5,)),)
HEAD = 'source = "a test"\nlicense = "none"\n'


def entry(split: str, path: str, digest: str, count: int, extra: str = "") -> str:
    """One ``[[<split>.files]]`` of dataset.toml."""
    return f'\n[[{split}.files]]\npath = "{path}"\nsha256 = "{digest}"\ncount = {count}\n{extra}\n'


def save(folder: Path, split: str, **arrays: npt.NDArray[Any]) -> str:
    """Writes ``<split>.npz``, and returns its entry."""
    path = folder / f"{split}.npz"
    np.savez(path, allow_pickle=False, **arrays)
    return entry(split, path.name, file_digest(path), len(next(iter(arrays.values()))))


def vectors(count: int, start: int = 0) -> npt.NDArray[np.float32]:
    """``[count, 3]``, every row another one."""
    return np.arange(start, start + count * 3, dtype=np.float32).reshape(count, 3)


def write(folder: Path, *entries: str) -> None:
    """Writes dataset.toml."""
    (folder / "dataset.toml").write_text(HEAD + "".join(entries), encoding="utf-8")


def sound(folder: Path, calibration: int = 64) -> Dataset:
    """A sound set of vectors."""
    write(
        folder,
        save(folder, "calibration", x=vectors(calibration)),
        save(folder, "heldout", x=vectors(10), labels=np.arange(10)),
    )
    return load_dataset(folder, VECTOR)


def refusal(folder: Path, inputs: tuple[InputSpec, ...] = VECTOR) -> str:
    """Why the set is refused."""
    with pytest.raises(BuildError) as caught:
        load_dataset(folder, inputs)
    return caught.value.message


def test_batches_hold_every_sample_in_order(tmp_path: Path) -> None:
    """All samples and labels come once, in order, the last batch smaller."""
    dataset = sound(tmp_path)
    batches = list(dataset.heldout.batches(4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert np.array_equal(np.concatenate([batch.inputs["x"] for batch in batches]), vectors(10))
    labels = [batch.labels for batch in batches if batch.labels is not None]
    assert np.concatenate(labels).tolist() == list(range(10))
    assert dataset.warnings == ()
    assert not dataset.calibration.labelled
    assert repr(dataset.heldout) == "<Split heldout: 10 samples in 1 files>"


def test_limit_spreads_over_the_split(tmp_path: Path) -> None:
    """A limit takes samples from the whole split, also across files, and each at most once."""
    first = save(tmp_path, "calibration", x=vectors(6))
    (tmp_path / "calibration.npz").rename(tmp_path / "first.npz")
    write(
        tmp_path,
        first.replace("calibration.npz", "first.npz"),
        save(tmp_path, "calibration", x=vectors(6, start=18)),
        save(tmp_path, "heldout", x=vectors(2), labels=np.arange(2)),
    )
    split = load_dataset(tmp_path, VECTOR).calibration
    rows = np.concatenate([batch.inputs["x"][:, 0] for batch in split.batches(5, limit=4)])
    assert rows.tolist() == [0, 9, 18, 27]
    assert sum(map(len, split.batches(5, limit=100))) == len(split) == 12


def test_digest_is_of_the_samples_alone(tmp_path: Path) -> None:
    """A new description keeps the digest, a new sample changes it."""
    before = sound(tmp_path).digest
    document = tmp_path / "dataset.toml"
    document.write_text(document.read_text().replace("a test", "another test"))
    assert load_dataset(tmp_path, VECTOR).digest == before
    assert sound(tmp_path, calibration=65).digest != before


def test_few_calibration_samples_are_warned_of(tmp_path: Path) -> None:
    """Under 64 there is a warning, under 8 a refusal."""
    (warning,) = sound(tmp_path, calibration=63).warnings
    assert "only 63 samples" in warning
    sound(tmp_path, calibration=8)
    with pytest.raises(BuildError, match="has 7 samples, at least 8"):
        sound(tmp_path, calibration=7)


def test_one_file_in_both_splits_is_warned_of(tmp_path: Path) -> None:
    """A file that calibrates and verifies is no unseen one."""
    text = save(tmp_path, "heldout", x=vectors(64), labels=np.arange(64))
    write(tmp_path, text.replace("[[heldout", "[[calibration"), text)
    (warning,) = load_dataset(tmp_path, VECTOR).warnings
    assert "in both splits" in warning


def test_missing_document_is_named(tmp_path: Path) -> None:
    """Without dataset.toml the message says where it should be and how to make one."""
    message = refusal(tmp_path / "m")
    assert "no dataset for model 'm'" in message
    assert "calib/README.md" in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("source = ", "TOML"),
        (HEAD, "calibration: Field required; heldout: Field required"),
        (HEAD + entry("calibration", "../x.npz", "0" * 64, 1), "without '..'"),
        (HEAD + entry("calibration", "/x.npz", "0" * 64, 1), "relative path"),
        (HEAD + entry("calibration", "x.npz", "0" * 63, 1), "sha256"),
        (HEAD + entry("calibration", "x.npz", "0" * 64, 0), "greater than or equal to 1"),
        (HEAD + entry("calibration", "x.npy", "0" * 64, 1, 'labels = "y.npy"'), "go together"),
        (HEAD + "[calibration]\nfiles = []\n", "give either files or samples"),
        (HEAD + "colour = 3\n", "colour: Extra inputs"),
    ],
)
def test_wrong_document_is_explained(tmp_path: Path, text: str, reason: str) -> None:
    """Each wrong field is named with what is allowed."""
    (tmp_path / "dataset.toml").write_text(text)
    assert reason in refusal(tmp_path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A file that dataset.toml names must be there."""
    sound(tmp_path)
    (tmp_path / "heldout.npz").unlink()
    message = refusal(tmp_path)
    assert "heldout.npz cannot be read (No such file or directory)" in message


def test_changed_file_is_refused(tmp_path: Path) -> None:
    """Another digest is refused with the one that was found, ready to be copied."""
    sound(tmp_path)
    path = tmp_path / "heldout.npz"
    path.write_bytes(path.read_bytes() + b"\0")
    assert f"has sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": vectors(64).astype(np.float64)}, "dtype float64, the recipe says FP32"),
        ({"x": vectors(64).astype(">f4")}, "dtype >f4, the recipe says FP32"),
        ({"x": vectors(64)[:, :2]}, "shape [64, 2], wanted is [n, 3]"),
        ({"y": vectors(64)}, "arrays ['y'], the recipe has the inputs ['x']"),
        ({"x": vectors(64), "y": vectors(64)}, "arrays ['x', 'y']"),
        (
            {"x": vectors(64), "labels": np.arange(63)},
            "labels are int64 [63], wanted is int64 [64]",
        ),
        ({"x": vectors(64), "labels": np.arange(64.0)}, "labels are float64"),
        ({"x": vectors(64), "labels": np.arange(-1, 63)}, "smallest label is -1"),
    ],
)
def test_wrong_arrays_are_refused(
    tmp_path: Path, arrays: dict[str, npt.NDArray[Any]], reason: str
) -> None:
    """Names, dtypes, shapes and labels must be the recipe's; the message has both sides."""
    write(
        tmp_path,
        save(tmp_path, "calibration", **arrays),
        save(tmp_path, "heldout", x=vectors(2), labels=np.arange(2)),
    )
    assert reason in refusal(tmp_path)


def test_wrong_count_is_refused(tmp_path: Path) -> None:
    """dataset.toml's count must be the file's."""
    write(
        tmp_path,
        save(tmp_path, "calibration", x=vectors(64)).replace("count = 64", "count = 65"),
        save(tmp_path, "heldout", x=vectors(2), labels=np.arange(2)),
    )
    assert "has 64 samples, dataset.toml says count = 65" in refusal(tmp_path)


def test_held_out_samples_without_labels_are_warned_of(tmp_path: Path) -> None:
    """Without labels no accuracy is known: the build goes on by agreement and says so."""
    write(
        tmp_path,
        save(tmp_path, "calibration", x=vectors(64)),
        save(tmp_path, "heldout", x=vectors(2)),
    )
    found = load_dataset(tmp_path, VECTOR)
    assert not found.heldout.labelled
    assert any("has no labels" in warning and "'labels'" in warning for warning in found.warnings)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    """NaN and infinities are found as the samples pass, and the sample is named."""
    rows = vectors(64)
    rows[41, 2] = value
    write(
        tmp_path,
        save(tmp_path, "calibration", x=rows),
        save(tmp_path, "heldout", x=vectors(2), labels=np.arange(2)),
    )
    batches = load_dataset(tmp_path, VECTOR).calibration.batches(10)
    with pytest.raises(BuildError, match=r"calibration.npz: sample 41 of input 'x' holds NaN"):
        list(batches)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    """An array of objects is refused as what it is; its code does not run."""
    bait = tmp_path / "ran"

    class Bait:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (bait,))

    objects = np.array([Bait()], dtype=object)
    for name in ("x.npz", "x.npy"):
        path = tmp_path / name
        if name == "x.npz":
            np.savez(path, x=objects)
        else:
            np.save(path, objects)
        write(tmp_path, *[entry(s, name, file_digest(path), 1) for s in ("calibration", "heldout")])
        assert "arrays of objects are not read" in refusal(tmp_path)
    assert not bait.exists()


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY\x01\x00", b"text"])
def test_garbage_files_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    """A file that is none of what its name says is refused, not passed on as numpy's error."""
    path = tmp_path / name
    path.write_bytes(data)
    write(tmp_path, *[entry(s, name, file_digest(path), 1) for s in ("calibration", "heldout")])
    assert "is no sound" in refusal(tmp_path)


def test_other_file_types_are_refused(tmp_path: Path) -> None:
    """What is no .npz, .npy or folder is named with what would be taken."""
    path = tmp_path / "x.csv"
    path.write_text("1,2,3\n")
    write(tmp_path, *[entry(s, "x.csv", file_digest(path), 1) for s in ("calibration", "heldout")])
    assert "neither .npz, .npy nor a folder" in refusal(tmp_path)


def test_npy_with_labels_beside_it(tmp_path: Path) -> None:
    """One array for one input, its labels in another file with its own digest."""
    np.save(tmp_path / "x.npy", vectors(64))
    np.save(tmp_path / "y.npy", np.arange(64) % 3)
    labels = f'labels = "y.npy"\nlabels_sha256 = "{file_digest(tmp_path / "y.npy")}"'
    digest = file_digest(tmp_path / "x.npy")
    write(
        tmp_path,
        entry("calibration", "x.npy", digest, 64),
        entry("heldout", "x.npy", digest, 64, labels),
    )
    (batch,) = load_dataset(tmp_path, VECTOR).heldout.batches(100)
    assert np.array_equal(batch.inputs["x"], vectors(64))
    assert batch.labels is not None
    assert np.array_equal(batch.labels, np.arange(64) % 3)
    np.save(tmp_path / "y.npy", np.arange(64) % 5)
    assert "y.npy has sha256" in refusal(tmp_path)


def test_npy_is_for_one_input(tmp_path: Path) -> None:
    """A model with two inputs needs an .npz."""
    np.save(tmp_path / "x.npy", vectors(64))
    digest = file_digest(tmp_path / "x.npy")
    write(tmp_path, *[entry(s, "x.npy", digest, 64) for s in ("calibration", "heldout")])
    two = (*VECTOR, InputSpec(name="z", datatype="FP32", shape=(3,)))
    assert "the recipe has 2 inputs; use an .npz" in refusal(tmp_path, two)


def images(folder: Path, count: int = 8, *, labels: bool = True) -> str:
    """Writes a folder of images with labels, and returns the digest that the shell computes."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.full((4, 4), number * 20, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    if labels:
        lines = [f"{number:02d}.png,{number % 3}" for number in reversed(range(count))]
        (folder / "labels.csv").write_text("\n".join(["file,label", *lines]) + "\n")
    return shell_digest(folder)


def shell_digest(folder: Path) -> str:
    """The digest by the command in calib/README.md."""
    command = "export LC_ALL=C; sha256sum * | sha256sum"
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.split()[0]


def write_images(folder: Path, digest: str, count: int = 8) -> None:
    """dataset.toml with one folder for both splits."""
    write(folder, *[entry(s, "pictures", digest, count) for s in ("calibration", "heldout")])


def test_folder_of_images(tmp_path: Path) -> None:
    """Images come in the order of their names, each with its own label."""
    write_images(tmp_path, images(tmp_path / "pictures"))
    batches = list(load_dataset(tmp_path, IMAGE).heldout.batches(5))
    pixels = np.concatenate([batch.inputs["image"] for batch in batches])
    assert pixels.shape == (8, 4, 4, 1)
    assert pixels[:, 0, 0, 0].tolist() == [number * 20 for number in range(8)]
    labels = [batch.labels for batch in batches if batch.labels is not None]
    assert np.concatenate(labels).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_damaged_image_is_named(tmp_path: Path) -> None:
    """An image that cannot be decoded stops the build with its name."""
    folder = tmp_path / "pictures"
    images(folder)
    (folder / "05.png").write_bytes(b"no image")
    write_images(tmp_path, shell_digest(folder))
    batches = load_dataset(tmp_path, IMAGE).calibration.batches(8)
    with pytest.raises(BuildError, match=r"05.png: the 8 bytes are no PNG or JPEG"):
        list(batches)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ("file,label\n00.png,1\n", "differ in 7 names"),
        ("00.png,1\n", "must begin with 'file,label'"),
        ("file,label\n00.png,1\n00.png,2\n", "names 1 images in 2 lines"),
        ("file,label\n00.png,cat\n", "invalid literal for int"),
        ("file,label\n00.png\n", "not enough values"),
        ("", "not enough values"),
    ],
)
def test_wrong_labels_of_images_are_refused(tmp_path: Path, labels: str, reason: str) -> None:
    """Every image needs one line with a class index."""
    folder = tmp_path / "pictures"
    images(folder)
    (folder / "labels.csv").write_text(labels)
    write_images(tmp_path, shell_digest(folder))
    assert reason in refusal(tmp_path, IMAGE)


def test_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """A folder is for image models, holds images alone, as many as were counted, unchanged."""
    folder = tmp_path / "pictures"
    digest = images(folder)
    write_images(tmp_path, digest)
    assert "takes none" in refusal(tmp_path, VECTOR)
    write_images(tmp_path, digest, count=9)
    assert "has 8 images, dataset.toml says count = 9" in refusal(tmp_path, IMAGE)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "07.png")
    assert "pictures has sha256" in refusal(tmp_path, IMAGE)
    (folder / "notes.txt").write_text("x")
    assert "holds ['notes.txt'], allowed are" in refusal(tmp_path, IMAGE)


def test_model_inputs_are_preprocessed() -> None:
    """Samples become what the model takes: scaled, shifted, transposed, as float32; or as is."""
    specs = (
        InputSpec(
            name="image", datatype="UINT8", shape=(2, 2, 3), scale=(0.5,), offset=(0, 1, 2),
            transpose=(2, 0, 1),
        ),
        InputSpec(name="tokens", datatype="INT64", shape=(5,)),
    )  # fmt: skip
    rows = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    tokens = np.arange(10).reshape(2, 5)
    ready = model_inputs({"image": rows, "tokens": tokens}, specs)
    assert ready["image"].dtype == np.float32
    expected = rows.transpose(0, 3, 1, 2) * 0.5 + np.arange(3).reshape(1, 3, 1, 1)
    assert np.array_equal(ready["image"], expected)
    assert np.array_equal(ready["tokens"], tokens)
    assert ready["tokens"].dtype == np.int64


def test_batch_sizes_must_be_positive(tmp_path: Path) -> None:
    """A size or a limit of nothing is a fault of the caller."""
    split = sound(tmp_path).calibration
    with pytest.raises(ValueError, match="at least 1, got 0"):
        next(split.batches(0))
    with pytest.raises(ValueError, match="at least 1, got 1 and 0"):
        next(split.batches(1, limit=0))
