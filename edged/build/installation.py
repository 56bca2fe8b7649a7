"""What a build found -> the files of an engine: manifest, engine, golden samples, report."""

from __future__ import annotations

import json
from datetime import datetime, timezone

from edged.build.build_report import report
from edged.build.choice import medians
from edged.build.identity import sha256
from edged.build.outcome import Outcome
from edged.build.report_page import page
from edged.build.target import CACHE_FILE, ENGINE_FILES, LOG_FILE
from edged.engine_store import GOLDEN_FILE
from edged.latency import LatencyCurve
from edged.manifest import Manifest

REPORT_FILE = "report.json"
PAGE_FILE = "report.html"


def manifest_of(outcome: Outcome, key: str) -> Manifest:
    """The manifest of the engine that was chosen.

    Args:
        outcome: what the build found.
        key: digest over all that it was built from.
    """
    shop, taken, variant = outcome.shop, outcome.taken, outcome.decision.variant
    recipe, target = shop.build.recipe, shop.target
    engine = recipe.engine
    times = medians(outcome.timings[variant])
    curve = LatencyCurve.measured(times.items(), stepped=bool(taken.runner.sizes))
    shorter = {
        str(length): _milliseconds(LatencyCurve.measured(medians(rounds).items()))
        for length, rounds in outcome.shorter.items()
    }
    return Manifest(
        model=recipe.name,
        key=key,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        runner=target.runner,
        fingerprint=target.fingerprint,
        file=ENGINE_FILES[target.runner],
        sha256=sha256(taken.made.data),
        precision=variant.precision,
        asked=engine.precision,
        slo_batch=outcome.decision.batch,
        notes=outcome.notes,
        stages=shop.stages.used,
        sources=shop.build.sources(),
        input=recipe.input,
        output=recipe.output,
        max_batch=engine.max_batch,
        warm_sizes=engine.warm_sizes,
        slo_ms=engine.slo_ms,
        refuse_nonfinite=engine.refuse_nonfinite,
        freshness=engine.freshness,
        postprocess=recipe.postprocess,
        latency_ms=_milliseconds(curve),
        shorter_latency_ms=shorter,
        quantized=outcome.quantized,
        verdict=taken.verdict,
    )


def _milliseconds(curve: LatencyCurve) -> dict[str, float]:
    return {
        str(size): round(seconds * 1e3, 4)
        for size, seconds in zip(curve.sizes, curve.seconds, strict=True)
    }


def files_of(outcome: Outcome, manifest: Manifest) -> dict[str, bytes]:
    """Contents by file name, all but the manifest itself."""
    taken = outcome.taken
    document = report(outcome, manifest)
    files = {
        manifest.file: taken.made.data,
        GOLDEN_FILE: outcome.shop.golden(taken.runner),
        REPORT_FILE: (json.dumps(document, indent=2) + "\n").encode(),
        PAGE_FILE: page(document).encode(),
    }
    if taken.made.log:
        files[LOG_FILE] = taken.made.log.encode()
    cache = taken.cache
    if cache is not None:
        files[CACHE_FILE] = cache
    return files
