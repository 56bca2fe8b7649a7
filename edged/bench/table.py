"""A summary as people read it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edged.bench.summary import Summary

_BAR = 24
_MOST_ROWS = 16
"""Rows of batches that are shown one by one."""


def lines(summary: Summary) -> Iterator[str]:
    """The table, line by line."""
    for name, text in _rows(summary):
        yield f"{name:<14}{text}"
    for name, each in summary.classes.items():
        counts = f"{each.answered} of {each.sent}, {each.refused} refused, {each.lost} lost"
        yield f"{'  ' + name:<26}{counts}; {_ms(each.latency_ms, ('p50', 'p99'))}"
    yield from _batches(summary)


def _rows(summary: Summary) -> Iterator[tuple[str, str]]:
    refused = ", ".join(f"{count} {code}" for code, count in summary.refused.items()) or "0"
    yield (
        "requests",
        f"{summary.sent} sent: {summary.answered} answered, {refused} refused, {summary.lost} lost",
    )
    unsent = f", {summary.unsent} not sent: the broker took no more" if summary.unsent else ""
    foreign = f", {summary.foreign} of others" if summary.foreign else ""
    yield (
        "answers",
        f"{summary.duplicates} duplicates, {summary.out_of_order} out of order{foreign}{unsent}",
    )
    loop = f"offered {summary.offered_hz:.0f}/s" if summary.offered_hz else "closed loop"
    yield "rate", f"{summary.answered_hz:.1f}/s answered, {loop}"
    if summary.goodput_hz is not None and summary.good_share is not None:
        within = f"{summary.goodput_hz:.1f}/s within {summary.slo_ms:g} ms"
        yield "goodput", f"{within}, {summary.good_share:.2%} of the requests"
    if summary.latency_ms:
        yield "latency, ms", f"{_ms(summary.latency_ms)}  from the intended send time"
    if summary.queue_ms is not None and summary.compute_ms is not None:
        parts = f"{summary.queue_ms:.2f} queue, {summary.compute_ms:.2f} compute"
        yield "of it, ms", f"p50 {parts}"
    if summary.devices:
        yield "devices", ", ".join(f"{count} {name}" for name, count in summary.devices.items())
    if cost := _cost(summary):
        yield "a request", cost
    lag = _ms(summary.lag_ms, ("p50", "p99", "max")) or "nothing sent"
    yield "generator", f"sent late by, ms: {lag}; {summary.generator_cpu_us:.0f} us of CPU each"


def _cost(summary: Summary) -> str:
    usage = summary.usage
    parts = []
    if usage.cpu_ms is not None:
        where = "its process" if usage.source == "process" else "its telemetry"
        parts.append(f"{usage.cpu_ms:.3f} ms of the daemon's CPU ({where})")
    if usage.joules is not None:
        parts.append(f"{usage.joules:.4f} J")
    return ", ".join(parts)


def _ms(values: Mapping[str, float], chosen: tuple[str, ...] = ()) -> str:
    return "  ".join(
        f"{name} {ms:.2f}" for name, ms in values.items() if not chosen or name in chosen
    )


def _batches(summary: Summary) -> Iterator[str]:
    if not summary.batches:
        return
    yield f"{'batches':<14}{'size':>7}  {'closed because':<22}{'requests':>8}"
    rows = dict(summary.batches)
    if len(rows) > _MOST_ROWS:
        rows = _grouped(rows)
    most = max(rows.values())
    for name, count in rows.items():
        size, _, reason = name.partition(" ")
        bar = "#" * max(1, round(_BAR * count / most))
        yield f"{'':<14}{size:>7}  {reason:<22}{count:>8}  {bar}"


def _grouped(batches: Mapping[str, int]) -> dict[str, int]:
    """Sizes in ranges: 1, 2, 3-4, 5-8 and so on."""
    found: dict[tuple[int, str], int] = {}
    for name, count in batches.items():
        size, _, reason = name.partition(" ")
        key = (max(0, int(size) - 1).bit_length(), reason)
        found[key] = found.get(key, 0) + count
    return {f"{_range(power)} {reason}": found[power, reason] for power, reason in sorted(found)}


def _range(power: int) -> str:
    low, high = (1 << power >> 1) + 1, 1 << power
    return str(high) if power < 2 else f"{low}-{high}"
