"""Messages between the grading pool and its workers: 4 bytes of length, then ASCII JSON.

JSON, not pickle: reading a message can never run anything.
"""

import json
import os
import struct
from typing import Any

MAX_BYTES = 16 * 2**20
_LENGTH = struct.Struct(">I")


def encode(message: dict[str, Any]) -> bytes:
    """A message as bytes. Lone surrogates survive; they are escaped."""
    body = json.dumps(message, ensure_ascii=True).encode("ascii")
    if len(body) > MAX_BYTES:
        raise ValueError(f"a message of {len(body)} bytes; expected at most {MAX_BYTES}.")
    return _LENGTH.pack(len(body)) + body


def take(buffer: bytearray) -> dict[str, Any] | None:
    """Remove the first whole message from a buffer and return it; None while it is incomplete."""
    if len(buffer) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(buffer)
    end = _LENGTH.size + length
    if length > MAX_BYTES:
        raise ValueError(f"a message of {length} bytes; expected at most {MAX_BYTES}.")
    if len(buffer) < end:
        return None
    message = json.loads(bytes(buffer[_LENGTH.size : end]))
    del buffer[:end]
    return message


def receive(fd: int, buffer: bytearray) -> dict[str, Any] | None:
    """Wait for the next message; None at the end of the stream."""
    while True:
        message = take(buffer)
        if message is not None:
            return message
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            return None
        buffer += chunk


def send(fd: int, message: dict[str, Any]) -> None:
    """Write a message wholly to a blocking descriptor."""
    data = memoryview(encode(message))
    while data:
        data = data[os.write(fd, data) :]
