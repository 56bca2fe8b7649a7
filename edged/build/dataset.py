"""``calib/<model>/dataset.toml`` -> checked samples.

dataset.toml says where the samples come from, how the splits were made, and which files each split
has, with their digests. calib/README.md shows its fields.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edged.build.dataset_files import Array, Labels, SampleFile, SampleFileSpec, open_samples
from edged.build.sample_function import ENTRY_POINT, open_function
from edged.errors import BuildError
from edged.recipe import InputSpec, explain
from edged.runners import input_specs
from edged.staging import stage

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FEWEST_CALIBRATION = 8
"""With fewer samples the ranges are chance, and the build is refused."""
FEW_CALIBRATION = 64
"""With fewer samples the build goes on with a warning."""

Part = Literal["all", "held back", "rest"]

_HOLD_BACK = 5  # every fifth calibration sample judges what the others gave


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainSpec(_Strict):
    """``[train]``: described only; training samples are not kept."""

    description: str = ""
    count: Annotated[int, Field(ge=0)] | None = None


class SplitSpec(_Strict):
    """``[calibration]`` and ``[heldout]``: files, or a function that makes the samples."""

    description: str = ""
    files: tuple[SampleFileSpec, ...] = ()
    samples: Annotated[str, Field(pattern=ENTRY_POINT)] | None = None
    """``module:function``, run by the build; the module may lie beside dataset.toml."""
    count: Annotated[int, Field(ge=1)] | None = None
    """Samples that are taken of the function."""

    @model_validator(mode="after")
    def _one_source(self) -> SplitSpec:
        if bool(self.files) == (self.samples is not None):
            raise ValueError('give either files or samples = "module:function"')
        if (self.samples is None) != (self.count is None):
            raise ValueError("count goes with samples, the number that is taken of the function")
        return self


class DatasetSpec(_Strict):
    """dataset.toml."""

    source: str
    """Where the samples come from."""
    license: str
    seed: int | None = None
    """Of the random choice of the splits."""
    method: str = ""
    """How the splits were made."""
    train: TrainSpec = TrainSpec()
    calibration: SplitSpec
    heldout: SplitSpec


@dataclass(frozen=True, eq=False)
class SampleBatch:
    """Some samples, as requests carry them.

    Attributes:
        inputs: ``[n, *shape]`` by input name.
        labels: class index of each, int64 ``[n]``; None where the split has none.
        lengths: of each, int64 ``[n]``; None where the length is fixed.
        padded: what the model's inputs are padded to, 0 where the length is fixed.
    """

    inputs: Mapping[str, Array]
    labels: Labels | None
    lengths: Labels | None = None
    padded: int = 0

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def up_to(self, length: int) -> SampleBatch:
        """Those samples, cut where they are longer: for measurements of time."""
        if self.lengths is None:
            return self
        return replace(self, lengths=np.minimum(self.lengths, length), padded=length)


@dataclass(frozen=True, eq=False)
class Split:
    """One split: its samples in the order of its files.

    Attributes:
        name: ``calibration`` or ``heldout``.
        files: its opened sample files.
        buckets: lengths that samples are padded to, ascending, the largest one last; empty: not
            padded, and a batch holds samples of one length.
    """

    name: str
    files: tuple[SampleFile, ...]
    buckets: tuple[int, ...] = ()

    def __len__(self) -> int:
        return sum(file.spec.count for file in self.files)

    def __repr__(self) -> str:
        return f"<Split {self.name}: {len(self)} samples in {len(self.files)} files>"

    @property
    def labelled(self) -> bool:
        """Whether every sample has a label."""
        return all(file.labels is not None for file in self.files)

    def batches(
        self, size: int, limit: int | None = None, part: Part = "all"
    ) -> Iterator[SampleBatch]:
        """Streams the samples; no batch spans two files or two padded lengths.

        Args:
            size: most samples in a batch.
            limit: at most so many samples, spread evenly, since files are often sorted by class.
            part: of these: ``held back`` is every fifth one, ``rest`` are the others.

        Raises:
            BuildError: a value is NaN or infinite, or an image cannot be decoded.
        """
        if size < 1 or (limit is not None and limit < 1):
            raise ValueError(f"size and limit must be at least 1, got {size} and {limit}")
        count = len(self)
        taken = min(count, limit or count)
        chosen = np.arange(taken, dtype=np.intp) * count // taken
        held_back = np.arange(taken) % _HOLD_BACK == _HOLD_BACK // 2
        if part != "all":
            chosen = chosen[held_back if part == "held back" else ~held_back]
        start = 0
        for file in self.files:
            stop = start + file.spec.count
            here = chosen[(chosen >= start) & (chosen < stop)] - start
            for padded, alike in self._by_length(file, here):
                for at in range(0, len(alike), size):
                    yield self._batch(file, alike[at : at + size], padded)
            start = stop

    def _by_length(
        self, file: SampleFile, index: npt.NDArray[np.intp]
    ) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
        """Samples of a file by what they are padded to, shortest first."""
        if file.lengths is None:
            yield 0, index
            return
        padded = np.asarray(file.lengths[index])
        if self.buckets:
            padded = np.asarray(self.buckets)[np.searchsorted(self.buckets, padded)]
        for length in np.unique(padded):
            yield int(length), index[padded == length]

    def _batch(self, file: SampleFile, index: npt.NDArray[np.intp], padded: int) -> SampleBatch:
        labels = file.labels[index] if self.labelled and file.labels is not None else None
        lengths = None if file.lengths is None else np.asarray(file.lengths[index])
        return SampleBatch(file.read(index), labels, lengths, padded)


@dataclass(frozen=True, eq=False)
class Dataset:
    """The checked samples of one model.

    Attributes:
        spec: dataset.toml.
        calibration: samples that ranges are found on.
        heldout: labelled samples that the engine is verified on.
        warnings: what is not wrong but should be looked at, a sentence each.
    """

    spec: DatasetSpec
    calibration: Split
    heldout: Split
    warnings: tuple[str, ...]

    @property
    def digest(self) -> str:
        """sha256 over the samples of both splits; names and descriptions do not count."""
        lines = [
            f"{split.name} {file.spec.sha256} {file.spec.labels_sha256} {file.spec.count}\n"
            for split in (self.calibration, self.heldout)
            for file in split.files
        ]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def load_dataset(folder: Path, inputs: Sequence[InputSpec]) -> Dataset:
    """Reads ``folder/dataset.toml``, and opens and checks its files.

    Args:
        folder: ``calib/<model>``.
        inputs: the recipe's inputs; samples must be of their names, datatypes and shapes.

    Raises:
        BuildError: dataset.toml or a file is missing or wrong, or the calibration split is too
            small.
    """
    spec = _read_spec(folder / "dataset.toml")
    variable = next((item for item in inputs if item.length is not None), None)
    buckets = variable.buckets if variable else ()
    # What lies behind a mask is nothing that the model computes with: its ranges are those of the
    # data alone. Without one the padding is data to the model, in calibration as in serving.
    masked = all(item.length is None or item.length.mask for item in inputs)
    calibration = Split(
        "calibration", _open(folder, spec.calibration, inputs), () if masked else buckets
    )
    heldout = Split("heldout", _open(folder, spec.heldout, inputs), buckets)
    if len(calibration) < FEWEST_CALIBRATION:
        raise BuildError(
            f"the calibration split has {len(calibration)} samples, at least {FEWEST_CALIBRATION} "
            f"are needed and {FEW_CALIBRATION} or more are wise; add samples to {folder}"
        )
    return Dataset(spec, calibration, heldout, _warnings(calibration, heldout))


def _open(folder: Path, part: SplitSpec, inputs: Sequence[InputSpec]) -> tuple[SampleFile, ...]:
    if part.samples is not None and part.count is not None:
        return (open_function(folder, part.samples, part.count, inputs),)
    return tuple(open_samples(folder, file, inputs) for file in part.files)


def _read_spec(path: Path) -> DatasetSpec:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise BuildError(
            f"no dataset for model {path.parent.name!r}: {path} does not exist; "
            "see calib/README.md for how to make one"
        ) from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as err:
        raise BuildError(f"{path} cannot be read as TOML: {err}") from err
    try:
        return DatasetSpec.model_validate(document)
    except ValidationError as err:
        raise BuildError(f"{path}: {explain(err)}") from err


def _warnings(calibration: Split, heldout: Split) -> tuple[str, ...]:
    found = []
    if len(calibration) < FEW_CALIBRATION:
        found.append(
            f"the calibration split has only {len(calibration)} samples; with fewer than "
            f"{FEW_CALIBRATION} the ranges may miss what the model meets later"
        )
    if not heldout.labelled:
        unlabelled = next(file.spec.path for file in heldout.files if file.labels is None)
        found.append(
            f"{unlabelled} of the held-out split has no labels, so the engine is only compared "
            "with the FP32 model and no accuracy is known; add them: an array 'labels' in an "
            ".npz, the field labels beside an .npy, labels.csv in a folder of images"
        )
    shared = {file.spec.sha256 for file in calibration.files} & {
        file.spec.sha256 for file in heldout.files
    }
    if shared:
        found.append(
            f"{len(shared)} files are in both splits, so the measured accuracy is not that on "
            "unseen samples; hold other samples out"
        )
    return tuple(found)


def model_inputs(
    batch: SampleBatch, inputs: Sequence[InputSpec], padded: int = 0
) -> dict[str, Array]:
    """Samples as requests carry them -> the model's inputs, by the code that serving uses.

    Args:
        batch: from `Split.batches`.
        inputs: the recipe's inputs.
        padded: length to pad to where that is variable; 0: the batch's own.

    Returns:
        ``[n, *model_shape]`` by input name, masks included, of the dtypes that the model takes.
    """
    ready = {
        spec.name: np.empty((len(batch), *spec.shape), spec.dtype)
        for spec in input_specs(inputs, padded or batch.padded)
    }
    for spec in inputs:
        rows = batch.inputs[spec.name]
        if spec.length is None or batch.lengths is None:
            stage(spec, rows, ready, 0)
            continue
        for at, length in enumerate(batch.lengths):
            here = np.moveaxis(rows[at : at + 1], spec.length.axis + 1, 1)[:, :length]
            stage(spec, np.moveaxis(here, 1, spec.length.axis + 1), ready, at, int(length))
    return ready
