"""Post-processing through the real service: declared in a recipe, built, served, read."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edged import infer
from edged.client import Endpoint, InferClient
from edged.client.messages import tensor_message
from edged.errors import ReplyError
from edged.infer import InferOptions
from tests.doubles.broker import Mosquitto
from tests.doubles.service import ROOT, running_service

DECLARED = """
[postprocess]
kind = "classes"
activation = "softmax"
k = 3
"""


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """A service on digits that answers labels, behind a mosquitto of its own."""
    folder = tmp_path_factory.mktemp("service")
    with (
        Mosquitto(folder / "broker") as broker,
        running_service(folder, broker.host, broker.port, recipe=DECLARED) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def digits() -> dict[str, np.ndarray]:
    """The held-out digits: ``image`` and ``labels``."""
    with np.load(ROOT / "calib" / "digits" / "heldout.npz") as file:
        return {name: file[name] for name in file.files}


def ask(endpoint: Endpoint, images: np.ndarray, *outputs: str, classes: int = 0) -> Any:
    """The outputs of one request."""
    with InferClient(endpoint) as client:
        message = tensor_message({"image": images}, outputs=outputs, classes=classes)
        return client.wait(client.submit("digits", message), "digits", 30.0).outputs


def test_a_request_gets_labels_and_may_ask_for_the_tensor(
    endpoint: Endpoint, digits: dict[str, np.ndarray]
) -> None:
    """More samples than a batch holds: labels are those of the logits, whichever is asked for."""
    images = digits["image"][:100]

    found = ask(endpoint, images)
    both = ask(endpoint, images, "logits", "top_labels")

    assert list(found) == ["top_labels", "top_classes", "top_scores"]
    assert found["top_scores"].shape == (100, 3)
    assert list(both) == ["logits", "top_labels"]
    best = both["logits"].argmax(axis=1)
    assert found["top_classes"][:, 0].tolist() == best.tolist()
    assert [bytes(row[0]) for row in both["top_labels"]] == [str(n).encode() for n in best]
    powers = np.exp(both["logits"] - both["logits"].max(axis=1, keepdims=True))
    expected = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)
    np.testing.assert_allclose(found["top_scores"][:, 0], expected, atol=1e-5)


def test_what_cannot_be_asked_for_is_an_error(
    endpoint: Endpoint, digits: dict[str, np.ndarray]
) -> None:
    """An output that there is not, and the classes of classes."""
    one = digits["image"][:1]

    with pytest.raises(ReplyError, match="it has logits, top_labels, top_classes, top_scores"):
        ask(endpoint, one, "probabilities")
    with pytest.raises(ReplyError, match="classification is for logits"):
        ask(endpoint, one, "top_scores", classes=2)


def test_infer_prints_labels(
    endpoint: Endpoint, digits: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """As text a line for each sample, as JSON a short document for each."""
    content, out = io.BytesIO(), io.StringIO()
    Image.fromarray(digits["image"][0][..., 0]).save(content, "png")
    label = str(digits["labels"][0])

    assert infer.run(
        InferOptions(endpoint, "digits", "-"), out=out, stdin=io.BytesIO(content.getvalue())
    ) == 0  # fmt: skip
    np.save(tmp_path / "two.npy", digits["image"][:2])
    document = io.StringIO()
    options = InferOptions(
        endpoint, "digits", str(tmp_path / "two.npy"), input_name="image", json=True
    )
    assert infer.run(options, out=document) == 0

    assert f"\n  sample 0: {label} (" in out.getvalue()
    results = json.loads(document.getvalue())["results"]
    assert len(results) == 2
    assert results[0][0]["label"] == label
    assert results[0][0]["score"] > 0.5
