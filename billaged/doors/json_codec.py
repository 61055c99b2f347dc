"""The strict JSON codec: what a request does not have is refused, what a response has is printed.

protobuf's usual leniency would bill zero for a misspelt counter, silently; and leave
zeros out of answers, so that a reader cannot tell them from what does not exist.
"""

from __future__ import annotations

import re
from typing import Final

from google.protobuf import json_format
from google.protobuf.message import Message

from billaged.model.errors import InvalidField

# protobuf tells what it found in a sentence only. Where a sentence changes, the field is lost, never the refusal.
_UNKNOWN: Final = re.compile(
    r'Message type "[^"]*" has no field named "(?P<name>.*)" at "[^".]*\.?(?P<path>[^"]*)"', re.DOTALL
)
_WITHIN: Final = re.compile(r"Failed to parse (\w+) field: ")
_PLACE: Final = re.compile(r" at \w+\.(?P<path>\S+)$")


def decode_json(text: bytes, message_type: type[Message]) -> bytes:
    """The serialized message that the JSON text holds.

    Raises:
        InvalidField: the text is no JSON, or no such message; a wrong or unknown field is named with its path.
    """
    message = message_type()
    try:
        # protobuf takes an empty array for an empty object.
        if text.lstrip()[:1] not in (b"{", b""):
            raise InvalidField("", "the request must be a JSON object")
        json_format.Parse(text.decode("utf-8"), message)
    except UnicodeDecodeError as error:
        raise InvalidField("", f"the request is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise InvalidField("", "the request is nested too deep") from error
    except (json_format.ParseError, ValueError) as error:
        raise _invalid(str(error)) from error
    return message.SerializeToString()


def encode_json(message: Message) -> bytes:
    """JSON in the protobuf mapping: zeros printed, 64-bit integers as strings."""
    text = json_format.MessageToJson(message, always_print_fields_with_no_presence=True, indent=None)
    return text.encode()


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
