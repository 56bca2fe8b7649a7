"""Samples that a Python function makes: ``samples = "module:function"`` in dataset.toml.

Run by the build only, once: what it yields is kept in ``.npy`` files under ``.samples`` beside
dataset.toml and mapped from there, until the module's source or the number of samples changes.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from edged.build.dataset_files import LABELS, SampleFile, SampleFileSpec, file_digest
from edged.errors import BuildError
from edged.recipe import DTYPES, InputSpec

Array = npt.NDArray[np.generic]

ENTRY_POINT = r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$"
KEPT = ".samples"
"""Folder beside dataset.toml for what functions made."""


def open_function(folder: Path, entry: str, count: int, inputs: Sequence[InputSpec]) -> SampleFile:
    """Runs a function for its samples, unless what it made is still there.

    The function takes no arguments and yields mappings: by input name one sample, ``[*shape]`` as a
    request carries it, and under ``labels`` its class index, for all samples or for none.

    Args:
        folder: ``calib/<model>``; a module is looked for there, then among the installed ones.
        entry: ``module:function``.
        count: samples to take.
        inputs: the recipe's.

    Raises:
        BuildError: no such module or function, it fails, ends early, or yields what the recipe's
            inputs do not take.
    """
    module, function = entry.split(":")
    source = _source(folder, module)
    described = [file_digest(source), entry, str(count), *(repr(item) for item in inputs)]
    digest = hashlib.sha256("\n".join(described).encode()).hexdigest()
    kept = folder / KEPT / digest[:16]
    if not kept.is_dir():
        _make(kept, _samples(_load(source, module), entry, function), entry, count, inputs)
    arrays = {item.name: np.load(kept / f"{at}.npy", mmap_mode="r")
              for at, item in enumerate(inputs)}  # fmt: skip
    labels = kept / f"{LABELS}.npy"
    spec = SampleFileSpec(path=entry, sha256=digest, count=count)
    return SampleFile(spec, arrays, np.load(labels) if labels.is_file() else None)


def _source(folder: Path, module: str) -> Path:
    beside = folder.joinpath(*module.split(".")).with_suffix(".py")
    if beside.is_file():
        return beside
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise BuildError(
            f"samples names the module {module!r}, but {beside.name} does not lie beside "
            "dataset.toml and no such module is installed; put it there, or correct the name"
        )
    return Path(found.origin)


def _load(source: Path, module: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"edged_samples_{module}", source)
    if spec is None or spec.loader is None:
        raise BuildError(f"{source.name} cannot be loaded as a Python module; is it a .py file?")
    loaded = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(loaded)
    except Exception as err:
        # Whatever the module raises: it is the dataset's own code that is wrong.
        raise BuildError(f"{source.name} fails: {type(err).__name__}: {err}; mend it") from err
    return loaded


def _samples(module: ModuleType, entry: str, function: str) -> Iterator[Any]:
    made = getattr(module, function, None)
    if not callable(made):
        raise BuildError(f"samples = {entry!r}: the module has no function {function!r}; add it")
    try:
        yield from made()
    except BuildError:
        raise
    except Exception as err:
        raise BuildError(f"samples = {entry!r} fails: {type(err).__name__}: {err}") from err


def _make(
    kept: Path, samples: Iterator[Any], entry: str, count: int, inputs: Sequence[InputSpec]
) -> None:
    """Writes the samples beside their place, and puts them there whole."""
    try:
        kept.parent.mkdir(exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".making.", dir=kept.parent))
    except OSError as err:
        raise BuildError(
            f"what samples = {entry!r} makes cannot be kept: {err.strerror or err}; make the "
            "calibration folder writable for the user that builds"
        ) from err
    try:
        _write(work, samples, entry, count, inputs)
        work.replace(kept)
    except OSError as err:
        raise BuildError(f"samples = {entry!r} cannot be written: {err.strerror or err}") from err
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(
    work: Path, samples: Iterator[Any], entry: str, count: int, inputs: Sequence[InputSpec]
) -> None:
    maps = [
        np.lib.format.open_memmap(
            work / f"{at}.npy", "w+", DTYPES[item.datatype], (count, *item.shape)
        )
        for at, item in enumerate(inputs)
    ]
    labels = []
    for at in range(count):
        sample = next(samples, None)
        if sample is None:
            raise BuildError(
                f"samples = {entry!r} ended after {at} samples, dataset.toml asks for {count}; "
                "yield more, or lower count"
            )
        for item, rows in zip(inputs, maps, strict=True):
            rows[at] = _checked(sample, item, entry, at)
        if LABELS in sample and all(item.name != LABELS for item in inputs):
            labels.append(int(sample[LABELS]))
    for rows in maps:
        rows.flush()
    if labels and len(labels) != count:
        raise BuildError(
            f"samples = {entry!r} gives {len(labels)} labels for {count} samples; label all or none"
        )
    if labels:
        np.save(work / f"{LABELS}.npy", np.array(labels, np.int64))


def _checked(sample: Any, item: InputSpec, entry: str, at: int) -> Array:
    if not isinstance(sample, Mapping) or item.name not in sample:
        raise BuildError(
            f"sample {at} of samples = {entry!r} does not give input {item.name!r}; yield a "
            "mapping from input names to arrays"
        )
    value = np.asarray(sample[item.name])
    wanted = DTYPES[item.datatype]
    if value.dtype != wanted or value.shape != item.shape:
        raise BuildError(
            f"sample {at} of samples = {entry!r}: input {item.name!r} is {value.dtype} "
            f"{list(value.shape)}, the recipe wants {wanted} {list(item.shape)}"
        )
    return value
