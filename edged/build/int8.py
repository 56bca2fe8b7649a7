"""A normalised model and samples -> the layers that become INT8, their ranges, the Q/DQ graph.

place -> collect -> settle (ranges.json) -> leave out what INT8 cannot hold
      -> leave out what costs more than the accuracy budget -> correct biases -> quantize
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import onnx

from edged.build import bias_correction, equalise, placement, quantize
from edged.build.build_run import BuildRun
from edged.build.calibrate import Collected, collect, settle
from edged.build.dataset import Part, model_inputs
from edged.build.histogram import Histogram
from edged.build.holdout import Holdout, Score
from edged.build.identity import RANGES_FILE, calibration_sources
from edged.build.observe import with_observers
from edged.build.placement import Placement
from edged.build.quantize import WeightMethod
from edged.build.ranges import Ranges, TensorRange, read_ranges, write_ranges
from edged.build.sensitivity import LayerCost, ScanState, fit, scan
from edged.build_options import QuantizeOptions
from edged.engine_store import BUILT
from edged.runners import Array, input_specs
from edged.runners.onnx import FloatGraph

STATE_FILE = ".sensitivity.json"

_BATCH = 8  # bounds what calibration holds of the activations at once
_BIAS_SAMPLES = 64  # a mean over samples and positions: more change nothing
_EQUALISE_SAMPLES = 64
_METHOD_SAMPLES = 128  # that `auto` scores methods on
_MOST_LOST = 0.9
_LEAST_SQNR_DB = 10.0


@dataclass(frozen=True)
class Int8Choice:
    """What becomes INT8.

    Attributes:
        placement: the layers, and why the others stay in float.
        ranges: of their activations.
        costs: layers by what they cost, where a scan was made; the costliest first.
    """

    placement: Placement
    ranges: Ranges
    costs: tuple[LayerCost, ...] = ()


class Int8Line:
    """The INT8 part of one build.

    Args:
        build: its sources.
        model: the normalised float model.
        force: calibrate although ranges.json holds.
    """

    def __init__(self, build: BuildRun, model: onnx.ModelProto, *, force: bool = False) -> None:
        self._build = build
        self._model = model
        self._force = force
        self.histograms: Mapping[str, Histogram] = {}
        """What calibration saw, by tensor; empty where ranges.json was taken as it is."""

    def __repr__(self) -> str:
        return f"<Int8Line {self._build.recipe.name}>"

    @property
    def _options(self) -> QuantizeOptions:
        return self._build.recipe.quantize

    def choose(self) -> Int8Choice:
        """Places, calibrates, and leaves out what INT8 cannot hold.

        Raises:
            BuildError: the sources are wrong, nothing can be quantized, or the budget cannot hold.
        """
        with self._build.stage("place", "choosing the layers for INT8", 0.04):
            placed = placement.place(self._model, self._options)
        if self._options.equalise:
            with self._build.stage("equalise", "equalising channels", 0.05):
                self._equalise(placed)
            # Weights have other names now.
            placed = placement.place(self._model, self._options)
        ranges = self._ranges(placed)
        unfit = unfit_layers(placed, ranges)
        if unfit:
            with self._build.stage("place", f"{len(unfit)} layers stay in float", 0.44):
                placed = placement.place(self._model, self._options, unfit)
        if self._options.accuracy_budget is None:
            return Int8Choice(placed, ranges)
        return self._within_budget(Int8Choice(placed, ranges), self._options.accuracy_budget)

    def quantize(self, choice: Int8Choice) -> bytes:
        """The Q/DQ graph of a choice.

        Its biases are corrected and the scales of its weights chosen as the recipe says; of several
        forms the one that is best on the samples that were held back.
        """
        wanted = self._options.weights
        methods: tuple[WeightMethod, ...] = ("mse", "minmax") if wanted == "auto" else (wanted,)
        placed, thresholds = choice.placement, choice.ranges.thresholds()
        made: dict[str, bytes] = {}
        for method in methods:
            with self._build.stage("quantize", f"quantizing {len(placed.layers)} layers", 0.48):
                data = quantize.quantize(self._model, placed, thresholds, method)
                made[f"weights by {method}"] = data
            if self._options.bias_correction:
                with self._build.stage("bias", "correcting biases", 0.49):
                    model = self._corrected(placed, thresholds, method)
                    data = quantize.quantize(model, placed, thresholds, method)
                    made[f"weights by {method}, biases corrected"] = data
        return self._best(made)

    def _best(self, made: Mapping[str, bytes]) -> bytes:
        if len(made) == 1:
            return next(iter(made.values()))
        with self._build.stage("compare", f"comparing {len(made)} quantized forms", 0.5):
            scores = {label: self._holdout.score(data).sqnr_db for label, data in made.items()}
        best = max(scores, key=lambda label: scores[label])  # the first of equals
        rows = ", ".join(f"{label} {score:.1f} dB" for label, score in scores.items())
        self._build.tell(f"{best} is taken: {rows}", 0.5)
        return made[best]

    def scan(self, choice: Int8Choice) -> tuple[LayerCost, ...]:
        """Ranks the layers of a choice by what they cost; goes on where an earlier scan ended.

        Raises:
            BuildError: a sample or the state file is wrong.
        """
        nodes = [layer.node for layer in choice.placement.layers]
        folder = self._build.recipe.folder / BUILT
        folder.mkdir(parents=True, exist_ok=True)
        state = ScanState(folder / STATE_FILE, self._scan_key(choice))
        thresholds = choice.ranges.thresholds()
        with self._build.stage("sensitivity", f"scanning {len(nodes)} layers", 0.44):

            def score(node: str) -> Score:
                others = dict.fromkeys(nodes, "another one is looked at")
                del others[node]
                return self._score(thresholds, choice.placement.kept | others)

            return scan(nodes, score, state, partial(self._tell, 0.44, 0.04))

    # -------------------------------------------------------------- calibration

    def _equalise(self, placed: Placement) -> None:
        places = equalise.seams(self._model, placed)
        if not places:
            return
        graph = FloatGraph(bytes(equalise.maxima_graph(self._model, places).SerializeToString()))
        names = [equalise.maximum_of(seam) for seam in places]
        maxima = equalise.channel_maxima(
            lambda batch: graph.run(batch, names),
            self._samples("all", _EQUALISE_SAMPLES, "equalised with"),
        )
        self._model = equalise.equalise(self._model, places, maxima)

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
            options = build.recipe.calibrate
            tensors = sorted(placed.tensors)
            seen = self._collect(tensors)
            self.histograms = seen.histograms
            ranges = settle(seen, options, sources, partial(self._range_score, placed))
            write_ranges(path, ranges)
        return ranges

    def _collect(self, tensors: Sequence[str]) -> Collected:
        options = self._build.recipe.calibrate
        inputs = {spec.name for spec in input_specs(self._build.recipe.input)}
        observed = with_observers(self._model, [t for t in tensors if t not in inputs])
        graph = FloatGraph(observed.model)
        return collect(
            lambda batch: observed.observed(graph.run(batch, observed.outputs)),
            self._samples("all", options.samples, "calibrated"),
            tensors,
        )

    def seen(self, placed: Placement) -> Mapping[str, Histogram]:
        """What calibration sees, by tensor; runs the samples if ranges.json was taken as it is."""
        if not self.histograms:
            with self._build.stage("histograms", "counting activations for the report", 0.95):
                self.histograms = self._collect(sorted(placed.tensors)).histograms
        return self.histograms

    def _range_score(self, placed: Placement, ranges: Mapping[str, TensorRange]) -> float:
        thresholds = {name: found.threshold for name, found in ranges.items()}
        return self._every_sample.score(self._simulated(thresholds, placed.kept)).sqnr_db

    # -------------------------------------------------------------- accuracy

    @cached_property
    def _holdout(self) -> Holdout:
        return self._scored_on("held back", self._build.recipe.calibrate.samples)

    @cached_property
    def _every_sample(self) -> Holdout:
        # A threshold has seen them, but is one number a tensor and was not fitted to the outputs;
        # a fifth of them is too few to tell methods apart.
        return self._scored_on("all", min(_METHOD_SAMPLES, self._build.recipe.calibrate.samples))

    def _scored_on(self, part: Part, limit: int) -> Holdout:
        recipe, split = self._build.recipe, self._build.dataset.calibration
        batches = (
            (model_inputs(batch, recipe.input), batch.labels)
            for batch in split.batches(_BATCH, limit, part)
        )
        outputs = tuple(spec.name for spec in recipe.output)
        model = bytes(self._model.SerializeToString())
        return Holdout(model, batches, outputs, recipe.verify)

    def _score(self, thresholds: Mapping[str, float], left_out: Mapping[str, str]) -> Score:
        return self._holdout.score(self._simulated(thresholds, left_out))

    def _simulated(self, thresholds: Mapping[str, float], left_out: Mapping[str, str]) -> bytes:
        placed = placement.place(self._model, self._options, left_out)
        method: WeightMethod = "minmax" if self._options.weights == "minmax" else "mse"
        return quantize.quantize(self._model, placed, thresholds, method)

    def _within_budget(self, choice: Int8Choice, budget: float) -> Int8Choice:
        before = self._holdout.score(self.quantize(choice))
        if before.loss <= budget:
            self._build.tell(f"the accuracy budget holds: the loss is {before.loss:g}", 0.48)
            return choice
        costs = self.scan(choice)

        def without(nodes: Sequence[str]) -> Int8Choice:
            why = {name: _too_costly(costs, name) for name in nodes}
            placed = placement.place(self._model, self._options, choice.placement.kept | why)
            return replace(choice, placement=placed, costs=costs)

        with self._build.stage(
            "budget", "finding the layers that the budget leaves in float", 0.48
        ):
            found = fit(
                costs,
                lambda nodes: self._holdout.score(self.quantize(without(nodes))),
                budget,
                before,
            )
        self._build.tell(
            f"{len(found.left)} layers stay in float for the accuracy budget: the loss is "
            f"{found.score.loss:g}, was {before.loss:g}", 0.49,
        )  # fmt: skip
        return without(found.left)

    def _scan_key(self, choice: Int8Choice) -> str:
        recipe, dataset = self._build.recipe, self._build.dataset
        document = [
            recipe.model.sha256,
            dataset.digest,
            recipe.calibrate.samples,
            recipe.verify.metric,
            recipe.quantize.weights,
            [spec.model_dump(mode="json") for spec in (*recipe.input, *recipe.output)],
            sorted(choice.ranges.thresholds().items()),
            [layer.node for layer in choice.placement.layers],
        ]
        return hashlib.sha256(json.dumps(document).encode()).hexdigest()

    def _corrected(
        self, placed: Placement, thresholds: Mapping[str, float], method: WeightMethod
    ) -> onnx.ModelProto:
        model, copies = bias_correction.shadowed(self._model, placed)
        if not copies.layers:
            return self._model
        data = quantize.quantize(model, copies, thresholds, method)
        graph = FloatGraph(data)
        outputs = [name for name in graph.output_names if name.endswith("__mean_error")]
        errors = bias_correction.mean_errors(
            lambda batch: graph.run(batch, outputs),
            self._samples("all", _BIAS_SAMPLES, "corrected with"),
        )
        return bias_correction.correct(self._model, placed, errors)

    # -------------------------------------------------------------- samples

    def _samples(self, part: Part, limit: int, verb: str) -> Iterator[dict[str, Array]]:
        """Batches of the calibration split, as the model takes them; tells how far it is."""
        split = self._build.dataset.calibration
        total, done = min(limit, len(split)), 0
        for batch in split.batches(_BATCH, limit, part):
            yield model_inputs(batch, self._build.recipe.input)
            done += len(batch)
            self._tell(0.06, 0.38, f"{verb} {done} of {total} samples", done / total)

    def _tell(self, begin: float, width: float, sentence: str, share: float) -> None:
        self._build.tell(sentence, begin + width * share)


def unfit_layers(placed: Placement, ranges: Ranges) -> dict[str, str]:
    """Layers whose activation 127 levels cannot hold at any threshold, with the reason.

    So it is behind front ends of a huge dynamic range, such as a power spectrogram: most values
    would become zero, or noise.
    """
    found = {}
    for layer in placed.layers:
        known = ranges.tensors[layer.activation]
        if known.lost > _MOST_LOST:
            found[layer.node] = (
                f"{known.lost:.0%} of its input's values other than zero would be rounded to zero"
            )
        elif known.sqnr_db < _LEAST_SQNR_DB:
            found[layer.node] = (
                f"INT8 leaves its input a signal to noise ratio of {known.sqnr_db} dB"
            )
    return found


def _too_costly(costs: Sequence[LayerCost], node: str) -> str:
    cost = next(cost for cost in costs if cost.node == node)
    return f"accuracy budget: alone in INT8 it costs {cost.loss:g}, {cost.sqnr_db:.1f} dB"
