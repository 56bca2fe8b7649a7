"""``calib/<model>/dataset.toml`` -> checked samples.

dataset.toml says where the samples come from, how the splits were made, and which files each split
has, with their digests. calib/README.md shows its fields.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edged.build.dataset_files import Array, Labels, SampleFile, SampleFileSpec, open_samples
from edged.build.sample_function import ENTRY_POINT, open_function
from edged.errors import BuildError
from edged.preprocess import into
from edged.recipe import DTYPES, InputSpec, explain

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
    """

    inputs: Mapping[str, Array]
    labels: Labels | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True, eq=False)
class Split:
    """One split: its samples in the order of its files.

    Attributes:
        name: ``calibration`` or ``heldout``.
        files: its opened sample files.
    """

    name: str
    files: tuple[SampleFile, ...]

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
        """Streams the samples; no batch spans two files.

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
            for at in range(0, len(here), size):
                index = here[at : at + size]
                labels = file.labels[index] if self.labelled and file.labels is not None else None
                yield SampleBatch(file.read(index), labels)
            start = stop


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
    splits = [
        Split(name, _open(folder, part, inputs))
        for name, part in (("calibration", spec.calibration), ("heldout", spec.heldout))
    ]
    calibration, heldout = splits
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


def model_inputs(batch: Mapping[str, Array], inputs: Sequence[InputSpec]) -> dict[str, Array]:
    """Samples as requests carry them -> the model's inputs, by the code that serving uses.

    Args:
        batch: ``[n, *shape]`` by input name.
        inputs: the recipe's inputs.

    Returns:
        ``[n, *model_shape]`` by input name, of the dtypes that the model takes.
    """
    ready: dict[str, Array] = {}
    for spec in inputs:
        rows = batch[spec.name]
        out = np.empty((len(rows), *spec.model_shape), DTYPES[spec.model_datatype])
        into(rows, out, scale=spec.scale, offset=spec.offset, transpose=spec.transpose)
        ready[spec.name] = out
    return ready
