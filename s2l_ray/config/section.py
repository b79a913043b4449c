"""The base class of every section of a run file."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Section(BaseModel):
    """A frozen block of the run file; a key we do not know is an error, not a no-op."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
    operational: ClassVar[frozenset[str]] = frozenset()
    """Keys that are no part of a fingerprint by their own value."""
    indirect: ClassVar[frozenset[str]] = frozenset()
    """Those of them that change results through other inputs, such as the contents of files."""
    added: ClassVar[frozenset[str]] = frozenset()
    """Keys that came later and whose defaults change nothing: at their defaults they are no part of
    a fingerprint, so that what was finished without them stays finished."""
    as_before: ClassVar[Mapping[str, Any]] = {}
    """Keys that came later and whose defaults change results: the value with which a stage does
    what it did before. At that value they are no part of a fingerprint."""


def default_of(section: Section, key: str) -> Any:
    return type(section).model_fields[key].get_default(call_default_factory=True)


def listed(value: Any) -> Any:
    """Return a single text as a list of one."""
    return [value] if isinstance(value, str) else value


Listed = Annotated[list[str], BeforeValidator(listed)]
"""A list of texts; a single text becomes a list of one."""
