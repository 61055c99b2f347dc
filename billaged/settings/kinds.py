"""Kinds of values: how each is written in the environment, checked, and written back.

A kind stands in a field's annotation, ``Annotated[int, Variable("PORT"), Whole(0, 65_535)]``;
pydantic asks it to read text and to check what was read. ``write`` is the inverse
of ``read``: what it prints is accepted again and means the same.
"""

from __future__ import annotations

import ipaddress
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import GetCoreSchemaHandler, SecretStr
from pydantic_core import CoreSchema, core_schema

from billaged.model.time import format_duration, parse_duration

# No number is longer; beyond this a value is only pasted in by mistake, and int()
# of thousands of digits is slow or refused.
_SCALAR_CHARACTERS_MAX: Final = 64
_SHOWN_CHARACTERS_MAX: Final = 60


def printable(text: str) -> str:
    """The text on one line that no terminal misunderstands: control characters and stray bytes escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shown(text: str) -> str:
    """The text in quotes for a message, cut where it is long."""
    short = text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "…"
    return f"'{printable(short)}'"


class Kind(ABC):
    """How a value is written and which values are allowed. Errors are ValueErrors for the operator to read."""

    @property
    @abstractmethod
    def values(self) -> str:
        """What is allowed, for messages and the documentation."""

    @abstractmethod
    def read(self, text: str) -> object:
        """The value that the text means."""

    def check(self, value: Any) -> Any:
        """The value, if it is allowed."""
        return value

    def write(self, value: Any) -> str:
        """The text that ``read`` turns into this value."""
        return str(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        checked = core_schema.no_info_after_validator_function(self.check, handler(source))
        return core_schema.no_info_before_validator_function(self._read_text, checked)

    def _read_text(self, value: object) -> object:
        return self.read(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class _Ranged(Kind):
    """A kind with a lowest and a highest value, both allowed."""

    @property
    @abstractmethod
    def bounds(self) -> tuple[Any, Any]: ...

    @property
    def values(self) -> str:
        low, high = self.bounds
        return f"{self.write(low)} to {self.write(high)}"

    def read(self, text: str) -> object:
        if len(text) > _SCALAR_CHARACTERS_MAX:
            raise ValueError(f"{shown(text)} is too long; it must be {self.values}")
        return self.read_scalar(text)

    @abstractmethod
    def read_scalar(self, text: str) -> object: ...

    def check(self, value: Any) -> Any:
        low, high = self.bounds
        if not low <= value <= high:
            raise ValueError(f"{self.write(value)} is out of range; it must be {self.values}")
        return value


@dataclass(frozen=True)
class Whole(_Ranged):
    """A whole number."""

    low: int
    high: int

    @property
    def bounds(self) -> tuple[int, int]:
        return self.low, self.high

    def read_scalar(self, text: str) -> int:
        if not re.fullmatch(r"-?[0-9]+", text):
            raise ValueError(f"{shown(text)} is not a whole number; it must be {self.values}")
        return int(text)


@dataclass(frozen=True)
class Fraction(_Ranged):
    """A decimal number, exact as written."""

    low: Decimal
    high: Decimal

    @property
    def bounds(self) -> tuple[Decimal, Decimal]:
        return self.low, self.high

    def read_scalar(self, text: str) -> Decimal:
        if not re.fullmatch(r"-?[0-9]+(\.[0-9]{1,12})?", text):
            raise ValueError(
                f"{shown(text)} is not a decimal number; write it like 0.5 (up to 12 places), {self.values}"
            )
        return Decimal(text)

    def write(self, value: Decimal) -> str:
        return f"{value:f}"


@dataclass(frozen=True)
class Duration(_Ranged):
    """Nanoseconds, written Go-style. ``divides``: the value must fit into this a whole number of times."""

    low: str
    high: str
    divides: str = ""

    @property
    def bounds(self) -> tuple[int, int]:
        return parse_duration(self.low), parse_duration(self.high)

    @property
    def values(self) -> str:
        return super().values + (f", a divisor of {self.divides}" if self.divides else "")

    def read_scalar(self, text: str) -> int:
        if text == "0":  # as Go has it
            return 0
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
            raise ValueError(f"{shown(text)} has no unit; did you mean {text}s? It must be {self.values}")
        return parse_duration(text)

    def check(self, value: int) -> int:
        super().check(value)
        if self.divides and parse_duration(self.divides) % value:
            raise ValueError(f"{self.write(value)} does not divide {self.divides}; it must be {self.values}")
        return value

    def write(self, value: int) -> str:
        return format_duration(value)


_SIZE_BYTES: Final = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1, "": 1}
_SIZE: Final = re.compile(r"([0-9]+)(TiB|GiB|MiB|KiB|B|)")


@dataclass(frozen=True)
class Size(_Ranged):
    """Bytes, written as a plain number or with a unit: ``1048576``, ``256MiB``."""

    low: int
    high: int

    @property
    def bounds(self) -> tuple[int, int]:
        return self.low, self.high

    def read_scalar(self, text: str) -> int:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ValueError(f"{shown(text)} is not a size; write it like 1048576, 512KiB, 256MiB or 4GiB")
        return int(match[1]) * _SIZE_BYTES[match[2]]

    def write(self, value: int) -> str:
        for unit, unit_bytes in _SIZE_BYTES.items():
            if value and unit_bytes > 1 and value % unit_bytes == 0:
                return f"{value // unit_bytes}{unit}"
        return str(value)


@dataclass(frozen=True)
class Choice(Kind):
    """One word of a few, in any case."""

    choices: Sequence[str]

    @property
    def values(self) -> str:
        return ", ".join(self.choices[:-1]) + f" or {self.choices[-1]}"

    def read(self, text: str) -> str:
        if text.lower() not in self.choices:
            raise ValueError(f"{shown(text)} is none of the choices; it must be {self.values}")
        return text.lower()


_FLAGS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Flag(Kind):
    """Yes or no."""

    @property
    def values(self) -> str:
        return "true or false"

    def read(self, text: str) -> bool:
        if (value := _FLAGS.get(text.lower())) is None:
            raise ValueError(f"{shown(text)} is neither; it must be {self.values}")
        return value

    def write(self, value: bool) -> str:
        return "true" if value else "false"


@dataclass(frozen=True)
class Secret(Kind):
    """What only its holder may know: never shown, not even in an error."""

    characters_min: int

    @property
    def values(self) -> str:
        return f"at least {self.characters_min} visible ASCII characters"

    def read(self, text: str) -> SecretStr:
        return SecretStr(text)

    def check(self, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if len(text) < self.characters_min or not all("!" <= character <= "~" for character in text):
            raise ValueError(f"is not what a secret should be; it must be {self.values}")
        return value


@dataclass(frozen=True)
class File(Kind):
    """A path. Whether anything is there shows when it is used."""

    @property
    def values(self) -> str:
        return "a path"

    def read(self, text: str) -> Path:
        return Path(text)


_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*"
)


@dataclass(frozen=True)
class Host(Kind):
    """An address to listen on: IPv4, IPv6 without brackets, or a host name."""

    @property
    def values(self) -> str:
        return "an IP address or a host name, without port"

    def read(self, text: str) -> str:
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            # Digits and dots alone are an IP address with a slip in it, never a name.
            if re.fullmatch(r"[0-9.]+", text) or not _HOST_NAME.fullmatch(text):
                raise ValueError(f"{shown(text)} is no address; it must be {self.values}") from None
        return text


_TEXT_CHARACTERS_MAX: Final = 255


@dataclass(frozen=True)
class Text(Kind):
    """A name that people read."""

    @property
    def values(self) -> str:
        return f"1 to {_TEXT_CHARACTERS_MAX} visible characters"

    def read(self, text: str) -> str:
        return text.strip()

    def check(self, value: str) -> str:
        if not 1 <= len(value) <= _TEXT_CHARACTERS_MAX or not value.isprintable():
            raise ValueError(f"{shown(value)} is no name; it must be {self.values}")
        return value


@dataclass(frozen=True)
class Endpoint(Kind):
    """Where a service is: ``host:port``, or an http or https URL."""

    @property
    def values(self) -> str:
        return "host:port, or a URL that begins with http:// or https://"

    def read(self, text: str) -> str:
        return text.strip()

    def check(self, value: str) -> str:
        if any(character in value for character in "@?#"):
            # Not quoted: it may hold a password.
            raise ValueError("must be without user, password, ? and #; headers go into OTEL_EXPORTER_OTLP_HEADERS")
        try:
            url = urlsplit(self.url(value))
            port = url.port
        except ValueError:
            raise ValueError(f"{shown(value)} is no endpoint; it must be {self.values}") from None
        whole = value.isprintable() and " " not in value
        if not whole or url.scheme not in ("http", "https") or not url.hostname or port == 0:
            raise ValueError(f"{shown(value)} is no endpoint; it must be {self.values}")
        if "://" not in value and (port is None or url.path):
            raise ValueError(f"{shown(value)} has no port; it must be {self.values}")
        return value

    @staticmethod
    def url(value: str) -> str:
        """The URL of an endpoint, without a slash at its end."""
        return (value if "://" in value else f"http://{value}").rstrip("/")


_LEVELS: Final = ("debug", "info", "warning", "error")
_LOGGER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*")


@dataclass(frozen=True)
class Levels(Kind):
    """Levels of loggers: ``billaged.audit=warning,uvicorn=info``."""

    @property
    def values(self) -> str:
        return f"logger=level with commas between, each level {', '.join(_LEVELS[:-1])} or {_LEVELS[-1]}"

    def read(self, text: str) -> str:
        return text.strip()

    def check(self, value: str) -> str:
        for logger, level in self.pairs(value).items():
            if not _LOGGER.fullmatch(logger) or level not in _LEVELS:
                raise ValueError(f"{shown(f'{logger}={level}')} is no level of a logger; it must be {self.values}")
        return value

    @staticmethod
    def pairs(value: str) -> dict[str, str]:
        """The level of each logger."""
        parts = (part.partition("=") for part in value.split(","))
        return {logger.strip(): level.strip().lower() for logger, _, level in parts}
