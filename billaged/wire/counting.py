"""How many items a message's lists hold, told from its bytes.

An item takes two bytes on the wire and 80 and more once it is decoded, so who sends
a message of empty ones makes the daemon hold 40 times what came in. They are counted
first, which takes no memory at all.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from billaged.model.errors import InvalidField

# What a later version of a message may have beside its lists; nobody has this many.
_OTHERS_MAX: Final = 1_000

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_MORE: Final = 0x80  # of a varint's bytes, all but the last have this bit
_VARINT_BYTES_MAX: Final = 10


def items_bound(payload: bytes, message_type: type[Message]) -> int:
    """A number that the items of all its lists together cannot exceed: cheap, and rarely far above them."""
    # Every item has its tag, whose first byte may say that more follow, of which none is needed.
    return sum(payload.count(tag) + payload.count(tag | _MORE) for tag in _list_tags(message_type.DESCRIPTOR))


def check_lists(payload: bytes, message_type: type[Message], items_max: int) -> None:
    """Refuse a message whose lists are too long, before it is decoded.

    Exact: what this lets pass has no list of more than ``items_max``. Bytes that are no
    message are let pass as well, for the parser to tell.

    Raises:
        InvalidField: a list holds more, or there are far more other fields than the message has.
    """
    # An item takes two bytes at least.
    if len(payload) <= 2 * items_max or items_bound(payload, message_type) <= items_max:
        return
    tags = _list_tags(message_type.DESCRIPTOR)
    left = dict.fromkeys(tags, items_max)
    others_left = _OTHERS_MAX
    position, end = 0, len(payload)
    try:
        while position < end:
            tag = payload[position]
            position += 1
            if tag >= _MORE:
                tag, position = _varint(payload, position - 1)
            if tag in left:
                if not left[tag]:
                    raise InvalidField(tags[tag], f"holds more than the {items_max} that may come at once")
                position = _after_value(payload, position, _BYTES)
                count, position = _short_items(payload, position, tag, left[tag] - 1)
                left[tag] -= 1 + count
            else:
                if not others_left:
                    raise InvalidField("", f"the request has more than {_OTHERS_MAX} fields beside its lists")
                others_left -= 1
                position = _after_value(payload, position, tag & 7)
    except IndexError:
        return


def _short_items(payload: bytes, position: int, tag: int, items_max: int) -> tuple[int, int]:
    """How many items of less than 128 bytes begin here, one after the other, and where they end.

    Nearly all are of that kind, so they are counted in the tightest loop there is. Raises IndexError at the end of
    the message.
    """
    if tag >= _MORE:
        return 0, position
    for count in range(items_max):
        if payload[position] != tag or (length := payload[position + 1]) >= _MORE:
            return count, position
        position += length + 2
    return items_max, position


def _after_value(payload: bytes, position: int, wire_type: int) -> int:
    """Where the next field begins. What is within a group is counted like what is beside it.

    Raises:
        IndexError: these are no bytes of a message.
    """
    if wire_type == _BYTES:
        length = payload[position]
        position += 1
        if length >= _MORE:
            length, position = _varint(payload, position - 1)
        return position + length
    if wire_type == _VARINT:
        while payload[position] >= _MORE:
            position += 1
        return position + 1
    if wire_type == _FIXED64:
        return position + 8
    if wire_type == _FIXED32:
        return position + 4
    if wire_type > _FIXED32:
        raise IndexError("a wire type that is none")
    return position


def _varint(payload: bytes, position: int) -> tuple[int, int]:
    """A number, and where it ends. Raises IndexError where it does not."""
    number = 0
    for nth, byte in enumerate(payload[position : position + _VARINT_BYTES_MAX]):
        number |= (byte & 0x7F) << 7 * nth
        if byte < _MORE:
            return number, position + nth + 1
    raise IndexError("a varint without end")


@cache
def _list_tags(descriptor: Descriptor) -> dict[int, str]:
    """The lists of a message, by the number that stands before each of their items."""
    return {field.number << 3 | _BYTES: field.name for field in descriptor.fields if field.is_repeated}
