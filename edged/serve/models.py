"""Engines from the store -> models that are ready: loaded, warm, and measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edged import preprocess, runners
from edged.engine_store import EngineStore, Manifest
from edged.errors import EdgedError
from edged.events import ModelLoaded
from edged.latency import LatencyCurve


@dataclass(frozen=True)
class ReadyModel:
    """A model that can be served at once.

    Attributes:
        manifest: of its engine.
        runner: warm.
        curve: service time by batch size, measured now on this device.
    """

    manifest: Manifest
    runner: runners.Runner
    curve: LatencyCurve

    @property
    def latency_ms(self) -> dict[str, float]:
        """Batch size -> milliseconds."""
        points = zip(self.curve.sizes, self.curve.seconds, strict=True)
        return {str(size): round(seconds * 1e3, 4) for size, seconds in points}

    def event(self, now: float) -> ModelLoaded:
        """What to report of it; ``now`` is Unix seconds."""
        manifest = self.manifest
        return ModelLoaded(
            now,
            manifest.model,
            manifest.key[:12],
            manifest.precision,
            self.runner.device,
            self.latency_ms,
        )


def load_model(
    store: EngineStore, name: str, threads: int, progress: Callable[[int, int], None]
) -> ReadyModel:
    """Loads a model's current engine and warms every batch size.

    Args:
        store: where the engine lies.
        name: the model's.
        threads: ONNX Runtime's threads inside one operator; 0: one for each core.
        progress: called with (batch sizes done, batch sizes in all).

    Raises:
        EdgedError: the engine must not be loaded here, cannot be, or fails; the message says why.
    """
    manifest = store.current(name).manifest
    engine = store.usable(name, runners.fingerprint(manifest.runner))
    if any(spec.image != "none" for spec in manifest.input):
        preprocess.prepare_images()
    runner = runners.load(engine, threads=threads)
    try:
        curve = runners.warm_up(runner, manifest.warm_sizes, progress)
    except EdgedError:
        runner.close()
        raise
    return ReadyModel(manifest, runner, curve)
