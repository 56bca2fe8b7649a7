"""A model -> the graph of each precision: float, calibrated and quantized, with FP16 inside.

Each graph is made when it is first asked for: a build in FP32 does not calibrate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import onnx

from edged.build import fp16, onnx_graph, placement, quantize
from edged.build.build_run import BuildRun
from edged.build.calibrate import calibrate
from edged.build.dataset import model_inputs
from edged.build.identity import RANGES_FILE, calibration_sources
from edged.build.placement import Placement
from edged.build.plan import TypedGraphs
from edged.build.precision import Variant
from edged.build.ranges import Ranges, Sources, read_ranges, write_ranges
from edged.runners import Array
from edged.runners.onnx import FloatGraph

_BATCH = 16  # bounds what calibration holds of all activations at once
_PEAK_BATCH = 4  # here every activation is held, not just the quantized ones
_PEAK_SAMPLES = 64


@dataclass(frozen=True)
class Quantized:
    """The Q/DQ model and how it came about; no placement or ranges if the model brought its own."""

    model: bytes
    layers: tuple[str, ...]
    placement: Placement | None = None
    ranges: Ranges | None = None


class ModelGraphs:
    """The graphs of one build.

    Args:
        build: its sources.
        force: calibrate although nothing has changed.
    """

    def __init__(self, build: BuildRun, *, force: bool = False) -> None:
        self._build = build
        self._force = force

    def __repr__(self) -> str:
        return f"<ModelGraphs {self._build.recipe.name}>"

    def of(self, variant: Variant) -> tuple[TypedGraphs, dict[str, str]]:
        """The graphs of a variant, and the nodes that FP16 leaves in FP32 with the reason.

        Raises:
            BuildError: the sources are wrong, or the opset cannot be raised.
        """
        int8 = variant.precision == "int8"
        weak = self.quantized.model if int8 else self.single
        if not variant.half:
            return TypedGraphs(weak, weak), {}
        peaks = self._peaks
        with self._build.stage("fp16", "turning the graph into FP16", 0.54):
            half = fp16.to_half(onnx.load_from_string(weak), peaks)
        return TypedGraphs(half.model, weak), half.kept

    @cached_property
    def reference(self) -> bytes:
        """What engines are compared with: the model itself, without Q/DQ pairs it may have."""
        if onnx_graph.has_quantization(self._source):
            return quantize.without_pairs(self._source)
        return self._build.model

    @cached_property
    def single(self) -> bytes:
        """The FP32 graph with the recipe's shapes."""
        if onnx_graph.has_quantization(self._source):
            return self.reference
        return bytes(self._normalised.SerializeToString(deterministic=True))

    @cached_property
    def quantized(self) -> Quantized:
        """The Q/DQ graph; calibrates unless ranges.json holds.

        Raises:
            BuildError: the sources are wrong, or nothing can be quantized.
        """
        build, source = self._build, self._source
        own = onnx_graph.has_quantization(source)
        model = source if own else self._normalised
        with build.stage("place", "choosing the layers for INT8", 0.04):
            if own:
                return Quantized(build.model, placement.quantized_nodes(model))
            placed = placement.place(model, build.recipe.quantize)
        ranges = self._ranges(placed)
        with build.stage("quantize", f"quantizing {len(placed.layers)} layers", 0.5):
            data = quantize.quantize(model, placed, ranges.thresholds())
        return Quantized(data, tuple(layer.node for layer in placed.layers), placed, ranges)

    @cached_property
    def _source(self) -> onnx.ModelProto:
        with self._build.stage("read", "reading the model", 0.02):
            return onnx_graph.load_model(self._build.model)

    @cached_property
    def _normalised(self) -> onnx.ModelProto:
        shapes = {spec.name: spec.model_shape for spec in self._build.recipe.input}
        source = self._source
        with self._build.stage("read", "normalising the model", 0.03):
            return onnx_graph.normalise(source, shapes)

    def _ranges(self, placed: Placement) -> Ranges:
        build, path = self._build, self._build.calib / RANGES_FILE
        sources = calibration_sources(build.recipe, build.dataset)
        with build.stage("ranges", "comparing ranges.json with its sources", 0.05):
            known = None if self._force else read_ranges(path)
            why = ["there are none"]
            if known is not None:
                why = known.differences(sources, build.recipe.calibrate, placed.tensors)
                if not why:
                    return known
        with build.stage("calibrate", f"calibrating, known ranges: {', '.join(why)}", 0.06):
            ranges = self._calibrate(sorted(placed.tensors), sources)
            write_ranges(path, ranges)
        return ranges

    def _calibrate(self, tensors: list[str], sources: Sources) -> Ranges:
        options = self._build.recipe.calibrate
        names = {spec.name for spec in self._build.recipe.input}
        inner = [name for name in tensors if name not in names]
        graph = FloatGraph(onnx_graph.with_outputs(self._normalised, inner))
        return calibrate(
            lambda inputs: graph.run(inputs, inner),
            self._samples(_BATCH, options.samples, "calibrated", 0.06, 0.44),
            tensors,
            options,
            sources,
        )

    @cached_property
    def _peaks(self) -> dict[str, float]:
        """Largest magnitude of each activation: what FP16 must be able to hold."""
        model = onnx.load_from_string(self.single)
        names = fp16.activations(model)
        with self._build.stage("peaks", "finding the largest activations", 0.51):
            graph = FloatGraph(onnx_graph.with_outputs(model, names))
            return fp16.find_peaks(
                lambda inputs: graph.run(inputs, names),
                self._samples(_PEAK_BATCH, _PEAK_SAMPLES, "looked at", 0.51, 0.03),
            )

    def _samples(
        self, size: int, limit: int, verb: str, begin: float, width: float
    ) -> Iterator[dict[str, Array]]:
        """Batches of the calibration split, as the model takes them; tells how far it is."""
        split = self._build.dataset.calibration
        total, done = min(limit, len(split)), 0
        for batch in split.batches(size, limit):
            yield model_inputs(batch.inputs, self._build.recipe.input)
            done += len(batch)
            sentence = f"{verb} {done} of {total} samples"
            self._build.tell(sentence, begin + width * done / total)
