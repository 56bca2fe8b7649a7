"""Sample files of a dataset: an ``.npz``, an ``.npy`` or a folder of images -> checked rows.

Opening checks the digest, the names, dtypes and shapes, and the number of rows; `SampleFile.read`
checks the values as they pass. An ``.npy`` is mapped and images are decoded batch by batch, so a
set of any size fits; an ``.npz`` is loaded whole.
"""

from __future__ import annotations

import csv
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from edged.errors import BuildError, EdgedError
from edged.preprocess import decode_image
from edged.recipe import DTYPES, InputSpec

Array = npt.NDArray[np.generic]
Labels = npt.NDArray[np.int64]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

LABELS = "labels"
"""Name of the labels' array in an ``.npz``."""
LENGTHS = "lengths"
"""Name of the samples' lengths in an ``.npz``, for inputs of variable length."""
LABELS_CSV = "labels.csv"
"""Labels of a folder of images: a header ``file,label``, then a line for each image."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


class SampleFileSpec(BaseModel):
    """``[[<split>.files]]`` of dataset.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Annotated[str, Field(min_length=1)]
    """Beside dataset.toml: an ``.npz``, an ``.npy`` (for one input) or a folder of images."""
    sha256: Digest
    """Of the file; of a folder, that of its listing (see `folder_digest`)."""
    count: Annotated[int, Field(ge=1)]
    """Number of samples."""
    labels: str | None = None
    """``.npy`` of int64 labels that belongs to an ``.npy``."""
    labels_sha256: Digest | None = None

    @field_validator("path", "labels")
    @classmethod
    def _beside(cls, value: str | None) -> str | None:
        path = PurePosixPath(value or "")
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{value!r} must be a relative path without '..'")
        return value

    @model_validator(mode="after")
    def _labels_fit(self) -> SampleFileSpec:
        if (self.labels is None) != (self.labels_sha256 is None):
            raise ValueError("labels and labels_sha256 go together: give both or none")
        if self.labels is not None and not self.path.endswith(".npy"):
            raise ValueError("labels is for an .npy; an .npz holds its own, a folder a labels.csv")
        return self


class Rows(Protocol):
    """Samples of one input: an array, or something that is read when it is indexed."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: npt.NDArray[np.intp], /) -> Array:
        """The samples at these positions, ``[n, *shape]``."""


@dataclass(frozen=True, eq=False)
class SampleFile:
    """One opened sample file.

    Attributes:
        spec: what dataset.toml says of it.
        rows: samples by input name.
        labels: class index of each sample, if it brings them.
        lengths: of each sample, where the recipe's inputs are of variable length.
        axes: by such an input, the axis of ``[n, *shape]`` that the lengths are along.
    """

    spec: SampleFileSpec
    rows: Mapping[str, Rows]
    labels: Labels | None
    lengths: Labels | None = None
    axes: Mapping[str, int] = field(default_factory=dict)

    def read(self, index: npt.NDArray[np.intp]) -> dict[str, Array]:
        """The samples at these positions, by input name, ``[n, *shape]`` as requests carry them.

        Where lengths are variable, they are zero behind each one's own length, whatever lies there.

        Raises:
            BuildError: a value is NaN or infinite, or an image cannot be decoded.
        """
        batch = {name: np.asarray(rows[index]) for name, rows in self.rows.items()}
        if self.lengths is not None:
            batch |= {
                name: cut(batch[name], self.lengths[index], axis)
                for name, axis in self.axes.items()
            }
        for name, values in batch.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                flat = values.reshape(len(values), -1)
                bad = int(index[np.flatnonzero(~np.isfinite(flat).all(axis=1))[0]])
                raise BuildError(
                    f"{self.spec.path}: sample {bad} of input {name!r} holds NaN or an infinity; "
                    "only finite values are allowed: mend it or leave it out"
                )
        return batch


def open_samples(folder: Path, spec: SampleFileSpec, inputs: Sequence[InputSpec]) -> SampleFile:
    """Opens one sample file, and checks all of it but the values.

    Raises:
        BuildError: the file is missing, is another one than dataset.toml names, cannot be read
            without pickle, or does not hold what the recipe's inputs want.
    """
    path = folder / spec.path
    try:
        if path.is_dir():
            return _open_images(path, spec, inputs)
        _check_digest(spec.path, file_digest(path), spec.sha256)
        if path.suffix == ".npz":
            arrays = _load_npz(path)
        elif path.suffix == ".npy":
            arrays = _load_npy(folder, spec, inputs)
        else:
            raise BuildError(
                f"{spec.path} is neither .npz, .npy nor a folder of images; convert it to one"
            )
    except OSError as err:
        raise BuildError(
            f"{path} cannot be read ({err.strerror or err}), but dataset.toml names it; "
            "put it there or change the entry"
        ) from err
    names = {item.name for item in inputs}
    labels = None if LABELS in names else arrays.pop(LABELS, None)
    lengths = None
    if any(item.length is not None for item in inputs) and LENGTHS not in names:
        lengths = arrays.pop(LENGTHS, None)
    if set(arrays) != names:
        raise BuildError(
            f"{spec.path} holds the arrays {sorted(arrays)}, the recipe has the inputs "
            f"{sorted(names)}; name them alike"
        )
    for item in inputs:
        _check_array(spec, item, arrays[item.name])
    axes = length_axes(inputs)
    found = _checked_lengths(spec, lengths, {n: arrays[n].shape[at] for n, at in axes.items()})
    return SampleFile(spec, arrays, _checked_labels(spec, labels), found, axes)


def length_axes(inputs: Sequence[InputSpec]) -> dict[str, int]:
    """By input of variable length, the axis of ``[n, *shape]`` that it is along."""
    return {item.name: item.length.axis + 1 for item in inputs if item.length is not None}


def cut(rows: Array, lengths: Labels, axis: int) -> Array:
    """Samples with zeros behind their lengths, ``[n, *shape]``; a copy.

    Args:
        rows: samples, or outputs of a model.
        lengths: of each.
        axis: of ``rows``, that the lengths are along.
    """
    kept = np.array(rows)
    behind = np.arange(rows.shape[axis]) >= lengths[:, None]
    np.moveaxis(kept, axis, 1)[behind] = 0
    return kept


def file_digest(path: Path) -> str:
    """sha256 of a file, as ``sha256sum`` prints it.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def folder_digest(paths: Sequence[Path]) -> str:
    """sha256 of a folder's listing, as ``LC_ALL=C; sha256sum * | sha256sum`` prints it there."""
    listing = "".join(
        f"{file_digest(path)}  {path.name}\n" for path in sorted(paths, key=lambda p: p.name)
    )
    return hashlib.sha256(listing.encode()).hexdigest()


def _check_digest(name: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise BuildError(
            f"{name} has sha256 {found}, dataset.toml says {wanted}: the file was changed or is "
            "another one; restore it, or put the new digest and count into dataset.toml"
        )


def _load_npz(path: Path) -> dict[str, Array]:
    try:
        # Opened here, since numpy leaves a file open that turns out to be no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as err:
        raise _unreadable(path, err) from err


def _load_npy(folder: Path, spec: SampleFileSpec, inputs: Sequence[InputSpec]) -> dict[str, Array]:
    if len(inputs) != 1:
        raise BuildError(
            f"{spec.path} is one array, but the recipe has {len(inputs)} inputs; use an .npz"
        )
    arrays = {inputs[0].name: _map_array(folder / spec.path)}
    if spec.labels is not None and spec.labels_sha256 is not None:
        _check_digest(spec.labels, file_digest(folder / spec.labels), spec.labels_sha256)
        arrays[LABELS] = _map_array(folder / spec.labels)
    return arrays


def _map_array(path: Path) -> Array:
    try:
        return np.lib.format.open_memmap(path, mode="r")  # refuses arrays of objects
    except (ValueError, EOFError) as err:
        raise _unreadable(path, err) from err


def _unreadable(path: Path, err: Exception) -> BuildError:
    return BuildError(
        f"{path} is no sound {path.suffix} file of plain arrays ({err}); arrays of objects are "
        "not read, because they are pickles, which may run code"
    )


def _check_array(spec: SampleFileSpec, item: InputSpec, array: Array) -> None:
    wanted = DTYPES[item.datatype]
    if array.dtype != wanted:
        raise BuildError(
            f"{spec.path}: input {item.name!r} has dtype {array.dtype}, the recipe says "
            f"{item.datatype} ({wanted}); save it as that"
        )
    if array.ndim == 0 or not fits(array.shape[1:], item):
        sizes = ["n", *map(str, item.shape)]
        if item.length is not None:
            sizes[item.length.axis + 1] = f"1..{item.max_length}"
        raise BuildError(
            f"{spec.path}: input {item.name!r} has shape {list(array.shape)}, wanted is "
            f"[{', '.join(sizes)}], samples as a request carries them"
        )
    if len(array) != spec.count:
        raise BuildError(
            f"{spec.path}: input {item.name!r} has {len(array)} samples, dataset.toml says count "
            f"= {spec.count}; correct one of them"
        )


def fits(shape: Sequence[int], item: InputSpec) -> bool:
    """Whether a sample is of an input's shape, of any of the lengths that it may have."""
    wanted = list(item.shape)
    if item.length is not None and len(shape) == len(wanted):
        wanted[item.length.axis] = min(max(1, shape[item.length.axis]), item.max_length)
    return list(shape) == wanted


def _checked_lengths(
    spec: SampleFileSpec, lengths: Array | None, sizes: Mapping[str, int]
) -> Labels | None:
    """Lengths of the samples; ``sizes``: what the arrays have along their axes."""
    if not sizes:
        return None
    most = min(sizes.values())
    if lengths is None and len(set(sizes.values())) == 1:
        return np.full(spec.count, most, np.int64)
    if lengths is None:
        raise BuildError(
            f"{spec.path}: its inputs have different sizes along their variable axes, {sizes}; add "
            f"an array {LENGTHS!r} with the length of each sample, or cut them to one size"
        )
    if lengths.dtype != np.int64 or lengths.shape != (spec.count,):
        raise BuildError(
            f"{spec.path}: {LENGTHS!r} is {lengths.dtype} {list(lengths.shape)}, wanted is int64 "
            f"[{spec.count}], the length of each sample"
        )
    if not 1 <= lengths.min() <= lengths.max() <= most:
        raise BuildError(
            f"{spec.path}: lengths go from {lengths.min()} to {lengths.max()}, allowed are 1 to "
            f"{most}, what the arrays hold of each sample"
        )
    return cast(Labels, lengths)


def _checked_labels(spec: SampleFileSpec, labels: Array | None) -> Labels | None:
    if labels is None:
        return None
    if labels.dtype != np.int64 or labels.shape != (spec.count,):
        raise BuildError(
            f"{spec.path}: labels are {labels.dtype} {list(labels.shape)}, wanted is int64 "
            f"[{spec.count}], one class index for each sample"
        )
    if labels.min() < 0:
        raise BuildError(
            f"{spec.path}: the smallest label is {labels.min()}; labels are class indices from 0 on"
        )
    return cast(Labels, labels)


class _Images:
    """Images on disk as rows, decoded when they are indexed."""

    def __init__(self, paths: Sequence[Path], item: InputSpec) -> None:
        self._paths = paths
        self._item = item

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: npt.NDArray[np.intp], /) -> Array:
        return np.stack([self._decode(self._paths[int(at)]) for at in index])

    def _decode(self, path: Path) -> npt.NDArray[np.uint8]:
        height, width, _ = self._item.shape
        mode: Any = self._item.image
        try:
            return decode_image(
                path.read_bytes(),
                mode=mode,
                height=height,
                width=width,
                fill=self._item.letterbox,
            )
        except (EdgedError, OSError) as err:
            raise BuildError(f"{path}: {err}") from err


def _open_images(path: Path, spec: SampleFileSpec, inputs: Sequence[InputSpec]) -> SampleFile:
    if len(inputs) != 1 or inputs[0].image == "none":
        raise BuildError(
            f"{spec.path} is a folder of images, but the recipe's input takes none; "
            'set image = "L" or "RGB" in the recipe, or use an .npz'
        )
    files = [item for item in path.iterdir() if not item.name.startswith(".")]
    images = sorted(
        (item for item in files if item.suffix.lower() in IMAGE_SUFFIXES), key=lambda p: p.name
    )
    others = {item.name for item in files} - {item.name for item in images} - {LABELS_CSV}
    if others:
        raise BuildError(
            f"{spec.path} holds {sorted(others)[:5]}, allowed are {', '.join(IMAGE_SUFFIXES)} "
            f"and {LABELS_CSV}; move the rest away"
        )
    _check_digest(spec.path, folder_digest(files), spec.sha256)
    if len(images) != spec.count:
        raise BuildError(
            f"{spec.path} has {len(images)} images, dataset.toml says count = {spec.count}; "
            "correct one of them"
        )
    labels = _read_labels(path / LABELS_CSV, [item.name for item in images])
    rows = {inputs[0].name: _Images(images, inputs[0])}
    return SampleFile(spec, rows, _checked_labels(spec, labels))


def _read_labels(path: Path, names: Sequence[str]) -> Labels | None:
    if not path.exists():
        return None
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = [line for line in csv.reader(file) if line]
        table = {name: int(label) for name, label in lines}
    except (ValueError, csv.Error) as err:
        raise BuildError(
            f"{path} is wrong ({err}); it must have the line 'file,label', then a line for each "
            "image with its name and class index"
        ) from err
    if header != ["file", "label"] or len(table) != len(lines):
        raise BuildError(
            f"{path} begins with {','.join(header)!r} and names {len(table)} images in "
            f"{len(lines)} lines; it must begin with 'file,label' and name each image once"
        )
    if set(table) != set(names):
        odd = sorted(set(table) ^ set(names))
        raise BuildError(
            f"{path} and the images beside it differ in {len(odd)} names, e.g. {odd[:3]}; "
            "give every image one line"
        )
    return np.array([table[name] for name in names], np.int64)
