"""Value classes that are frozen for the type checker, and cost nothing at run time.

A frozen dataclass assigns each field through a guard, a tenth of a microsecond each; a request
passes through seventy of them (docs/benchmarks.md). mypy refuses the assignment all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from typing_extensions import dataclass_transform

Class = TypeVar("Class")


@dataclass_transform(frozen_default=True)
def value(cls: type[Class]) -> type[Class]:
    """A dataclass with slots, compared and hashed by its fields."""
    return dataclass(slots=True, unsafe_hash=True)(cls)


@dataclass_transform(frozen_default=True, eq_default=False)
def identity(cls: type[Class]) -> type[Class]:
    """A dataclass with slots that equals only itself, for instance because it holds arrays."""
    return dataclass(slots=True, eq=False)(cls)
