"""All settings together: read, checked, and listed with where each came from."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, TypeVar

from pydantic import ValidationError

from billaged.model.errors import SettingError
from billaged.settings.coming import COMING
from billaged.settings.kinds import Secret, printable
from billaged.settings.names import under_own_names
from billaged.settings.section import PREFIX, Section, SectionField, Variable
from billaged.settings.sections import (
    Aggregation,
    Grpc,
    Http,
    Intake,
    Log,
    Metrics,
    Otel,
    Score,
    Storage,
    Summaries,
    Tls,
)

Source = Literal["environment", "default"]
AnySection = TypeVar("AnySection", bound=Section)

HIDDEN: Final = "***"


class SettingLine(NamedTuple):
    """One setting for ``config show`` and the documentation. Texts are what the environment takes.

    ``section`` and ``attribute`` are empty for a name of a later version; ``value``
    and ``default`` are None where nothing is set, ``value`` is ``***`` for a secret.
    """

    name: str
    section: str
    attribute: str
    value: str | None
    source: Source
    default: str | None
    values: str
    description: str
    secret: bool
    not_yet: bool


@dataclass(frozen=True)
class Settings:
    """Everything an operator can set. ``Settings()`` is the defaults.

    ``sources`` says for each name where its value came from. ``not_yet`` has the names
    that are set although they change nothing in this version; the daemon logs them.
    """

    grpc: Grpc = field(default_factory=Grpc)
    http: Http = field(default_factory=Http)
    tls: Tls = field(default_factory=Tls)
    storage: Storage = field(default_factory=Storage)
    intake: Intake = field(default_factory=Intake)
    aggregation: Aggregation = field(default_factory=Aggregation)
    summaries: Summaries = field(default_factory=Summaries)
    score: Score = field(default_factory=Score)
    log: Log = field(default_factory=Log)
    metrics: Metrics = field(default_factory=Metrics)
    otel: Otel = field(default_factory=Otel)
    # Names of a later version that are set, with what may be shown of them.
    coming: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    # Names set in the environment.
    given: frozenset[str] = frozenset()

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Settings:
        """The settings of an environment; names that begin otherwise are none of ours.

        Raises:
            SettingError: one line for each unknown name and each bad value, which it names.
        """
        reading = _Reading(environ)
        settings = cls(
            grpc=reading.section(Grpc),
            http=reading.section(Http),
            tls=reading.section(Tls),
            storage=reading.section(Storage),
            intake=reading.section(Intake),
            aggregation=reading.section(Aggregation),
            summaries=reading.section(Summaries),
            score=reading.section(Score),
            log=reading.section(Log),
            metrics=reading.section(Metrics),
            otel=reading.section(Otel),
            coming=reading.coming(),
            given=frozenset(reading.environ),
        )
        reading.refuse_unknown()
        # Only what is right by itself can be compared.
        problems = reading.problems or list(_disagreements(settings))
        if problems:
            raise SettingError("\n".join(problems))
        return settings

    @property
    def sections(self) -> Mapping[str, Section]:
        """The sections by their attribute."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Section)}

    @property
    def sources(self) -> Mapping[str, Source]:
        """Where each value came from, by full name."""
        return {line.name: line.source for line in self.lines()}

    @property
    def not_yet(self) -> tuple[str, ...]:
        """Full names that are set and do nothing in this version."""
        return tuple(line.name for line in self.lines() if line.not_yet and line.source == "environment")

    def lines(self) -> Iterator[SettingLine]:
        """Every setting with its value in force, then the names of a later version that are set."""
        for section_name, section in self.sections.items():
            for item in section.described_fields():
                secret = isinstance(item.kind, Secret)
                value = item.write(getattr(section, item.attribute))
                yield SettingLine(
                    name=item.variable.name,
                    section=section_name,
                    attribute=item.attribute,
                    value=HIDDEN if secret and value is not None else value,
                    source="environment" if item.variable.name in self.given else "default",
                    default=item.write(item.default),
                    values=item.kind.values,
                    description=item.description,
                    secret=secret,
                    not_yet=item.variable.not_yet,
                )
        for name, text in self.coming.items():
            coming = COMING[name.removeprefix(PREFIX)]
            yield SettingLine(
                name, "", "", text, "environment", None, "", coming.description, coming.secret, not_yet=True
            )


class _Reading:
    """One pass over an environment. Takes names out as they are understood; the rest is unknown."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ, self._written, problems = under_own_names(environ)
        self.known: dict[str, str | None] = {}  # every name, with the text of its default
        self.problems = list(problems)

    def section(self, kind: type[AnySection]) -> AnySection:
        """The section from its variables; its defaults where there are problems, which are noted."""
        by_attribute = {item.attribute: item for item in kind.described_fields()}
        texts = {}
        for attribute, item in by_attribute.items():
            name = item.variable.name
            self.known[name] = item.write(item.default)
            if name in self.environ and self._filled(name):
                texts[attribute] = self.environ[name]
        try:
            return kind.model_validate(texts)
        except ValidationError as error:
            self.problems += self._explained(error, by_attribute)
            return kind()

    def coming(self) -> Mapping[str, str]:
        """The names of a later version that are set, secrets hidden."""
        texts = {}
        for suffix, coming in COMING.items():
            name = PREFIX + suffix
            self.known[name] = None
            if name in self.environ and self._filled(name):
                texts[name] = HIDDEN if coming.secret else self.environ[name]
        return MappingProxyType(texts)

    def refuse_unknown(self) -> None:
        """Note each name that nothing asked for, with the nearest one that exists. To be called last."""
        for name in sorted(self.environ.keys() - self.known.keys()):
            near = difflib.get_close_matches(
                name.upper().removeprefix(PREFIX), [known.removeprefix(PREFIX) for known in self.known], n=1
            )
            advice = f"did you mean {PREFIX}{near[0]}?" if near else "'billaged config show' lists the names"
            self.problems.append(f"{printable(self._said(name))}: unknown setting; {advice}")

    def _filled(self, name: str) -> bool:
        if self.environ[name].strip():
            return True
        default = self.known[name]
        self.problems.append(
            f"{self._said(name)}: is empty; unset it for the default {printable(default)}"
            if default
            else f"{self._said(name)}: is empty; unset it"
        )
        return False

    def _said(self, name: str) -> str:
        """The name as it was given."""
        return self._written.get(name, name)

    def _explained(self, error: ValidationError, by_attribute: Mapping[str, SectionField]) -> Iterator[str]:
        """A line for each problem. Checks across a section's fields name their variables themselves."""
        for problem in error.errors(include_url=False):
            text = str(problem.get("ctx", {}).get("error", problem["msg"]))
            place = problem["loc"]
            yield f"{self._said(by_attribute[str(place[0])].variable.name)}: {text}" if place else text


_EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})


def _overlap(address: str, other: str) -> bool:
    return address == other or not _EVERYWHERE.isdisjoint({address, other})


def _disagreements(settings: Settings) -> Iterator[str]:
    """A line for each two sections that cannot hold together."""
    grpc, http, metrics, intake = settings.grpc, settings.http, settings.metrics, settings.intake
    taken = [("gRPC", Variable("PORT").name, grpc.port, grpc.address)]
    others = [("HTTP", Variable("HTTP_PORT").name, http.port, http.address)]
    if metrics.enabled:
        others.append(("Prometheus", Variable("OTEL_PROMETHEUS_PORT").name, metrics.port, metrics.address))
    for server, variable, port, address in others:
        for holder, its_variable, its_port, its_address in taken:
            if port == its_port != 0 and _overlap(address, its_address):
                yield f"{variable}: {port} is the port of {holder} ({its_variable}) on the same address; choose another"
        taken.append((server, variable, port, address))
    if intake.queue_max_bytes < grpc.max_message_bytes:
        yield (
            f"{PREFIX}QUEUE_MAX_BYTES: {intake.queue_max_bytes} bytes do not hold one largest message"
            f" ({PREFIX}MAX_MESSAGE_BYTES, {grpc.max_message_bytes} bytes)"
        )
