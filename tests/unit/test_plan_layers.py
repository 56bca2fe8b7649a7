"""Which layers are INT8, from what TensorRT tells; and those that fell back, with the reason."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.build.plan import (
    PlanJob,
    PlanLayer,
    ProfileShape,
    fallen_back,
    for_dla,
    layers_from_inspector,
    profiles_of,
)
from edged.errors import BuildError
from edged.recipe import InputSpec

# As TensorRT 8 and 10 write it, and as 11 does.
OLD = {
    "Name": "conv1 + relu1", "LayerType": "CaskConvolution",
    "Inputs": [{"Name": "x", "Format/Datatype": "Thirty-two wide channel vectorized row major "
                "Int8 format"}],
    "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}],
    "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]",
}  # fmt: skip
NEW = {
    "Name": "gemm", "LayerType": "gemm",
    "Inputs": [{"Name": "y", "Format": "Row major linear", "Datatype": "Half"}],
    "Outputs": [{"Name": "z", "Format": "Row major linear", "Datatype": "Float"}],
    "Metadata": "[ONNX Layer: fc]",
}  # fmt: skip


def test_a_dla_is_given_one_batch_size() -> None:
    """It takes no other shape than the one that it was built for: the largest batch."""
    profile = {"x": ProfileShape((1, 4), (4, 4), (8, 4))}
    job = for_dla(PlanJob(precision="fp16", profiles=(profile,)), 1)
    assert job.dla_core == 1
    assert job.profiles == ({"x": ProfileShape((8, 4), (8, 4), (8, 4))},)


def test_inspector_tells_datatypes_in_either_form() -> None:
    """One field in words, or two."""
    text = json.dumps({"Layers": [OLD, NEW], "Bindings": []})
    first, second = layers_from_inspector(text)
    assert (first.inputs, first.outputs, first.nodes) == (("Int8",), ("Half",), ("conv1", "relu1"))
    assert (first.linear, first.int8) == (True, True)
    assert (second.inputs, second.outputs, second.int8) == (("Half",), ("Float",), False)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"Layers": ["names only"]}', '{"Layers": null}', '{"Layers": [{}, 3]}'],
)
def test_inspector_without_details_is_no_error(text: str) -> None:
    """Layers without datatypes are not taken for INT8."""
    assert not any(layer.int8 for layer in layers_from_inspector(text))


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["Layers", "Name", "Inputs", "Outputs", "Datatype", "Metadata"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_inspector_of_any_form_is_read_or_left(document: object) -> None:
    """Whatever a later version writes: no crash."""
    for layer in layers_from_inspector(json.dumps(document)):
        assert isinstance(layer.name, str)


def test_layer_that_fell_back_is_named_with_how_it_runs() -> None:
    """One has a float kernel, one is in no layer at all."""
    layers = layers_from_inspector(json.dumps({"Layers": [OLD, NEW]}))
    found = fallen_back(["conv1", "fc", "gone"], layers)
    assert list(found) == ["fc", "gone"]
    assert "layer 'gemm' (gemm) reads Half: the builder has no INT8 kernel" in found["fc"]
    assert found["gone"].startswith("no layer names this node")


def test_nothing_fell_back_where_nothing_is_known() -> None:
    """Silence is told elsewhere; it is no fallback."""
    assert fallen_back(["conv1"], ()) == {}
    assert fallen_back([], (PlanLayer("a", "gemm", ("Half",), ("Half",), ("a",)),)) == {}


def test_profile_is_refused_before_the_build() -> None:
    """An optimum above the largest batch."""
    inputs = [InputSpec(name="x", datatype="FP32", shape=(4,))]
    assert profiles_of(inputs, 8)[0]["x"].optimum == (4, 4)
    assert profiles_of(inputs, 8, 8)[0]["x"].optimum == (8, 4)
    with pytest.raises(BuildError, match="must have 1 <= minimum <= optimum <= maximum"):
        profiles_of(inputs, 8, 9)
