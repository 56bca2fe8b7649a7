"""Engines from the store -> models that are ready: loaded, warm, measured, and checked.

`ModelHost` keeps what each device runs. A model's engine can be replaced while it is served: the
new one is loaded and warmed beside the old one, and takes over between two batches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edged import preprocess, runners
from edged.engine_store import Engine, EngineStore, check_usable
from edged.errors import EdgedError, EngineMismatchError, EngineRefusedError
from edged.events import ModelLoaded
from edged.latency import LatencyCurve
from edged.manifest import Manifest
from edged.runners import Runner
from edged.serve.golden import check_golden
from edged.serve.gpu import Served
from edged.serve.request import queue_name
from edged.serve.timer import BatchTimer
from edged.settings import ServeSettings

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with (where, steps done, steps in all)."""


Lengths = Mapping[int, tuple[Runner, LatencyCurve]]
"""By padded length."""


@dataclass(frozen=True)
class ReadyModel:
    """A model that can be served at once.

    Attributes:
        engine: as it was loaded; another one may be current in the store meanwhile.
        runners: warm, by device.
        curves: service time by batch size, measured now, by device.
        shorter: of inputs of variable length, runners and curves of the shorter lengths, by device.
    """

    engine: Engine
    runners: Mapping[str, Runner]
    curves: Mapping[str, LatencyCurve]
    shorter: Mapping[str, Lengths] = field(default_factory=dict)

    @property
    def manifest(self) -> Manifest:
        """Of its engine."""
        return self.engine.manifest

    @property
    def version(self) -> str:
        """First 12 digits of the engine's key."""
        return self.manifest.key[:12]

    def queues(self, device: str) -> dict[str, tuple[Runner, LatencyCurve]]:
        """What runs on a device: one runner, or one for each length of inputs."""
        name = self.manifest.model
        longest = max((spec.max_length for spec in self.manifest.input), default=0)
        found = {queue_name(name, longest): (self.runners[device], self.curves[device])}
        shorter = self.shorter.get(device, {})
        return found | {queue_name(name, length): each for length, each in shorter.items()}

    def timers(self, slo_ms: float | None = None) -> dict[str, dict[str, BatchTimer]]:
        """New batch timers, by queue and device; for this SLO, or for its own."""
        cap = self.manifest.max_batch
        slo_s = (self.manifest.slo_ms if slo_ms is None else slo_ms) / 1e3
        timers: dict[str, dict[str, BatchTimer]] = {}
        for device in self.runners:
            for queue, (_, curve) in self.queues(device).items():
                timers.setdefault(queue, {})[device] = BatchTimer(curve, cap, slo_s=slo_s)
        return timers

    def served(self, device: str) -> dict[str, Served]:
        """As a device's thread runs it, by queue."""
        return {
            queue: Served(
                runner,
                self.manifest.input,
                refuse_nonfinite=self.manifest.refuse_nonfinite,
                version=self.version,
                outputs=self.manifest.output,
                postprocessor=self.manifest.postprocessor,
            )
            for queue, (runner, _) in self.queues(device).items()
        }

    def events(self, now: float) -> list[ModelLoaded]:
        """What to report of it, for each device; ``now`` is Unix seconds."""
        return [
            ModelLoaded(
                now,
                self.manifest.model,
                self.version,
                self.manifest.precision,
                device,
                {
                    str(size): round(seconds * 1e3, 4)
                    for size, seconds in zip(curve.sizes, curve.seconds, strict=True)
                },
                self.manifest.notes,
            )
            for device, curve in self.curves.items()
        ]

    def close(self) -> None:
        """Waits for what runs, then gives everything back."""
        for device in self.runners:
            for runner, _ in self.queues(device).values():
                runner.close()


@dataclass(frozen=True)
class Loaded:
    """An engine on one device: `ReadyModel` has the same by device."""

    runner: Runner
    curve: LatencyCurve
    shorter: Lengths = field(default_factory=dict)


def devices_for(manifest: Manifest, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Devices that an engine is loaded on.

    Args:
        manifest: of the engine.
        wanted: ``serve.devices``; ``auto`` is ``cpu``, ``cuda:0`` or ``dla:0``, as it needs.

    Raises:
        EngineRefusedError: none of them can run it.
    """
    kind, default = "cpu", "cpu"
    if manifest.runner == "tensorrt":
        kind = "dla" if "dla" in manifest.fingerprint else "cuda"
        default = f"{kind}:0"
    named = (default if name == "auto" else name for name in wanted)
    fitting = tuple(dict.fromkeys(name for name in named if name.startswith(kind)))
    if not fitting:
        raise EngineRefusedError(
            f"engine of {manifest.model!r} runs on {kind} devices, but serve.devices is "
            f"{list(wanted)}; add one, or build the engine for what is there"
        )
    return fitting


@dataclass
class ModelHost:
    """What is served on which device.

    Thread-safe for readers; `edged.serve.devices.Devices` lets one thread at a time change it.

    Attributes:
        store: where engines lie.
        settings: ``[serve]``.
        models: ready ones by name.
        refused: name -> why it is not served.
        outdated: names whose current engine was built for another device or runtime.
    """

    store: EngineStore
    settings: ServeSettings
    models: dict[str, ReadyModel] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    _hurried: dict[str, tuple[Manifest, Manifest]] = field(default_factory=dict)
    outdated: set[str] = field(default_factory=set)

    def __repr__(self) -> str:
        return f"<ModelHost {sorted(self.models)}, refused {sorted(self.refused)}>"

    def wanted(self) -> tuple[str, ...]:
        """Names that the settings ask for: those listed, else all that have an engine."""
        return self.settings.models or tuple(self.store.models())

    def unwanted(self) -> tuple[str, ...]:
        """Names that serve though ``serve.models`` lists others, or, empty, their engines are gone.

        None while none of the others serves: a service that is told to serve nothing but what
        cannot be loaded goes on with what it has.
        """
        listed, gone = self.settings.models, self.store.is_gone
        unwanted = tuple(
            name for name in self.models if (name not in listed if listed else gone(name))
        )
        return unwanted if len(unwanted) < len(self.models) else ()

    def forget_refusals(self) -> None:
        """Forgets why models are not served that are not asked for any more."""
        wanted = self.wanted()
        for name in [name for name in self.refused if name not in wanted]:
            del self.refused[name]
        self.outdated.intersection_update(wanted)

    def manifest(self, name: str) -> Manifest | None:
        """Of a model that is served, else None; with the deadline of ``serve.slo_ms``, if any."""
        model = self.models.get(name)
        if model is None:
            return None
        wanted = self.settings.slo_ms.get(name)
        if wanted is None:
            return model.manifest
        known = self._hurried.get(name)
        if known is None or known[0] is not model.manifest or known[1].slo_ms != wanted:
            known = (model.manifest, model.manifest.model_copy(update={"slo_ms": wanted}))
            self._hurried[name] = known
        return known[1]

    def engines(self) -> dict[str, dict[str, object]]:
        """What the status tells of the engines that serve."""
        return {
            name: {
                "engine": model.version,
                "precision": model.manifest.precision,
                "notes": list(model.manifest.notes),
            }
            for name, model in self.models.items()
        }

    def devices(self) -> list[str]:
        """All devices in use, sorted."""
        return sorted({device for model in self.models.values() for device in model.runners})

    def served(self, device: str) -> dict[str, Served]:
        """What one device runs, by queue."""
        models = [model for model in self.models.values() if device in model.runners]
        return {queue: each for model in models for queue, each in model.served(device).items()}

    def timers(self, device: str) -> dict[str, BatchTimer]:
        """New batch timers of one device, by queue."""
        return {
            queue: timers[device]
            for name, model in self.models.items()
            for queue, timers in model.timers(self.settings.slo_ms.get(name)).items()
            if device in timers
        }

    def slos_s(self) -> dict[str, float]:
        """By model, the latency in seconds that requests without a deadline shall keep."""
        known = ((name, self.manifest(name)) for name in tuple(self.models))
        return {name: manifest.slo_ms / 1e3 for name, manifest in known if manifest}

    def load(self, name: str, progress: Progress) -> ReadyModel | None:
        """Loads the engine that the settings ask for on its devices, unless it serves already.

        A device that refuses it is left out as long as another one takes it. Where it was built for
        another device or runtime, as after an upgrade, and nothing serves yet, the engine before it
        is taken if that one fits.

        Returns:
            The model, not served yet; None if that engine is the one that serves.

        Raises:
            EdgedError: no device takes it; the message says why.
        """
        engine = self._engine(name)
        serving = self.models.get(name)
        if serving is not None and serving.manifest.key == engine.manifest.key:
            return None
        try:
            ready = self._load(engine, progress)
        except EngineMismatchError as err:
            self.outdated.add(name)
            if serving is not None:
                raise
            try:
                ready = self._load(self.store.previous(name), progress)
            except EdgedError:
                raise err from None
            log.warning("model %s is served by its earlier engine: %s", name, err.message)
            return ready
        self.outdated.discard(name)
        return ready

    def _load(self, engine: Engine, progress: Progress) -> ReadyModel:
        name = engine.manifest.model
        ready: dict[str, Loaded] = {}
        problems: list[EdgedError] = []
        for device in devices_for(engine.manifest, self.settings.devices):
            try:
                ready[device] = self._load_on(engine, device, progress)
            except EdgedError as err:  # noqa: PERF203  # a few devices, seconds each
                problems.append(err)
                log.warning("model %s is not loaded on %s: %s", name, device, err.message)
        if not ready:
            raise problems[0]
        return ReadyModel(
            engine,
            {device: loaded.runner for device, loaded in ready.items()},
            {device: loaded.curve for device, loaded in ready.items()},
            {device: loaded.shorter for device, loaded in ready.items() if loaded.shorter},
        )

    def _engine(self, name: str) -> Engine:
        """The version that ``serve.versions`` asks for, else the one that was installed last."""
        version = self.settings.versions.get(name)
        if version is None:
            return self.store.current(name)
        known = self.store.versions(name)
        if version in known:
            return known[version]
        log.warning(
            "model %s: version %s (serve.versions) is not in the store any more; the engine that "
            "was installed last is used",
            name,
            version,
        )
        return self.store.current(name)

    def renew(self, device: str, progress: Progress) -> dict[str, Served]:
        """Loads everything of a device anew after it failed: the engines that serve, no newer ones.

        Raises:
            EdgedError: it still fails.
        """
        mine = {n: m for n, m in self.models.items() if device in m.runners}
        for name, model in mine.items():
            for runner, _ in model.queues(device).values():
                runners.abandon(runner)
            loaded = self._load_on(model.engine, device, progress)
            self.models[name] = ReadyModel(
                model.engine,
                {**model.runners, device: loaded.runner},
                {**model.curves, device: loaded.curve},
                {**model.shorter, device: loaded.shorter} if loaded.shorter else {},
            )
        return self.served(device)

    def _load_on(self, engine: Engine, device: str, progress: Progress) -> Loaded:
        manifest = engine.manifest
        check_usable(manifest, runners.fingerprint(manifest.runner, device))
        if any(spec.image != "none" for spec in manifest.input):
            preprocess.prepare_images()
        runner = runners.load(engine, device=device, threads=self.settings.onnx_threads)
        where = f"{manifest.model} on {device}"
        loaded = [runner]
        try:
            curve = _warm(runner, manifest, where, progress)
            check_golden(engine, runner)
            shorter: dict[int, tuple[Runner, LatencyCurve]] = {}
            for length in _shorter_lengths(manifest):
                loaded.append(_at_length(runner, manifest, length))
                where = f"{manifest.model} at length {length} on {device}"
                shorter[length] = loaded[-1], _warm(loaded[-1], manifest, where, progress)
        except BaseException:
            for each in loaded:
                each.close()
            raise
        return Loaded(runner, curve, shorter)


def _warm(runner: Runner, manifest: Manifest, where: str, progress: Progress) -> LatencyCurve:
    sizes = manifest.warm_sizes
    return runners.warm_up(runner, sizes, lambda done, total: progress(where, done, total))


def _at_length(runner: Runner, manifest: Manifest, length: int) -> Runner:
    return runners.at_length(runner, manifest.input, manifest.output, length)


def _shorter_lengths(manifest: Manifest) -> tuple[int, ...]:
    """Lengths below the largest one that inputs of variable length are padded to."""
    return next((spec.buckets[:-1] for spec in manifest.input if spec.length is not None), ())


def _tensors(manifest: Manifest) -> tuple[object, ...]:
    """What requests bring and may ask for."""
    derived = manifest.postprocessor.names if manifest.postprocessor else ()
    return manifest.input, manifest.output, derived


def check_successor(old: ReadyModel, new: ReadyModel) -> None:
    """Whether a new engine can take over from the one that serves, whatever waits and runs.

    Raises:
        EngineRefusedError: requests that wait could not be run by it, or not on each device.
    """
    name, before, after = new.manifest.model, old.manifest, new.manifest
    if _tensors(before) != _tensors(after):
        raise EngineRefusedError(
            f"the new engine of {name!r} takes or gives other tensors than the one that serves; "
            "restart the service to change over"
        )
    if after.max_batch < before.max_batch:
        raise EngineRefusedError(
            f"the new engine of {name!r} takes batches of at most {after.max_batch}, the one that "
            f"serves takes {before.max_batch}; restart the service to change over"
        )
    if missing := sorted(set(old.runners) - set(new.runners)):
        raise EngineRefusedError(
            f"the new engine of {name!r} cannot be loaded on {', '.join(missing)}, where the old "
            "one serves; see the log, then reload again"
        )
