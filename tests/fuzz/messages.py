"""One fuzzed message: made from (seed, number, epoch), saved and read again."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

from billaged.wire.billing.v1 import billing_pb2 as pb
from fuzz import mutate, mutate_json
from fuzz.honest import METHODS, Moment, request
from fuzz.wire import encode

Door = Literal["grpc", "http-proto", "http-json"]
SERVICES = ("billing.v1.BillingService", "billaged.v1.BillingService")
# HTTP costs this sender several times what gRPC does.
_HTTP_SHARE = 0.06
# What would be taken as it is, so that there is something to bill; the rest is of both kinds of mutations.
_HONEST_SHARE = 0.3
_BYTES_SHARE = 0.25
# gRPC takes 4 MiB.
_TOO_LARGE_SHARE = 0.00002
_TOO_LARGE_BYTES = 4 * 2**20 + 1


class FuzzedMessage(NamedTuple):
    number: int
    door: Door
    service: str
    method: str
    body: bytes

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.method}"


def message(seed: int, number: int, epoch_ns: int) -> FuzzedMessage:
    chance = Random(seed << 40 | number)
    moment = Moment(number, epoch_ns)
    wanted = request(chance, moment)
    # Seldom what another method takes.
    method = wanted.method if chance.random() < 0.98 else chance.choice(METHODS)
    service = SERVICES[chance.random() < 0.2]
    door: Door = "grpc"
    if chance.random() < _HTTP_SHARE:
        door = chance.choice(("http-proto", "http-json"))
    if door == "http-json":
        honest = getattr(pb, f"{wanted.method}Request").FromString(encode(wanted.fields))
        return FuzzedMessage(number, door, service, method, mutate_json.mutated(chance, mutate_json.as_json(honest)))
    drawn = chance.random()
    if drawn < _TOO_LARGE_SHARE:
        body = bytes(_TOO_LARGE_BYTES)
    elif drawn < _HONEST_SHARE:
        body = encode(wanted.fields)
    elif drawn < _HONEST_SHARE + _BYTES_SHARE:
        body = mutate.octets(chance, encode(wanted.fields), moment)
    else:
        body = mutate.structure(chance, wanted, moment)
    return FuzzedMessage(number, door, service, method, body)


def save(one: FuzzedMessage, seed: int, epoch_ns: int, why: str, folder: Path) -> Path:
    """Its bytes, and beside them, as JSON, all else; the latter's path is what ``load`` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"seed-{seed}-message-{one.number}.json"
    path.with_suffix(".bin").write_bytes(one.body)
    about = {name: value for name, value in one._asdict().items() if name != "body"}
    path.write_text(json.dumps(about | {"seed": seed, "epoch_ns": epoch_ns, "why": why}, indent=2) + "\n")
    return path


def load(path: Path) -> FuzzedMessage:
    about = json.loads(path.read_text())
    body = path.with_suffix(".bin").read_bytes()
    return FuzzedMessage(about["number"], about["door"], about["service"], about["method"], body)
