"""The protobuf of a model without its large initializers: they stay in the file, and what is parsed points there.

Works on the wire format (https://protobuf.dev/programming-guides/encoding) because a parsed message holds a copy of
every weight, and so does each copy of the message. A tensor left behind is one with external data whose file is the
model itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from onnx import TensorProto

LEAST_BYTES = 1024
"""Payloads below this stay in the message."""
LEFT_TYPES = {
    getattr(TensorProto, name) for name in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8", "INT4", "UINT4")
}
"""Element types of weights; tensors of others take part in arithmetic on shapes."""

_GRAPH, _INITIALIZER, _RAW_DATA, _DATA_TYPE, _EXTERNAL, _LOCATION = 7, 5, 9, 2, 13, 14
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


class _Field(NamedTuple):
    number: int
    wire: int
    start: int
    """Where its key begins; the payload lies from `body` to `stop`."""
    body: int
    stop: int


def without_weights(data: memoryview, location: str) -> bytes:
    """The serialised model in `data`, whose large initializers are turned into references to the file `location`.

    Raises ValueError where `data` is no protobuf.
    """

    def graph(start: int, stop: int) -> bytes:
        return _rewritten(data, start, stop, _INITIALIZER, lambda a, b: _tensor(data, a, b, location))

    return _rewritten(data, 0, len(data), _GRAPH, graph)


def _rewritten(data: memoryview, start: int, stop: int, number: int, rewrite: Callable[[int, int], bytes]) -> bytes:
    """The message between `start` and `stop`, with every large field `number` rewritten."""
    parts: list[bytes | memoryview] = []
    copied = position = start
    while position < stop:
        found = _field(data, position, stop)
        position = found.stop
        if found.number == number and found.wire == _BYTES and found.stop - found.body >= LEAST_BYTES:
            changed = rewrite(found.body, found.stop)
            key = _varint_bytes(number << 3 | _BYTES) + _varint_bytes(len(changed))
            parts += [data[copied : found.start], key, changed]
            copied = found.stop
    return b"".join([*parts, data[copied:stop]])


def _tensor(data: memoryview, start: int, stop: int, location: str) -> bytes:
    """One tensor: the same, or without its payload and with a reference to it."""
    fields = []
    position = start
    while position < stop:
        fields.append(_field(data, position, stop))
        position = fields[-1].stop
    payloads = [f for f in fields if f.number == _RAW_DATA]
    types = [_varint(data, f.body, stop)[0] for f in fields if f.number == _DATA_TYPE]
    is_plain = not any(f.number in (_EXTERNAL, _LOCATION) for f in fields)
    if len(payloads) != 1 or len(types) != 1 or types[0] not in LEFT_TYPES or not is_plain:
        return bytes(data[start:stop])
    payload = payloads[0]
    size = payload.stop - payload.body
    if size < LEAST_BYTES:
        return bytes(data[start:stop])
    reference = TensorProto(data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(payload.body)), ("length", str(size))):
        reference.external_data.add(key=key, value=value)
    return b"".join([data[start : payload.start], data[payload.stop : stop], reference.SerializeToString()])


def _field(data: memoryview, start: int, stop: int) -> _Field:
    key, body = _varint(data, start, stop)
    number, wire = key >> 3, key & 7
    if wire == _VARINT:
        end = _varint(data, body, stop)[1]
    elif wire == _BYTES:
        size, body = _varint(data, body, stop)
        end = body + size
    elif wire in (_EIGHT, _FOUR):
        end = body + (8 if wire == _EIGHT else 4)
    else:
        raise ValueError(f"wire type {wire} at byte {start}")
    if end > stop:
        raise ValueError(f"the field at byte {start} ends beyond its message")
    return _Field(number, wire, start, body, end)


def _varint(data: memoryview, position: int, stop: int) -> tuple[int, int]:
    """The number, and the position after it."""
    value = shift = 0
    while position < stop and shift < 70:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise ValueError(f"no number ends at byte {position}")


def _varint_bytes(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*result, value])
