"""``engines/<model>/recipe.toml`` -> `Recipe`: what a model takes, gives, and has to keep.

A recipe is read by the build line only; what serving needs of it travels in the manifest of the
engine that was built. docs/engines.md describes every field and a test compares the two.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from edged.build_options import (
    CalibrateOptions,
    EngineOptions,
    QuantizeOptions,
    VerifyOptions,
)
from edged.errors import ConfigError
from edged.postprocess import Options, OutputForm, Postprocessor, prepare
from edged.postprocess.options import LISTS
from edged.settings_section import Section

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Also what a model may be called in a topic.
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64",
]  # fmt: skip
"""Fixed-size datatypes of the Open Inference Protocol V2."""


class ModelInfo(Section):
    """``[model]``: which file, and where it comes from."""

    description: str = ""
    file: str = "model.onnx"
    """ONNX file beside the recipe."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Digest of that file; a build refuses another one."""
    source: str = ""
    """Where the file comes from: a script beside it, or an address."""
    license: str = ""
    reshape: bool = False
    """Whether the recipe's shapes and a free batch axis replace those that the file declares."""


class LengthSpec(Section):
    """``[input.length]``: marks one axis of an input whose length differs between requests.

    The entry of ``shape`` at this axis is the largest length, ``max_length``.
    """

    axis: Annotated[int, Field(ge=0)] = 0
    """Axis of the sample, the batch axis not counted."""
    buckets: tuple[int, ...] = ()
    """Lengths that batches are padded to, besides max_length; empty: 1/2, 1/4 and 1/8 of it."""
    pad: float = 0.0
    """What the model's input is filled up with."""
    mask: str = ""
    """An input of the model, ``[batch, length]``, that is 1 where there is data; "": none."""
    mask_datatype: Datatype = "INT64"


class InputSpec(Section):
    """``[[input]]``: one input as a request carries it, and how it becomes the model's.

    ``model input = (sample * scale + offset)`` as float32, then transposed. scale and offset are
    one number, or one for each entry of the sample's last axis (channels).
    """

    name: str
    datatype: Datatype
    shape: Annotated[tuple[int, ...], Field(max_length=8)]
    """One sample as a request carries it, without the batch axis; every entry >= 1."""
    image: Literal["none", "L", "RGB"] = "none"
    """Pixel mode, when a PNG or JPEG may be sent instead: shape is then height, width, channels."""
    fit: Literal["stretch", "letterbox"] = "stretch"
    """How an image of another size becomes this one: stretched, or with its aspect ratio kept."""
    fill: Annotated[int, Field(ge=0, le=255)] = 114
    """Grey beside an image whose aspect ratio is kept."""
    scale: tuple[float, ...] | None = None
    """None with offset None: the sample goes into the model as it is."""
    offset: tuple[float, ...] | None = None
    transpose: tuple[int, ...] | None = None
    """Axis order of the model's sample, e.g. ``[2, 0, 1]`` for HWC to CHW."""
    length: LengthSpec | None = None
    """None: all samples have this shape."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Left out where they say nothing, so that digests over an input stay what they were."""
        document: dict[str, Any] = handler(self)
        if self.length is None:
            document.pop("length", None)
        if self.fit == "stretch":
            document.pop("fit", None)
            document.pop("fill", None)
        return document

    @field_validator("scale", "offset", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (int, float)) else value

    @model_validator(mode="after")
    def _consistent(self) -> InputSpec:
        if any(n < 1 for n in self.shape):
            raise ValueError(
                f"shape {list(self.shape)} has an entry below 1; leave the batch axis out"
            )
        channels = self.shape[-1] if self.shape else 1
        for name, values in (("scale", self.scale), ("offset", self.offset)):
            if values is not None and len(values) not in {1, channels}:
                raise ValueError(
                    f"{name} has {len(values)} entries, but must have 1 or {channels} (last axis)"
                )
        if self.transpose is not None and sorted(self.transpose) != list(range(len(self.shape))):
            raise ValueError(
                f"transpose {list(self.transpose)} is no order of the {len(self.shape)} sample axes"
            )
        if self.fit != "stretch" and self.image == "none":
            raise ValueError(f'fit = "{self.fit}" is for images: set image = "L" or "RGB"')
        wanted = {"L": 1, "RGB": 3}.get(self.image)
        if wanted and (len(self.shape) != 3 or channels != wanted or self.datatype != "UINT8"):
            raise ValueError(
                f'image = "{self.image}" needs datatype UINT8 and shape [height, width, {wanted}], '
                f"not {self.datatype} {list(self.shape)}"
            )
        return self

    @model_validator(mode="after")
    def _length_fits(self) -> InputSpec:
        if self.length is None:
            return self
        axis, last = self.length.axis, len(self.shape) - 1
        if axis > last or self.image != "none":
            raise ValueError(f"length needs an axis of shape {list(self.shape)}, and no image")
        if any(not 1 <= n <= self.shape[axis] for n in self.length.buckets):
            raise ValueError(
                f"length.buckets {list(self.length.buckets)} must lie within 1 and max_length "
                f"{self.shape[axis]} (shape's entry at axis {axis})"
            )
        if axis == last and max(len(self.scale or ()), len(self.offset or ())) > 1:
            raise ValueError("scale and offset cannot differ along the axis of variable length")
        return self

    @property
    def max_length(self) -> int:
        """Largest length, 0 where it is fixed."""
        return self.shape[self.length.axis] if self.length else 0

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths that samples are padded to, ascending; none where the length is fixed."""
        if self.length is None:
            return ()
        most = self.max_length
        chosen = set(self.length.buckets) or {most // 8, most // 4, most // 2}
        return tuple(sorted((chosen | {most}) - {0}))

    def bucket(self, length: int) -> int:
        """The smallest bucket that holds a length of 1 to `max_length`."""
        return next(bucket for bucket in self.buckets if bucket >= length)

    @property
    def model_axis(self) -> int:
        """Axis of variable length of the model's sample, without the batch axis; -1: none."""
        if self.length is None:
            return -1
        return (
            self.length.axis if self.transpose is None else self.transpose.index(self.length.axis)
        )

    @property
    def letterbox(self) -> int | None:
        """Grey beside an image, None where images are stretched."""
        return self.fill if self.fit == "letterbox" else None

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample as a request carries it."""
        return math.prod(self.shape) * DTYPES[self.datatype].itemsize

    @property
    def preprocessed(self) -> bool:
        """Whether the model's input differs from what a request carries."""
        return self.scale is not None or self.offset is not None or self.transpose is not None

    @property
    def model_shape(self) -> tuple[int, ...]:
        """One sample as the model takes it."""
        if self.transpose is None:
            return self.shape
        return tuple(self.shape[axis] for axis in self.transpose)

    @property
    def model_datatype(self) -> Datatype:
        """What the model takes: FP32 once a scale or an offset is applied."""
        return self.datatype if self.scale is None and self.offset is None else "FP32"


DTYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_), "UINT8": np.dtype("<u1"), "INT8": np.dtype("<i1"),
    "UINT16": np.dtype("<u2"), "INT16": np.dtype("<i2"), "FP16": np.dtype("<f2"),
    "UINT32": np.dtype("<u4"), "INT32": np.dtype("<i4"), "FP32": np.dtype("<f4"),
    "UINT64": np.dtype("<u8"), "INT64": np.dtype("<i8"), "FP64": np.dtype("<f8"),
}  # fmt: skip
"""numpy dtypes of `Datatype`."""


class OutputSpec(Section):
    """``[[output]]``: one output of the model, and what its entries are called."""

    name: str
    datatype: Datatype = "FP32"
    shape: tuple[int, ...]
    """One sample, without the batch axis."""
    labels: tuple[str, ...] = ()
    """Names of the entries of the last axis, or none."""
    length_axis: Annotated[int, Field(ge=0)] | None = None
    """Axis of the sample that has the inputs' variable length; its padding is cut off."""

    @model_validator(mode="after")
    def _length_axis_fits(self) -> OutputSpec:
        if self.length_axis is not None and (
            self.length_axis >= len(self.shape)
            or (self.labels and self.length_axis == len(self.shape) - 1)
        ):
            raise ValueError(
                f"length_axis {self.length_axis} must be an axis of {list(self.shape)} that has no "
                "labels"
            )
        return self

    @model_validator(mode="after")
    def _labels_fit(self) -> OutputSpec:
        if self.labels and (not self.shape or len(self.labels) != self.shape[-1]):
            raise ValueError(
                f"{len(self.labels)} labels for output shape {list(self.shape)}: "
                "give one for each entry of the last axis, or none"
            )
        return self


class Recipe(Section):
    """A whole recipe; ``name`` and ``folder`` come from where it lies."""

    name: Annotated[str, Field(pattern=MODEL_NAME)]
    folder: Path
    model: ModelInfo
    input: Annotated[tuple[InputSpec, ...], Field(min_length=1)]
    output: Annotated[tuple[OutputSpec, ...], Field(min_length=1)]
    engine: EngineOptions = EngineOptions()
    calibrate: CalibrateOptions = CalibrateOptions()
    quantize: QuantizeOptions = QuantizeOptions()
    verify: VerifyOptions = VerifyOptions()
    postprocess: Options | None = None
    """What is made of the outputs before they are answered; None: they are answered as they are."""

    @model_validator(mode="after")
    def _postprocess_fits(self) -> Recipe:
        postprocessor(self.postprocess, self.input, self.output)
        return self

    @model_validator(mode="after")
    def _one_image(self) -> Recipe:
        if any(spec.image != "none" for spec in self.input) and len(self.input) > 1:
            raise ValueError("image is for models with a single input")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        lengths = {(spec.max_length, spec.buckets) for spec in self.input if spec.length}
        if len(lengths) > 1:
            raise ValueError("inputs of variable length must have one max_length and its buckets")
        most = next(iter(lengths))[0] if lengths else 0
        for spec in self.output:
            if spec.length_axis is not None and spec.shape[spec.length_axis] != most:
                raise ValueError(
                    f"output {spec.name!r} has {spec.shape[spec.length_axis]} at its length_axis, "
                    f"the inputs' max_length is {most}"
                )
        return self

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths that samples are padded to, ascending; none where the length is fixed."""
        return next((spec.buckets for spec in self.input if spec.length), ())

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.folder / self.model.file


def postprocessor(
    options: Options | None, inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec]
) -> Postprocessor | None:
    """What runs a declaration; None where there is none.

    Raises:
        ValueError: it does not fit the model's outputs.
    """
    if options is None:
        return None
    forms = {spec.name: OutputForm(spec.shape, spec.labels, spec.length_axis) for spec in outputs}
    image = next((spec.shape for spec in inputs if spec.image != "none"), None)
    try:
        return prepare(options, forms, None if image is None else (image[0], image[1]))
    except ValueError as err:
        raise ValueError(f"postprocess: {err}") from err


def load_recipe(folder: Path) -> Recipe:
    """Reads ``folder/recipe.toml``; the folder's name is the model's.

    Raises:
        ConfigError: no such file, no TOML, or a field that is wrong; the message lists each.
    """
    path = folder / "recipe.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ConfigError(
            f"no recipe for model {folder.name!r}: {path} does not exist; "
            "see docs/engines.md for how to add a model"
        ) from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path} is not valid TOML: {err}") from err
    _read_lists(document, folder)
    try:
        return Recipe.model_validate({**document, "name": folder.name, "folder": folder})
    except ValidationError as err:
        raise ConfigError(f"{path}: {explain(err)}") from err


def _read_lists(document: dict[str, Any], folder: Path) -> None:
    """Puts the lines of files that ``[postprocess]`` names where lists are.

    Raises:
        ConfigError: a file cannot be read, or the list is there as well.
    """
    table = document.get("postprocess")
    if not isinstance(table, dict):
        return
    for field, wanted in LISTS.items():
        name = table.get(field)
        if not isinstance(name, str) or not name:
            continue
        if table.get(wanted):
            raise ConfigError(
                f"{folder / 'recipe.toml'}: postprocess has {wanted} and {field}; give one of them"
            )
        try:
            text = (folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as err:
            raise ConfigError(
                f"{folder / 'recipe.toml'}: postprocess.{field} {str(folder / name)!r} cannot be "
                f"read ({getattr(err, 'strerror', 'no UTF-8')}); it must have a line for each entry"
            ) from err
        # By line feeds only: dictionaries of recognisers hold other line separators as characters.
        table[wanted] = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def explain(err: ValidationError) -> str:
    """One line for each wrong field: where, what was allowed, which value was given."""
    lines = []
    for item in err.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"]) or "(document)"
        given = "" if item["type"] == "missing" else f", not {item.get('input')!r}"[:200]
        lines.append(f"{where}: {item['msg']}{given}")
    return "; ".join(lines)
