"""Samples for real models, made on the spot: rendered text, files, sentences, photographs."""

from __future__ import annotations

import functools
import inspect
import io
import pkgutil
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Floats = npt.NDArray[np.float32]


def _text(rng: np.random.Generator, least: int, most: int) -> str:
    """Words as they stand beside each other in a sentence, about so many letters in all."""
    words = str(rng.choice(_sentences())).split()
    start, wanted = int(rng.integers(0, len(words))), int(rng.integers(least, most))
    return " ".join(words[start:])[:wanted].strip() or words[0]


@functools.cache
def _sentences() -> list[str]:
    return sentences(2000, 0)


def _colours(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Paper and ink, apart enough to be read."""
    paper = rng.integers(120, 256, size=3)
    ink = np.clip(paper - rng.integers(70, 200), 0, 255)
    pair = (tuple(map(int, paper)), tuple(map(int, ink)))
    return pair if rng.random() < 0.7 else pair[::-1]


def _worn(image: Image.Image, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    blurred = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.2))))
    pixels = np.asarray(blurred, np.float32)
    return np.clip(pixels + rng.normal(0, rng.uniform(0, 16), pixels.shape), 0, 255).astype("f4")


def text_lines(count: int, seed: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Lines of text ``[n, 3, 48, 192]`` in -1 to 1, upright (0) or upside down (1)."""
    rng, labels = np.random.default_rng(seed), []
    images = np.zeros((count, 48, 192, 3), np.float32)
    for image in images:
        line = _line(rng)
        label = int(rng.integers(0, 2))
        image[:, : line.shape[1]] = line[::-1, ::-1] if label else line
        labels.append(label)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), np.array(labels, np.int64)


def _line(rng: np.random.Generator) -> Floats:
    """One cropped line ``[48, width, 3]`` in -1 to 1, as the text recogniser's detector cuts it."""
    paper, ink = _colours(rng)
    font, text = ImageFont.load_default(size=40), _text(rng, 4, 14)
    left, top, right, bottom = font.getbbox(text)
    margin = int(rng.integers(2, 8))
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    image = Image.new("RGB", size, paper)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, fill=ink, font=font)
    image = image.rotate(float(rng.uniform(-2, 2)), fillcolor=paper)
    width = min(192, max(1, round(size[0] * 48 / size[1])))
    return np.asarray(_worn(image.resize((width, 48)), rng) / 127.5 - 1, np.float32)


def text_pages(count: int, seed: int, size: int) -> Floats:
    """Pages with lines of text ``[n, 3, size, size]``, normalised as ImageNet's images are."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(count):
        paper, ink = _colours(rng)
        image = Image.new("RGB", (size, size), paper)
        draw, top = ImageDraw.Draw(image), int(rng.integers(4, 40))
        while top < size - 30:
            height = int(rng.integers(12, 34))
            font = ImageFont.load_default(size=height)
            draw.text((int(rng.integers(0, 120)), top), _text(rng, 4, 18), fill=ink, font=font)
            top += height + int(rng.integers(4, 40))
        rows.append(_worn(image.rotate(float(rng.uniform(-5, 5)), fillcolor=paper), rng))
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = (np.stack(rows) / 255 - mean) / deviation
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)


def photographs(wheel: Path) -> list[Image.Image]:
    """Colour photographs that a wheel holds as files."""
    found = []
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if re.search(r"/data/.*\.(png|jpg|jpeg)$", name):
                image = Image.open(io.BytesIO(archive.read(name)))
                if image.mode == "RGB" and min(image.size) >= 256:
                    found.append(image)
    return found


def crops(images: list[Image.Image], count: int, seed: int, size: int) -> Floats:
    """Random crops ``[n, 3, size, size]`` of 0 to 255, turned over and darkened at random."""
    rng, rows = np.random.default_rng(seed), []
    for at in range(count):
        image = images[at % len(images)]
        side = int(rng.uniform(0.4, 1.0) * min(image.size))
        left, top = (int(rng.integers(0, extent - side + 1)) for extent in image.size)
        part = image.crop((left, top, left + side, top + side)).resize((size, size))
        pixels = np.asarray(part, np.float32) * np.float32(rng.uniform(0.5, 1.1))
        rows.append(np.clip(pixels[:, ::-1] if rng.random() < 0.5 else pixels, 0, 255))
    return np.ascontiguousarray(np.stack(rows).transpose(0, 3, 1, 2), np.float32)


def files(count: int, seed: int, roots: tuple[str, ...] = ("/usr/share", "/usr/lib")) -> list[Path]:
    """Files of this machine, of as many kinds as there are."""
    kinds: dict[str, list[Path]] = {}
    for root in roots:
        for path in sorted(Path(root).rglob("*.*"))[:60_000]:
            if path.is_file() and not path.is_symlink() and path.stat().st_size > 64:
                kinds.setdefault(path.suffix.lower(), []).append(path)
    rng = np.random.default_rng(seed)
    for kind in kinds.values():
        rng.shuffle(kind)
    found: list[Path] = []
    depth = 0
    while len(found) < count and any(len(kind) > depth for kind in kinds.values()):
        found += [kind[depth] for kind in kinds.values() if len(kind) > depth]
        depth += 1
    rng.shuffle(found)
    return found[:count]


def first_and_last_bytes(paths: list[Path], size: int = 1024) -> npt.NDArray[np.int32]:
    """What magika reads of a file: ``[n, 2 size]``, 256 where there is none."""
    rows = np.full((len(paths), 2 * size), 256, np.int32)
    for row, path in zip(rows, paths, strict=True):
        data = path.read_bytes()
        head, tail = data[:4096].lstrip()[:size], data[-4096:].rstrip()[-size:]
        row[: len(head)] = np.frombuffer(head, np.uint8)
        if tail:
            row[-len(tail) :] = np.frombuffer(tail, np.uint8)
    return rows


def sentences(count: int, seed: int) -> list[str]:
    """English sentences from the documentation of Python's own modules."""
    found: set[str] = set()
    for module in sorted(
        m.name for m in pkgutil.iter_modules() if m.name in sys.stdlib_module_names
    ):
        if module.startswith("_") or module in {"antigravity", "this", "idlelib", "turtledemo"}:
            continue
        source = next(
            (Path(p) / f"{module}.py" for p in sys.path if (Path(p) / f"{module}.py").is_file()),
            None,
        )
        if source is None:
            continue
        for text in re.findall(r'"""(.*?)"""', source.read_text("utf-8", "ignore"), re.DOTALL):
            for sentence in re.split(r"(?<=[.!?])\s+", inspect.cleandoc(text)):
                plain = " ".join(sentence.split())
                if 30 < len(plain) < 160 and plain[0].isupper() and plain.endswith("."):
                    found.add(plain)
    rng = np.random.default_rng(seed)
    return [str(s) for s in rng.permutation(sorted(found))[:count]]
