"""Runs the held-out split through the FP32 model, an engine, and the Q/DQ graph, and compares.

Samples of variable length are padded to their bucket, as in serving; what a service cuts off their
outputs does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edged.build.build_run import BuildRun
from edged.build.dataset import SampleBatch, model_inputs
from edged.build.lengths import ByLength, one_by_one, without_padding
from edged.build.verify import PADDING, Comparison, judge
from edged.build_options import VerifyOptions
from edged.manifest import Verdict
from edged.recipe import Recipe
from edged.runners import Array
from edged.runners.onnx import FloatGraph


@dataclass
class Compared:
    """What was found on the held-out split.

    Attributes:
        engine: FP32 against the engine.
        qdq: FP32 against the Q/DQ graph.
        builder: the Q/DQ graph against the engine.
        padding: FP32 without padding against FP32 with it, where a mask tells the model of it.
        lengths: FP32 against the engine, by padded length.
    """

    engine: Comparison
    qdq: Comparison
    builder: Comparison
    padding: Comparison
    lengths: dict[int, Comparison] = field(default_factory=dict)

    def verdict(self, options: VerifyOptions) -> Verdict:
        """By the recipe's gates, which are for all lengths together; each has its metrics too."""
        metrics = self.engine.metrics()
        whole = judge(metrics, self.engine.samples, options)
        for length, found in sorted(self.lengths.items()):
            own = found.metrics()
            metrics |= {f"{name}@{length}": own[name] for name in ("agreement", "sqnr_db")}
            metrics[f"samples@{length}"] = found.samples
        if self.padding.samples:
            metrics[PADDING] = self.padding.metrics()["sqnr_db"]
        return whole.model_copy(update={"metrics": metrics})


def compare(
    build: BuildRun, reference: FloatGraph, engine: ByLength, qdq: FloatGraph | None = None
) -> Compared:
    """Compares on the whole held-out split.

    Args:
        build: its sources.
        reference: the FP32 model.
        engine: prepared.
        qdq: the Q/DQ graph, if that is to be compared too.

    Raises:
        BuildError: outputs are not of one form, or not finite.
    """
    recipe = build.recipe
    name = recipe.output[0].name
    found = Compared(Comparison(name), Comparison(name), Comparison(name), Comparison(name))
    masked = any(spec.length is not None and spec.length.mask for spec in recipe.input)
    for batch in build.dataset.heldout.batches(recipe.engine.max_batch):
        wanted, outputs = run_graph(reference, batch, recipe), engine.run(batch)
        found.engine.add(wanted, outputs, batch.labels)
        if batch.padded:
            found.lengths.setdefault(batch.padded, Comparison(name)).add(wanted, outputs)
        if masked:
            alone = one_by_one(reference, batch, recipe.input, recipe.output)
            found.padding.add(alone, wanted)
        if qdq is not None:
            quantized = run_graph(qdq, batch, recipe)
            found.qdq.add(wanted, quantized, batch.labels)
            found.builder.add(quantized, outputs)
    return found


def run_graph(graph: FloatGraph, batch: SampleBatch, recipe: Recipe) -> Mapping[str, Array]:
    """Outputs of a graph for a batch, zero behind each sample's length."""
    names = [spec.name for spec in recipe.output]
    outputs = graph.run(model_inputs(batch, recipe.input), names)
    return without_padding(outputs, batch, recipe.output)
