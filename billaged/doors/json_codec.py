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

_UNKNOWN: Final = re.compile(
    r'Message type "[^"]*" has no field named "(?P<name>.*)" at "[^".]*\.?(?P<path>[^"]*)"', re.DOTALL
)


def decode_json(text: bytes, message_type: type[Message]) -> bytes:
    """The serialized message that the JSON text holds.

    Raises:
        InvalidField: the text is no JSON, or no such message; an unknown field is named with its path.
    """
    message = message_type()
    try:
        json_format.Parse(text.decode("utf-8"), message)
    except UnicodeDecodeError as error:
        raise InvalidField("", f"the request is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise InvalidField("", "the request is not valid JSON of its type: nested too deep") from error
    except (json_format.ParseError, ValueError) as error:
        unknown = _UNKNOWN.search(str(error))
        if unknown is None:
            raise InvalidField("", f"the request is not valid JSON of its type: {error}") from error
        path = ".".join(part for part in unknown.group("path", "name") if part)
        raise InvalidField(path, "is not a field of this request") from error
    return message.SerializeToString()


def encode_json(message: Message) -> bytes:
    """JSON in the protobuf mapping: zeros printed, 64-bit integers as strings."""
    text = json_format.MessageToJson(message, always_print_fields_with_no_presence=True, indent=None)
    return text.encode()
