"""The strict JSON codec: what a request does not have is refused, what a response has is printed.

protobuf's usual leniency would bill zero for a misspelt counter, silently; and leave
zeros out of answers, so that a reader cannot tell them from what does not exist.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any, Final, NamedTuple

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from billaged.model.errors import InvalidField

# protobuf tells what it found in a sentence only. Where a sentence changes, the field is lost, never the refusal.
_UNKNOWN: Final = re.compile(
    r'Message type "[^"]*" has no field named "(?P<name>.*)" at "[^".]*\.?(?P<path>[^"]*)"', re.DOTALL
)
_WITHIN: Final = re.compile(r"Failed to parse (\w+) field: ")
_PLACE: Final = re.compile(r" at \w+\.(?P<path>\S+)$")

# No message has as many, or texts as long; a mistake that is smaller is told in protobuf's words.
_FIELDS_MAX: Final = 100
_TEXT_CHARACTERS_MAX: Final = 1_000
# What a request may have beyond what it can have, for the same reason.
_EXTRA_MAX: Final = 1_000


def decode_json(text: bytes, message_type: type[Message], items_max: int) -> bytes:
    """The serialized message that the JSON text holds; each of its lists may hold ``items_max``.

    What it costs is bounded by that. A list that is a little too long may pass.

    Raises:
        InvalidField: the text is no JSON, or no such message; a wrong or unknown field is named with its path.
    """
    message = message_type()
    # protobuf takes an empty array for an empty object.
    if text.lstrip()[:1] not in (b"{", b""):
        raise InvalidField("", "the request must be a JSON object")
    _check_size(text, _most(message_type.DESCRIPTOR), items_max)
    try:
        values = json.loads(text.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise InvalidField("", f"the request is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise InvalidField("", "the request is nested too deep") from error
    except ValueError as error:
        raise InvalidField("", f"the request is not valid JSON: {error}") from error
    try:
        json_format.ParseDict(values, message)
    except Exception as error:
        # Any: over some values of a wrong type protobuf stumbles.
        raise _invalid(str(error)) from error
    return message.SerializeToString()


def encode_json(message: Message) -> bytes:
    """JSON in the protobuf mapping: zeros printed, 64-bit integers as strings."""
    text = json_format.MessageToJson(message, always_print_fields_with_no_presence=True, indent=None)
    return text.encode()


class _Most(NamedTuple):
    """How many signs of each kind a message has in JSON, for each item that a list of it may hold."""

    lists: str
    objects: int
    commas: int


@cache
def _most(descriptor: Descriptor) -> _Most:
    lists = [field for field in descriptor.fields if field.is_repeated]
    items = [field.message_type for field in lists]
    return _Most(
        " or ".join(field.name for field in lists),
        sum(item is not None for item in items),
        sum(1 if item is None else len(item.fields) for item in items),
    )


def _check_size(text: bytes, most: _Most, items_max: int) -> None:
    """Refuse what has more values than the message can have, before they are made: each takes 50 bytes and more.

    No text of a message may have a brace, a bracket or a comma, so where they are too many it is invalid in any case.
    """
    objects, arrays, commas = text.count(b"{"), text.count(b"["), text.count(b",")
    if objects + arrays > most.objects * items_max + _EXTRA_MAX or commas > most.commas * items_max + _EXTRA_MAX:
        if most.lists:
            raise InvalidField(most.lists, f"holds more than the {items_max} that may come at once")
        raise InvalidField("", "the request holds more values than it has fields")
    # Where the items are objects, it is they that have the values.
    if most.objects and commas > most.commas * objects + _EXTRA_MAX:
        raise InvalidField("", "the request holds more values than it has fields")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict: no name twice, nothing that could only be refused later and at a high price."""
    if len(pairs) > _FIELDS_MAX:
        raise InvalidField("", f"the request holds an object of {len(pairs)} fields")
    values: dict[str, Any] = {}
    for name, value in pairs:
        if len(name) > _TEXT_CHARACTERS_MAX:
            raise InvalidField(name[:_TEXT_CHARACTERS_MAX], "is not a field of this request")
        if name in values:
            raise InvalidField(name, "is there twice")
        for item in value if type(value) is list else (value,):
            if type(item) is str and len(item) > _TEXT_CHARACTERS_MAX:
                raise InvalidField(name, f"must not be longer than {_TEXT_CHARACTERS_MAX} characters")
        values[name] = value
    return values


def _invalid(sentence: str) -> InvalidField:
    unknown = _UNKNOWN.search(sentence)
    if unknown is not None:
        path = ".".join(part for part in unknown.group("path", "name") if part)
        return InvalidField(path, "is not a field of this request")
    within = _WITHIN.findall(sentence)
    problem = _WITHIN.sub("", sentence).rstrip(".")
    place = _PLACE.search(problem)
    if place is not None:
        return InvalidField(place["path"], problem[: place.start()])
    if within:
        return InvalidField(".".join(within), problem)
    return InvalidField("", f"the request is not valid JSON of its type: {problem}")
