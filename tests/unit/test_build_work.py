"""What a graph computes and moves, and what a device can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.build.peaks import measure_peaks
from edged.build.target import Bench, onnx_target
from edged.build.work import LayerWork, intensity, linear_work, operators
from tests.doubles import onnx_models


def test_products_of_a_perceptron() -> None:
    """12 x 24, 24 x 24 and 24 x 3: two operations a weight and sample."""
    layers = linear_work(onnx_models.mlp().SerializeToString())
    assert [(layer.node, layer.operator) for layer in layers] == [
        ("first", "Gemm"), ("middle", "MatMul"), ("last", "Gemm"),
    ]  # fmt: skip
    assert [layer.weights for layer in layers] == [12 * 24, 24 * 24, 24 * 3]
    assert [layer.operations for layer in layers] == [2 * layer.weights for layer in layers]
    assert [layer.values for layer in layers] == [36, 48, 27]


def test_convolutions_multiply_each_output_by_its_window() -> None:
    """Operations are outputs x window x 2, whatever strides and groups are."""
    layers = linear_work(onnx_models.residual_net().SerializeToString())
    convolutions = [layer for layer in layers if layer.operator == "Conv"]
    assert convolutions
    for layer in convolutions:
        assert layer.operations % 2 == 0
        assert layer.operations > 2 * layer.weights  # the window visits many places


def test_a_model_without_linear_layers_has_no_work() -> None:
    """Nor an intensity."""
    assert linear_work(onnx_models.no_linear_layers().SerializeToString()) == []
    assert intensity([], 8, 4.0) == 0.0


def test_intensity_grows_with_the_batch_and_falls_with_the_bytes() -> None:
    """Weights are read once a batch; INT8 moves a quarter of what FP32 moves."""
    layer = LayerWork("a", "Gemm", operations=200, values=20, weights=100)
    assert intensity([layer], 1, 4.0) == pytest.approx(200 / (120 * 4))
    assert intensity([layer], 8, 4.0) == pytest.approx(1600 / (260 * 4))
    assert intensity([layer], 8, 1.0) == pytest.approx(4 * intensity([layer], 8, 4.0))


def test_operators_are_counted_the_most_frequent_first() -> None:
    """Of one kind each, by name."""
    found = operators(onnx_models.mlp().SerializeToString())
    assert found == {"Gemm": 2, "Relu": 2, "MatMul": 1}
    assert list(found) == ["Gemm", "Relu", "MatMul"]


def test_peaks_are_measured_through_the_runner(tmp_path: Path) -> None:
    """Small graphs here: what they give is above nothing and no device of this world."""
    bench = Bench(rows=64, columns=128, steps=(1, 17), wide=512, reads=(1, 9))
    peaks = measure_peaks(onnx_target(), tmp_path, bench)
    assert 1e6 < peaks.operations_s < 1e16
    assert 1e6 < peaks.bytes_s < 1e16
