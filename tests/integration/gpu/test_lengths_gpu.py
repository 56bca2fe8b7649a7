"""Variable lengths on a GPU: one plan with a profile for each length, served at all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edged.build.lengths import ByLength
from edged.build.pipeline import build_model
from edged.build_options import Precision
from edged.engine_store import EngineStore
from edged.errors import EngineRefusedError
from edged.runners import at_length, fingerprint, load, run_batch, warm_up
from tests.doubles.variable_folders import BUCKETS, MOST, answer, draw, variable

# Kernels are compiled at the first run of each size and length.
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_length_is_built_and_answered(tmp_path: Path, precision: Precision) -> None:
    """Each padded length runs in its profile, with its mask, as the graph says it should.

    A length in between has no profile and is refused; runners share the engine and close alone.
    """
    variable(tmp_path)
    engines = tmp_path / "engines"
    built = build_model(
        "toy", engines=engines, calib=tmp_path / "calib", runner="tensorrt", precision=precision
    )
    manifest = built.engine.manifest
    assert (manifest.runner, manifest.precision) == ("tensorrt", precision)
    assert set(manifest.shorter_latency_ms) == {str(length) for length in BUCKETS}
    graph = (tmp_path / "engines" / "toy" / "model.onnx").read_bytes()
    engine = EngineStore(engines).usable("toy", fingerprint("tensorrt", "cuda:0"))
    runners = ByLength(load(engine, device="cuda:0"), manifest)
    try:
        for length in (*BUCKETS, MOST):
            warm_up(runners.at(length), manifest.warm_sizes)
        samples = draw(3, 12)
        for sample in samples:
            length = next(each for each in (*BUCKETS, MOST) if each >= len(sample))
            padded = np.zeros((1, length, sample.shape[1]), np.float32)
            padded[0, : len(sample)] = sample
            mask = np.zeros((1, length), np.int64)
            mask[0, : len(sample)] = 1
            found = run_batch(runners.at(length), {"x": padded, "mask": mask}).outputs
            wanted = answer(graph, sample, "last_out")
            error = np.abs(found["last_out"][0] - wanted).max() / np.abs(wanted).max()
            assert error < (0.01 if precision == "fp32" else 0.2)
        with pytest.raises(EngineRefusedError, match="no optimization profile of the engine"):
            at_length(runners.largest, manifest.input, manifest.output, 5)
        runners.close_others()
        zeros = {
            spec.name: np.zeros((1, *spec.shape), spec.dtype) for spec in runners.largest.inputs
        }
        assert set(run_batch(runners.largest, zeros).outputs) == {"last_out", "each_out"}
    finally:
        runners.largest.close()
