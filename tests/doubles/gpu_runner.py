"""A TensorRT runner of the benches' networks on the first GPU, and what it must compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edged.runners import TensorSpec
from tests.bench.gpu_networks import CLASSES, MEDIUM, SMALL, network_onnx

ROOT = Path(__file__).resolve().parents[2]
FLOAT = np.dtype(np.float32)
SAMPLE = (SMALL.tokens, SMALL.width)
INPUT, OUTPUT = TensorSpec("x", FLOAT, SAMPLE), TensorSpec("y", FLOAT, (CLASSES,))
SIZES = (1, 2, 4, 8)


def make(plan: bytes, **options: Any) -> Any:
    """A runner on the first GPU."""
    from edged.runners.tensorrt import TensorRTRunner

    return TensorRTRunner(plan, [INPUT], [OUTPUT], 8, sizes=SIZES, **options)


def make_medium(plan: bytes) -> Any:
    """The medium network on the first GPU."""
    from edged.runners.tensorrt import TensorRTRunner

    sample = TensorSpec("x", FLOAT, (MEDIUM.tokens, MEDIUM.width))
    return TensorRTRunner(plan, [sample], [OUTPUT], 8, sizes=SIZES)


def reference(rows: Any) -> Any:
    """ONNX Runtime's answer."""
    from edged.runners.onnx import FloatGraph

    return FloatGraph(network_onnx(SMALL, half=False)).run({"x": rows})["y"]


def captures() -> bool:
    """Whether graphs can be captured: TensorRT-RTX denies it of engines that may allocate."""
    from edged.runners.tensorrt_engine import import_tensorrt

    return not hasattr(import_tensorrt().IExecutionContext, "is_stream_capturable")


def batch(size: int, seed: int = 0) -> Any:
    """Random rows."""
    return np.random.default_rng(seed).standard_normal((size, *SAMPLE)).astype(np.float32)


def assert_close(found: Any, wanted: Any) -> None:
    """TensorRT uses TF32 for FP32 products: ten bits of mantissa."""
    assert np.abs(found - wanted).max() <= 5e-3 * np.abs(wanted).max()
