"""The MiniLM sentence encoder as ONNX, written from the weights of its package, and its tokens.

The package holds weights for PyTorch; the graph is that of BERT (Devlin et al., 2019), six layers
of 384, mean pooling over the tokens, and unit length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

HEADS, WIDTH, LAYERS = 12, 384, 6
_DTYPES = {"F32": np.float32, "I64": np.int64, "F16": np.float16}


def tokens(vocabulary: Path, sentences: Sequence[str], length: int) -> dict[str, npt.NDArray[Any]]:
    """WordPiece tokens of lower-cased ASCII text: ``ids`` and ``mask``, int64 and float32."""
    known = {word: at for at, word in enumerate(vocabulary.read_text("utf-8").splitlines())}
    ids = np.zeros((len(sentences), length), np.int64)
    for row, sentence in enumerate(sentences):
        found = [known["[CLS]"]]
        for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", sentence.lower()):
            found += _pieces(known, word)
        found = [*found[: length - 1], known["[SEP]"]]
        ids[row, : len(found)] = found
    return {"ids": ids, "mask": (ids > 0).astype(np.float32)}


def _pieces(known: dict[str, int], word: str) -> list[int]:
    found, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in known), 0)
        if not end:
            return [known["[UNK]"]]
        found.append(known[prefix + word[start:end]])
        start = end
    return found


def read_weights(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All tensors of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return {
        name: np.frombuffer(
            data[8 + size + item["data_offsets"][0] : 8 + size + item["data_offsets"][1]],
            _DTYPES[item["dtype"]],
        ).reshape(item["shape"])
        for name, item in header.items()
        if name != "__metadata__"
    }


class _Writer:
    def __init__(self, weights: dict[str, npt.NDArray[Any]]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def node(self, operator: str, inputs: list[str], name: str, **options: Any) -> str:
        self.nodes.append(
            helper.make_node(operator, inputs, [name], name=f"{name}_node", **options)
        )
        return name

    def linear(self, source: str, name: str) -> str:
        weight = self.constant(f"{name}.w", self.weights[f"{name}.weight"].T.astype(np.float32))
        bias = self.constant(f"{name}.b", self.weights[f"{name}.bias"].astype(np.float32))
        return self.node("Add", [self.node("MatMul", [source, weight], f"{name}.mm"), bias], name)

    def norm(self, source: str, name: str) -> str:
        scale = self.constant(f"{name}.scale", self.weights[f"{name}.weight"].astype(np.float32))
        bias = self.constant(f"{name}.bias", self.weights[f"{name}.bias"].astype(np.float32))
        return self.node("LayerNormalization", [source, scale, bias], name, epsilon=1e-12)

    def heads(self, source: str, name: str, *, turned: bool = False) -> str:
        shape = self.constant("split", np.array([0, 0, HEADS, WIDTH // HEADS], np.int64))
        split = self.node("Reshape", [source, shape], f"{name}.split")
        perm = [0, 2, 3, 1] if turned else [0, 2, 1, 3]
        return self.node("Transpose", [split], f"{name}.heads", perm=perm)

    def gelu(self, source: str, name: str) -> str:
        root = self.constant("root2", np.array(np.sqrt(2), np.float32))
        one, half = (self.constant(f"c{v}", np.array(v, np.float32)) for v in (1.0, 0.5))
        error = self.node("Erf", [self.node("Div", [source, root], f"{name}.d")], f"{name}.e")
        gate = self.node("Mul", [self.node("Add", [error, one], f"{name}.a"), half], f"{name}.h")
        return self.node("Mul", [source, gate], name)

    def block(self, x: str, at: int, mask: str) -> str:
        stem = f"encoder.layer.{at}"
        query, key, value = (
            self.linear(x, f"{stem}.attention.self.{part}") for part in ("query", "key", "value")
        )
        scores = self.node(
            "MatMul",
            [self.heads(query, query), self.heads(key, key, turned=True)],
            f"{stem}.scores",
        )
        root = self.constant("root", np.array(np.sqrt(WIDTH / HEADS), np.float32))
        scaled = self.node("Div", [scores, root], f"{stem}.scaled")
        masked = self.node("Add", [scaled, mask], f"{stem}.masked")
        share = self.node("Softmax", [masked], f"{stem}.share", axis=-1)
        mixed = self.node("MatMul", [share, self.heads(value, value)], f"{stem}.mixed")
        back = self.node("Transpose", [mixed], f"{stem}.back", perm=[0, 2, 1, 3])
        shape = self.constant("join", np.array([0, 0, WIDTH], np.int64))
        joined = self.node("Reshape", [back, shape], f"{stem}.joined")
        made = self.linear(joined, f"{stem}.attention.output.dense")
        added = self.node("Add", [made, x], f"{stem}.attended")
        x = self.norm(added, f"{stem}.attention.output.LayerNorm")
        wide = self.gelu(self.linear(x, f"{stem}.intermediate.dense"), f"{stem}.gelu")
        added = self.node("Add", [self.linear(wide, f"{stem}.output.dense"), x], f"{stem}.fed")
        return self.norm(added, f"{stem}.output.LayerNorm")


def sentence_encoder(weights: dict[str, npt.NDArray[Any]], length: int) -> onnx.ModelProto:
    """``ids`` int64 and ``mask`` float32, both [batch, length] -> ``embedding`` [batch, 384]."""
    w = _Writer({name.removeprefix("bert."): value for name, value in weights.items()})
    words = w.constant("words", w.weights["embeddings.word_embeddings.weight"].astype(np.float32))
    places = w.weights["embeddings.position_embeddings.weight"][:length]
    places = places + w.weights["embeddings.token_type_embeddings.weight"][0]
    looked_up = w.node("Gather", [words, "ids"], "looked_up")
    summed = w.node("Add", [looked_up, w.constant("places", places.astype(np.float32))], "summed")
    x = w.norm(summed, "embeddings.LayerNorm")
    axes = w.constant("axes12", np.array([1, 2], np.int64))
    opened = w.node("Unsqueeze", ["mask", axes], "opened")
    one, low = (w.constant(n, np.array(v, np.float32)) for n, v in (("one", 1), ("low", -10000)))
    closed = w.node("Mul", [w.node("Sub", [one, opened], "closed"), low], "bias")
    for at in range(LAYERS):
        x = w.block(x, at, closed)
    last = w.constant("axis2", np.array([2], np.int64))
    column = w.node("Unsqueeze", ["mask", last], "column")
    kept = w.node("Mul", [x, column], "kept")
    axis1 = w.constant("axis1", np.array([1], np.int64))
    total = w.node("ReduceSum", [kept, axis1], "total", keepdims=0)
    count = w.node("ReduceSum", [column, axis1], "count", keepdims=0)
    mean = w.node("Div", [total, count], "mean")
    norm = w.node("ReduceL2", [mean], "length", axes=[1], keepdims=1)
    w.node("Div", [mean, norm], "embedding")
    infos = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", length]),
        helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", length]),
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH]),
    ]
    graph = helper.make_graph(w.nodes, "minilm", infos[:2], infos[2:], list(w.constants.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model
