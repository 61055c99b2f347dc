"""A section: frozen fields, each with its variable, its kind, its default and its documentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict

from billaged.settings.kinds import Kind

PREFIX: Final = "UNKEY_BILLAGED_"


@dataclass(frozen=True)
class Variable:
    """The environment variable of a field, without its prefix.

    ``not_yet``: its value is checked but changes nothing in this version.
    """

    suffix: str
    not_yet: bool = False

    @property
    def name(self) -> str:
        return PREFIX + self.suffix


class SectionField(NamedTuple):
    """What is known about one field of a section. ``default`` is a value, not a text."""

    attribute: str
    variable: Variable
    kind: Kind
    description: str
    default: object

    def write(self, value: object) -> str | None:
        """The text of a value, None where there is none."""
        return None if value is None else self.kind.write(value)


class Section(BaseModel):
    """Settings of one concern. The text under a field is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    @classmethod
    def described_fields(cls) -> Iterator[SectionField]:
        """The fields in the order of the class.

        Raises:
            TypeError: a field lacks its variable or its kind.
        """
        for attribute, field in cls.model_fields.items():
            variable = next((item for item in field.metadata if isinstance(item, Variable)), None)
            kind = next((item for item in field.metadata if isinstance(item, Kind)), None)
            if variable is None or kind is None:
                raise TypeError(f"{cls.__name__}.{attribute} lacks its variable or its kind")
            description = " ".join((field.description or "").split())
            yield SectionField(attribute, variable, kind, description, field.default)
