"""ONNX Runtime's own `quantize_static`, over the grid of its options that matter."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from edged.runners.onnx import FloatGraph

Arrays = dict[str, npt.NDArray[Any]]

LINEAR = ["Conv", "Gemm", "MatMul"]


@dataclass(frozen=True)
class Setting:
    """One point of the grid.

    Attributes:
        method: MinMax, Percentile or Entropy.
        moving: moving average of the extremes, for MinMax.
        percentile: for Percentile.
        linear: only linear layers and not their outputs; else all that the tool knows.
        symmetric: INT8 with zero point 0; else UINT8 activations with a zero point.
        same_layers: only the layers that edged quantizes; else all.
    """

    method: str = "MinMax"
    moving: bool = False
    percentile: float = 99.999
    linear: bool = True
    symmetric: bool = True
    same_layers: bool = False

    @property
    def tensorrt(self) -> bool:
        """Whether TensorRT's parser takes the result."""
        return self.linear and self.symmetric


_METHODS = {
    "MinMax": Setting(),
    "moving average": Setting(moving=True),
    "Percentile 99.999": Setting("Percentile"),
    "Percentile 99.99": Setting("Percentile", percentile=99.99),
    "Entropy": Setting("Entropy"),
}
_SCOPES: dict[str, dict[str, bool]] = {
    "linear, symmetric": {},
    "linear, symmetric, edged's layers": {"same_layers": True},
    "all operators, asymmetric": {"linear": False, "symmetric": False},
}


def grid() -> dict[str, Setting]:
    """Label -> setting."""
    return {
        f"{method}; {scope}": Setting(**{**setting.__dict__, **changes})
        for method, setting in _METHODS.items()
        for scope, changes in _SCOPES.items()
    }


def quick_grid() -> dict[str, Setting]:
    """What TensorRT's parser takes, without the method that repeats another one's results."""
    return {
        name: item for name, item in grid().items() if item.tensorrt and item.method != "Entropy"
    }


def best(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The label with the highest mean SQNR of the outputs."""
    known = {label: row["mean_db"] for label, row in rows.items() if "mean_db" in row}
    return max(known, key=lambda label: known[label], default="none")


class _Reader:
    """Calibration samples, one at a time, as the tool asks for them."""

    def __init__(self, rows: Arrays) -> None:
        self._rows = rows
        self._at = 0

    def get_next(self) -> Arrays | None:
        """The next sample, a batch of one."""
        if self._at >= len(next(iter(self._rows.values()))):
            return None
        here = slice(self._at, self._at + 1)
        self._at += 1
        return {name: values[here] for name, values in self._rows.items()}


def quantize(model: bytes, rows: Arrays, setting: Setting, layers: set[str]) -> bytes | None:
    """Runs `quantize_static` on a float model; None if it fails or its result does not load.

    Args:
        model: the normalised float model, serialized: at least as good a start as the tool's own
            preparation, which is not run.
        rows: calibration samples by input name.
        setting: its options.
        layers: names of the layers that edged quantizes.
    """
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    logging.getLogger().setLevel(logging.ERROR)
    loaded = onnx.load_from_string(model)
    others = [n.name for n in loaded.graph.node if n.op_type in LINEAR and n.name not in layers]
    products = [
        n.name for n in loaded.graph.node
        if n.op_type == "MatMul" and n.input[1] not in {i.name for i in loaded.graph.initializer}
    ]  # fmt: skip
    extra: dict[str, Any] = {
        "ActivationSymmetric": setting.symmetric,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "AddQDQPairToWeight": True,
        "CalibMovingAverage": setting.moving,
        "CalibPercentile": setting.percentile,
    }
    if setting.linear:
        extra["OpTypesToExcludeOutputQuantization"] = LINEAR
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"
        source.write_bytes(model)
        try:
            quantize_static(
                str(source),
                str(target),
                _Reader(rows),  # type: ignore[arg-type,unused-ignore]  # the interface is what counts
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QInt8 if setting.symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=LINEAR if setting.linear else None,
                nodes_to_exclude=others if setting.same_layers else products * setting.linear,
                calibrate_method=getattr(CalibrationMethod, setting.method),
                extra_options=extra,
            )
            data = target.read_bytes()
            FloatGraph(data)
        except Exception as err:
            # The other tool's failures have no common base, and are a result like any other.
            sys.stdout.write(f"{setting}: {type(err).__name__}: {err}\n")
            return None
        return data
