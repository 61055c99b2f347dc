"""The lists of a message, counted from its bytes: never fewer than the parser finds."""

from __future__ import annotations

import time

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from billaged.doors.json_codec import decode_json
from billaged.model.errors import InvalidField
from billaged.wire.billing.v1 import billing_pb2 as pb
from billaged.wire.billing.v1 import usage_stream_pb2 as stream_pb
from billaged.wire.counting import check_lists, items_bound

TYPES = (
    pb.SendMetricsBatchRequest,
    pb.SendHeartbeatRequest,
    pb.NotifyVmStoppedRequest,
    stream_pb.WatchSummariesRequest,
)


def longest_list(message: Message) -> int:
    return max((len(value) for field, value in message.ListFields() if field.is_repeated), default=0)


def varint(number: int, padding: int = 0) -> bytes:
    """A number on the wire; with padding, in more bytes than it needs."""
    parts = []
    while number > 127 or padding:
        parts.append(number & 127 | 128)
        number >>= 7
        if number == 0 and padding:
            padding -= 1
            if padding == 0:
                break
    return bytes([*parts, number])


def field(number: int, wire_type: int, content: bytes, padding: int) -> bytes:
    tag = varint(number << 3 | wire_type, padding)
    match wire_type:
        case 0:
            return tag + varint(len(content) * 1_000)
        case 1:
            return tag + content.ljust(8, b"\0")[:8]
        case 2:
            return tag + varint(len(content), padding) + content
        case 5:
            return tag + content.ljust(4, b"\0")[:4]
        case _:
            return tag + varint(number << 3 | 4)


fields = st.builds(
    field, st.integers(1, 5), st.sampled_from((0, 1, 2, 2, 2, 3, 5)), st.binary(max_size=3), st.integers(0, 2)
)
messages = st.lists(st.one_of(fields, st.just(b"\x1a\x00"), st.just(b"\x12\x00"), st.just(b"\x0a\x00")), max_size=30)


@given(st.sampled_from(TYPES), st.one_of(messages.map(b"".join), st.binary(max_size=40)), st.integers(0, 20))
def test_it_is_exact(message_type: type[Message], payload: bytes, items_max: int) -> None:
    try:
        longest = longest_list(message_type.FromString(payload))
    except DecodeError:
        longest = -1
    try:
        check_lists(payload, message_type, items_max)
    except InvalidField as error:
        assert longest == -1 or longest > items_max
        assert error.field in ("metrics", "active_vms", "customer_ids", "vm_ids")
    else:
        assert longest <= items_max
    assert longest <= items_bound(payload, message_type)


@pytest.mark.parametrize(
    "payload",
    [
        b"\x1a\x00" * 19 + b"\x1a",
        b"\x1a\x00" * 19 + b"\x1a\xff\xff\xff\xff\x0f",
        b"\x1a" + b"\xff" * 2**21,
        b"\x1a\x00" * 20 + b"\xff" * 2**21,
        b"\x1a" * 20 + b"\x18" + b"\x9a" * 2**21,
    ],
)
def test_bytes_that_are_no_message_are_for_the_parser_to_tell(payload: bytes) -> None:
    begun = time.process_time()
    check_lists(payload, pb.SendMetricsBatchRequest, 20)
    assert time.process_time() - begun < 1
    with pytest.raises(DecodeError):
        pb.SendMetricsBatchRequest.FromString(payload)


def test_fields_that_no_message_has_so_many_of_are_not_counted_for_ever() -> None:
    payload = b"\x70\x1a" * 2**20
    with pytest.raises(InvalidField, match="more than 1000 fields beside its lists"):
        check_lists(payload, pb.SendMetricsBatchRequest, 100)
    # Where they cannot be items there is nothing to count.
    check_lists(b"\x70\x01" * 2**20, pb.SendMetricsBatchRequest, 100)


# --- the same of JSON, which need not be exact -----------------------------------------


@pytest.mark.parametrize(
    ("item", "message_type", "name"),
    [
        (b'{"timestamp":"2025-11-21T08:00:00Z","cpuTimeNanos":"1"}', pb.SendMetricsBatchRequest, "metrics"),
        (b'"vm-1"', pb.SendHeartbeatRequest, "activeVms"),
        (b'"vm-1"', stream_pb.WatchSummariesRequest, "vmIds"),
    ],
)
def test_json_with_as_many_as_may_come_passes(item: bytes, message_type: type[Message], name: str) -> None:
    text = b'{"%s":[%s]}' % (name.encode(), b",".join([item] * 5_000))
    assert longest_list(message_type.FromString(decode_json(text, message_type, 5_000))) == 5_000
    with pytest.raises(InvalidField, match="holds more than the 100 that may come at once") as caught:
        decode_json(text, message_type, 100)
    assert caught.value.field in ("metrics", "active_vms", "customer_ids or vm_ids")


@pytest.mark.parametrize(
    ("text", "field", "problem"),
    [
        (b'{"vmId":"a","vmId":"a"}', "vmId", "is there twice"),
        (b'{"vmId":"' + b"v" * 1_001 + b'"}', "vmId", "longer than 1000"),
        (b'{"vmId":["a","' + b"v" * 1_001 + b'"]}', "vmId", "longer than 1000"),
        (b'{"vmId":' + b"[" * 500 + b"]" * 500 + b"}", "vmId", "expected string"),
        (b'{"vmId":' + b'{"a":' * 990 + b"1" + b"}" * 990 + b"}", "", "nested too deep"),
        (b"{" + b",".join(b'"%d":1' % number for number in range(101)) + b"}", "", "an object of 101 fields"),
    ],
)
def test_json_that_no_request_is_written_like_is_refused(text: bytes, field: str, problem: str) -> None:
    with pytest.raises(InvalidField) as caught:
        decode_json(text, pb.NotifyVmStoppedRequest, 0)
    assert caught.value.field == field
    assert problem in caught.value.problem
