"""A model -> the graph of each precision: float, calibrated and quantized, with FP16 inside.

Each graph is made when it is first asked for: a build in FP32 does not calibrate.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import onnx

from edged.build import fp16, onnx_graph, placement, quantize
from edged.build.batch_axis import check_batch_axis
from edged.build.build_run import BuildRun
from edged.build.dataset import model_inputs
from edged.build.histogram import Histogram
from edged.build.identity import (
    HALF_VERSION,
    NORMALISER_VERSION,
    QUANTIZER_VERSION,
    calibration_sources,
    sha256,
)
from edged.build.int8 import Int8Line
from edged.build.normalise import SampleShape, normalise
from edged.build.placement import Placement
from edged.build.plan import TypedGraphs
from edged.build.precision import Variant
from edged.build.ranges import Ranges
from edged.build.sensitivity import LayerCost
from edged.build.stages import Stages
from edged.errors import BuildError
from edged.recipe import Recipe
from edged.runners import Array, input_specs
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
    costs: tuple[LayerCost, ...] = ()
    histograms: Callable[[], Mapping[str, Histogram]] = dict
    """What calibration saw, by tensor; may have to run the samples for it."""


class ModelGraphs:
    """The graphs of one build.

    Args:
        build: its sources.
        stages: graphs that an earlier build finished.
        force: calibrate although nothing has changed.
    """

    def __init__(self, build: BuildRun, stages: Stages, *, force: bool = False) -> None:
        self._build = build
        self._stages = stages
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
        return self._half(variant, weak)

    def _half(self, variant: Variant, weak: bytes) -> tuple[TypedGraphs, dict[str, str]]:
        stage = f"fp16-{variant.precision}" + ("-wide" if variant.wide else "")
        kept: dict[str, str] = {}

        def make() -> bytes:
            peaks = self._peaks
            with self._build.stage("fp16", "turning the graph into FP16", 0.54):
                half = fp16.to_half(onnx.load_from_string(weak), peaks, wide=variant.wide)
            kept.update(half.kept)
            return half.model

        sources = calibration_sources(self._build.recipe, self._build.dataset)
        inputs: dict[str, Any] = {
            "graph": sha256(weak),
            "calibration": sources.model_dump(),
            "version": HALF_VERSION,
            "wide": variant.wide,
        }
        model = self._stages.get(stage, inputs, make)
        document = self._stages.get(f"{stage}-kept", inputs, lambda: json.dumps(kept).encode())
        return TypedGraphs(model, weak), dict(json.loads(document))

    @cached_property
    def reference(self) -> bytes:
        """What engines are compared with: the model itself, without Q/DQ pairs it may have."""
        if onnx_graph.has_quantization(self._source):
            return quantize.without_pairs(self._source)
        # The file's own shapes may be others than those that the recipe gives it.
        return self.single if self._build.recipe.model.reshape else self._build.model

    @cached_property
    def single(self) -> bytes:
        """The FP32 graph with the recipe's shapes."""
        if onnx_graph.has_quantization(self._source):
            return self.reference
        return self._normal_form

    @cached_property
    def quantized(self) -> Quantized:
        """The Q/DQ graph; calibrates unless ranges.json holds.

        Raises:
            BuildError: the sources are wrong, or nothing can be quantized.
        """
        build, source = self._build, self._source
        own = onnx_graph.has_quantization(source)
        model = source if own else self._normalised
        if own:
            with build.stage("place", "looking at the model's own Q/DQ nodes", 0.04):
                return Quantized(build.model, placement.quantized_nodes(model))
        line = Int8Line(build, model, force=self._force)
        choice = line.choose()
        placed, ranges = choice.placement, choice.ranges
        data = self._stages.get(
            "quantized",
            {
                "normalised": sha256(self.single),
                "placement": sha256(repr(_plain(asdict(placed))).encode()),
                "options": build.recipe.quantize.model_dump(mode="json"),
                "calibration": ranges.sources.model_dump(),
                "method": ranges.method,
                "thresholds": sha256(json.dumps(ranges.thresholds(), sort_keys=True).encode()),
                "quantizer": QUANTIZER_VERSION,
            },
            lambda: line.quantize(choice),
        )
        layers = tuple(layer.node for layer in placed.layers)
        return Quantized(data, layers, placed, ranges, choice.costs, partial(line.seen, placed))

    def scan(self) -> tuple[LayerCost, ...]:
        """The layers that would be INT8, the one that costs the most accuracy first.

        Raises:
            BuildError: the sources are wrong, or the model brings its own Q/DQ nodes.
        """
        if onnx_graph.has_quantization(self._source):
            raise BuildError(
                "the model brings its own Q/DQ nodes, which are taken as they are; give the float "
                "model to have its layers ranked"
            )
        line = Int8Line(self._build, self._normalised, force=self._force)
        return line.scan(line.choose())

    @cached_property
    def _source(self) -> onnx.ModelProto:
        with self._build.stage("read", "reading the model", 0.02):
            return onnx_graph.load_model(self._build.model)

    @cached_property
    def _normalised(self) -> onnx.ModelProto:
        return onnx.load_from_string(self._normal_form)

    @cached_property
    def _normal_form(self) -> bytes:
        recipe = self._build.recipe
        shapes = _shapes(recipe)

        def make() -> bytes:
            source = self._source
            with self._build.stage("read", "normalising the model", 0.03):
                model = normalise(source, shapes, reshape=recipe.model.reshape)
                data = bytes(model.SerializeToString(deterministic=True))
                self._check_batch_axis(data)
            return data

        inputs = {
            "model": recipe.model.sha256,
            "reshape": recipe.model.reshape,
            "version": NORMALISER_VERSION,
        }
        return self._stages.get("normalised", {**inputs, "shapes": _plain(shapes)}, make)

    def _check_batch_axis(self, model: bytes) -> None:
        recipe = self._build.recipe
        names = [spec.name for spec in recipe.output]
        graph = FloatGraph(model)
        # Of whatever lengths the first two are: both are padded to the largest one.
        split = replace(self._build.dataset.calibration, buckets=recipe.buckets[-1:])
        batch = next(iter(split.batches(2)))
        if len(batch) == 2:
            pair = model_inputs(batch, recipe.input)
            check_batch_axis(lambda inputs: graph.run(inputs, names), pair)

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
            yield model_inputs(batch, self._build.recipe.input)
            done += len(batch)
            sentence = f"{verb} {done} of {total} samples"
            self._build.tell(sentence, begin + width * done / total)


def _shapes(recipe: Recipe) -> dict[str, SampleShape]:
    """Of one sample as the model takes it, by input, masks included."""
    variable = {spec.name: spec.model_axis for spec in recipe.input if spec.length is not None}
    known = {spec.name for spec in recipe.input}
    shapes: dict[str, SampleShape] = {}
    for spec in input_specs(recipe.input):
        axis = variable.get(spec.name, -1 if spec.name in known else 0)
        shapes[spec.name] = tuple(
            onnx_graph.LENGTH if at == axis else size for at, size in enumerate(spec.shape)
        )
    return shapes


def _plain(value: Any) -> Any:
    """The same value in an order that does not depend on the run: sets are sorted."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in sorted(value.items())}
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item) for item in value), key=repr)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
