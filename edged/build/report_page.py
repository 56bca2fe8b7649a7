"""``report.html``: the build report for people, one file without anything from outside. Pure.

All text comes from the report document and is escaped: names of nodes and tensors are whatever the
model's author wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from edged.build import plots

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #667085; --line: #d9dee7; --back: #fff;
  --card: #f6f8fb; --good: #0f7b4a; --bad: #b3261e; --c0: #1f6feb; --c1: #d4760a; --c2: #0f7b4a;
  --c3: #8250df; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf1; --soft: #9aa5b8; --line: #333c4a;
  --back: #12161d; --card: #1a202a; --good: #4cc38a; --bad: #ff8a80; --c0: #6ea8fe; --c1: #f5a742;
  --c2: #4cc38a; --c3: #b693f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 24px; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 8px; }
h3 { font-size: 15px; margin: 16px 0 4px; }
p { margin: 6px 0; max-width: 78ch; } .soft { color: var(--soft); }
.verdict { display: inline-block; padding: 2px 10px; border-radius: 12px; color: var(--back);
  background: var(--good); font-weight: 600; } .verdict.no { background: var(--bad); }
table { border-collapse: collapse; margin: 8px 0; } .wide { overflow-x: auto; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; } th { color: var(--soft); font-weight: 500; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
tr.taken td { font-weight: 600; } code { font: 13px/1.4 ui-monospace, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 16px; }
figure { margin: 0; max-width: 720px; padding: 12px; background: var(--card); border-radius: 8px; }
figcaption { font-weight: 600; margin-bottom: 6px; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--ink); font-size: 12px; }
svg .tick { fill: var(--soft); font-size: 11px; } svg .title { fill: var(--soft); }
.grid { stroke: var(--line); } .line { fill: none; stroke-width: 2; } .area { fill: var(--c0);
  opacity: .75; } .bar { fill: var(--c0); } .bar.float { fill: var(--c1); }
.rule { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg .ruled { fill: var(--bad); }
.roof { fill: none; stroke: var(--soft); stroke-width: 2; }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); }
.s3 { stroke: var(--c3); } .dot.s0 { fill: var(--c0); } .dot.s1 { fill: var(--c1); }
.dot.s2 { fill: var(--c2); } .dot.s3 { fill: var(--c3); }
details { margin: 6px 0; } summary { cursor: pointer; } select { font: inherit; max-width: 100%; }
.pick figure { display: none; } .pick figure.on { display: block; }
@media print { .pick figure { display: block; } }
"""

# Without scripts every histogram is shown, one below the other.
_SCRIPT = """
for (const pick of document.querySelectorAll('.pick')) {
  const figures = pick.querySelectorAll('figure');
  const show = (at) => figures.forEach((figure, n) => figure.classList.toggle('on', n === at));
  const select = pick.querySelector('select');
  select.addEventListener('change', () => show(select.selectedIndex));
  show(0);
}
"""

_TAKEN = ' class="taken"'


def page(report: Mapping[str, Any]) -> str:
    """The report as HTML.

    Args:
        report: as `build_report.report` makes it.
    """
    parts = (_head, _choice, _accuracy, _histograms, _layers, _graph, _roofline, _origin)
    body = "".join(part(report) for part in parts)
    title = escape(f"{report['model']}: engine {report['key'][:12]}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head><body>{body}"
        f"<noscript><style>.pick figure {{ display: block; }}</style></noscript>"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _head(report: Mapping[str, Any]) -> str:
    verdict, device = report["verdict"], report["fingerprint"]
    word, kind = ("passed", "") if verdict["passed"] else ("not passed", " no")
    where = ", ".join(f"{name} {value}" for name, value in sorted(device.items()))
    notes = "".join(f"<li>{escape(note)}</li>" for note in report["notes"])
    warnings = "".join(f"<li>{escape(text)}</li>" for text in report["warnings"])
    return (
        f'<h1>{escape(report["model"])} <span class="verdict{kind}">{word}</span></h1>'
        f"<p><b>{escape(report['variant'])}</b> is installed; asked for was "
        f"{escape(report['asked'] or report['precision'])}. Engine "
        f"<code>{escape(report['key'][:12])}</code>, built {escape(report['created'])}.</p>"
        f'<p class="soft">For {escape(where)}.</p>'
        + (f"<h3>What to know</h3><ul>{notes}</ul>" if notes else "")
        + (f"<h3>Warnings</h3><ul>{warnings}</ul>" if warnings else "")
    )


def _choice(report: Mapping[str, Any]) -> str:
    rows = [
        [
            row["variant"],
            "yes" if row["installed"] else "",
            f"{row['gain']:.2f}x" if "gain" in row else "",
            *_at(row, report["slo_batch"]),
            row["reason"],
        ]
        for row in report["candidates"]
    ]
    taken = [row["installed"] for row in report["candidates"]]
    size = report["slo_batch"]
    head = ["precision", "installed", "speed", f"ms at {size}", f"samples/s at {size}", "why"]
    return (
        "<h2>Which precision, and why</h2>"
        f"<p>All were timed in turn on this device and compared at a batch of {size}, the largest "
        f"measured one that takes no longer than the SLO of {report['slo_ms']:g} ms on the idle "
        "device. A lower precision has to keep its accuracy and to be faster.</p>"
        f"{_table(head, rows, {2, 3, 4}, taken)}"
        f'<div class="plots">{plots.latency(report["candidates"])}'
        f"{plots.throughput(report['candidates'])}</div>"
    )


def _at(row: Mapping[str, Any], size: int) -> tuple[str, str]:
    if "latency_ms" not in row:
        return "", ""
    return f"{row['latency_ms'][str(size)]:.4g}", f"{row['samples_s'][str(size)]:,.0f}"


def _accuracy(report: Mapping[str, Any]) -> str:
    columns = {
        "top1": "top-1 accuracy", "agreement": "same answer as FP32", "sqnr_db": "SQNR in dB",
        "cosine": "cosine", "against_qdq_sqnr_db": "SQNR against Q/DQ model",
    }  # fmt: skip
    rows = [
        [row["what"], *(_number(row.get(name)) for name in columns)] for row in report["accuracy"]
    ]
    samples = report["verdict"]["samples"]
    return (
        f"<h2>Accuracy</h2><p>On {samples} held-out samples. SQNR is the signal to quantization "
        "noise ratio of the outputs against the FP32 model; 200 dB means identical. What the Q/DQ "
        "model loses is quantization's; what its engine loses beyond it is the builder's.</p>"
        + _table(["", *columns.values()], rows, numbers=set(range(1, 6)))
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _histograms(report: Mapping[str, Any]) -> str:
    found = report.get("histograms") or {}
    if not found:
        return ""
    options = "".join(f"<option>{escape(name)}</option>" for name in found)
    figures = "".join(plots.histogram(name, each) for name, each in found.items())
    return (
        "<h2>Ranges of the activations</h2><p>Magnitudes that calibration saw, and the one that "
        'becomes 127; larger ones are clipped.</p><div class="pick"><p><label>Tensor: <select>'
        f"{options}</select></label></p>{figures}</div>"
    )


def _layers(report: Mapping[str, Any]) -> str:
    int8 = report.get("int8", [])
    if not int8:
        return ""
    fallen = report.get("plan", {}).get("fell_back", {})
    rows = [
        [
            layer["node"], layer.get("operator", ""), _number(layer.get("threshold")),
            f"{layer['clipped']:.3%}" if "clipped" in layer else "", _number(layer.get("sqnr_db")),
            fallen.get(layer["node"], ""),
        ]
        for layer in int8
    ]  # fmt: skip
    head = ["INT8 layer", "operator", "range", "clipped", "SQNR of its input", "computed in float"]
    kept = [[name, why] for name, why in report.get("float", {}).items()]
    table = _table(head, rows, numbers={2, 3, 4})
    floats = _table(["layer in float", "why"], kept)
    return (
        "<h2>Layers</h2>"
        + plots.sensitivity(report.get("sensitivity") or [], int8, report["model"])
        + _folded(f"{len(rows)} layers with Q/DQ pairs", table)
        + (_folded(f"{len(kept)} linear layers in float", floats) if kept else "")
    )


def _graph(report: Mapping[str, Any]) -> str:
    graph = report["graph"]
    columns = (graph["model"], graph["built"], graph["fused"])
    found = {name for each in columns for name in each}
    names = sorted(found, key=lambda name: (-graph["model"].get(name, 0), name))
    rows = [[name, *(str(each.get(name, "")) for each in columns)] for name in names]
    rows.append(["all", *(str(sum(each.values())) for each in columns)])
    head = ["operator", "model", "as built", graph["fused_by"]]
    layers = [
        [each["name"], each["kind"], " ".join(each["inputs"]), " ".join(each["outputs"])]
        for each in graph["layers"]
    ]
    return (
        "<h2>Graph</h2><p>Operators of the normalised model, of the graph that was built, and what "
        "the runtime made of it by fusion.</p>"
        + _table(head, rows, numbers={1, 2, 3})
        + (_folded(f"{len(layers)} layers after fusion",
                   _table(["layer", "kind", "reads", "writes"], layers)) if layers else "")
    )  # fmt: skip


def _roofline(report: Mapping[str, Any]) -> str:
    roof = report["roofline"]
    if not roof or not roof["points"]:
        return ""
    peaks = roof["peaks"]
    rows = [
        [
            layer["node"], layer["operator"], f"{layer['operations'] / 1e6:,.3f}",
            f"{layer['weights']:,}", f"{layer['intensity']:g}", layer["bound_by"],
        ]
        for layer in roof["layers"]
    ]  # fmt: skip
    head = ["layer", "operator", "MFLOP a sample", "weights", "operations a byte", "bound by"]
    return (
        "<h2>Roofline</h2>"
        f"<p>Measured peaks of this device ({escape(roof['measured'])}): "
        f"{peaks['operations_s'] / 1e9:,.4g} GFLOP/s and {peaks['bytes_s'] / 1e9:,.4g} GB/s. A "
        "point is a whole engine at one batch size: operations of its linear layers over the bytes "
        "that they move at least. Far below the roof, time goes to launches, copies and small "
        "layers; a point above it runs in a faster precision than the roof was measured in.</p>"
        f'<div class="plots">{plots.roofline(roof)}</div>'
        + _folded(f"{len(rows)} linear layers at a batch of {report['slo_batch']}",
                  _table(head, rows, numbers={2, 3, 4}))
    )  # fmt: skip


def _origin(report: Mapping[str, Any]) -> str:
    digests = {f"source {k}": v for k, v in report["sources"].items()}
    digests |= {f"stage {k}": v for k, v in report["stages"].items()}
    rows = [[name, digest[:16]] for name, digest in digests.items()]
    times = [[name, f"{seconds:g}"] for name, seconds in report["seconds"].items()]
    return (
        "<h2>Where it comes from</h2>"
        + _folded("digests", _table(["what", "sha256"], rows))
        + _folded("time of each step", _table(["step", "s"], times, numbers={1}))
        + f'<p class="soft">edged {escape(report["edged"])}; the same as data is in '
        "report.json.</p>"
    )


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: set[int] | None = None,
    taken: Sequence[bool] = (),
) -> str:
    numbers = numbers or set()

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = [' class="n"' if at in numbers else "" for at in range(len(row))]
        return "".join(
            f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True)
        )

    marks = {at for at, mark in enumerate(taken) if mark}
    lines = "".join(
        f"<tr{_TAKEN if at in marks else ''}>{cells('td', row)}</tr>" for at, row in enumerate(rows)
    )
    return f'<div class="wide"><table><tr>{cells("th", head)}</tr>{lines}</table></div>'
