"""The order of precisions, and what is done when one cannot be had."""

from __future__ import annotations

import pytest

from edged.build.precision import Ladder, Variant, attempt_all, ladders
from edged.build_options import EngineOptions
from edged.errors import BuildError, BuildStoppedError, EngineError, EngineRefusedError

MIXED, WIDE = Variant("int8", fp16_rest=True), Variant("int8", fp16_rest=True, wide=True)
INT8, FP16, FP32 = Variant("int8"), Variant("fp16"), Variant("fp32")


@pytest.mark.parametrize(
    ("options", "kind", "expected"),
    [
        (EngineOptions(), "gpu", ((MIXED, WIDE, INT8), (FP16,), (FP32,))),
        (EngineOptions(fp16_rest=False), "gpu", ((INT8,), (FP16,), (FP32,))),
        (EngineOptions(), "cpu", ((INT8,), (FP32,))),
        (EngineOptions(precision="int8"), "gpu", ((MIXED, WIDE, INT8, FP16, FP32),)),
        (EngineOptions(precision="fp16"), "gpu", ((FP16, FP32),)),
        (EngineOptions(precision="fp32"), "gpu", ((FP32,),)),
        (EngineOptions(precision="int8", fallback=False), "gpu", ((MIXED,),)),
        (EngineOptions(precision="fp16", fallback=False), "gpu", ((FP16,),)),
        (EngineOptions(precision="int8"), "cpu", ((INT8, FP32),)),
        (EngineOptions(precision="fp16"), "cpu", ((FP16, FP32),)),
        (EngineOptions(precision="int8", fallback=False), "cpu", ((INT8,),)),
    ],
)
def test_auto_builds_each_precision_and_a_wish_only_what_it_falls_back_to(
    options: EngineOptions, kind: str, expected: tuple[Ladder, ...]
) -> None:
    """What was asked comes first and FP32 last; a CPU has no use for FP16."""
    assert ladders(options, gpu=kind == "gpu") == expected


def test_variants_are_named_for_people() -> None:
    """As notes and progress show them."""
    variants = (MIXED, WIDE, INT8, FP16, FP32)
    assert [str(variant) for variant in variants] == [
        "INT8 with an FP16 rest", "INT8 with an FP16 rest and FP32 sums", "INT8", "FP16", "FP32",
    ]  # fmt: skip
    assert [variant.half for variant in variants] == [True, True, False, True, False]


@pytest.mark.parametrize("error", [BuildError, EngineError, EngineRefusedError])
def test_next_precision_is_taken_and_the_reason_kept(error: type[BuildError]) -> None:
    """Whatever an engine fails with on this device: building, loading, running, its gates."""
    tried: list[Variant] = []

    def attempt(variant: Variant) -> str:
        tried.append(variant)
        if variant.precision == "int8":
            raise error(f"CHECK(dtype) failed in {variant}")
        return f"plan in {variant}"

    found = attempt_all(((MIXED, INT8, FP16, FP32),), attempt)
    assert tried == [MIXED, INT8, FP16]
    assert found.passed == {FP16: "plan in FP16"}
    assert found.notes() == (
        "INT8 with an FP16 rest could not be had: CHECK(dtype) failed in INT8 with an FP16 rest",
        "INT8 could not be had: CHECK(dtype) failed in INT8",
    )


def test_each_ladder_gives_one_variant() -> None:
    """So that precisions can be compared; a second form of one is built only if the first fails."""
    found = attempt_all(((MIXED, INT8), (FP16,), (FP32,)), str)
    assert list(found.passed) == [MIXED, FP16, FP32]
    assert found.notes() == ()


def test_a_ladder_that_gives_nothing_leaves_the_others() -> None:
    """A device without INT8 still compares FP16 with FP32, and says why."""

    def attempt(variant: Variant) -> str:
        if variant.precision == "int8":
            raise BuildError("no INT8 kernels")
        return str(variant)

    found = attempt_all(((MIXED, INT8), (FP16,), (FP32,)), attempt)
    assert list(found.passed) == [FP16, FP32]
    assert list(found.failed) == [MIXED, INT8]


def test_build_that_is_stopped_is_not_tried_again() -> None:
    """Killed, out of memory or cancelled: the next precision would end the same way."""
    tried: list[Variant] = []

    def attempt(variant: Variant) -> str:
        tried.append(variant)
        raise BuildStoppedError("the build was cancelled")

    with pytest.raises(BuildStoppedError, match="cancelled"):
        attempt_all(((MIXED,), (FP16,), (FP32,)), attempt)
    assert tried == [MIXED]


def test_fault_of_our_own_is_not_taken_for_the_devices() -> None:
    """Only errors that say something of the engine lead to the next one."""

    def attempt(variant: Variant) -> str:
        raise KeyError(variant)

    with pytest.raises(KeyError):
        attempt_all(((INT8, FP32),), attempt)


def test_every_reason_is_told_when_nothing_is_left() -> None:
    """One for each precision; a single one, or the same for all, is told once."""

    def differing(variant: Variant) -> str:
        raise BuildError(f"no {variant.precision} here")

    def alike(_variant: Variant) -> str:
        raise BuildError("no such operator")

    with pytest.raises(BuildError, match=r"^INT8: no int8 here; FP32: no fp32 here$"):
        attempt_all(((INT8, FP32),), differing)
    with pytest.raises(BuildError, match=r"^no such operator$"):
        attempt_all(((INT8,), (FP32,)), alike)
