"""HTTP/1.1 answers, read to their end: interim ones are skipped, the body is whole or None.

The status alone says which answers count, so an unreadable body keeps it and is noted as a flaw.
An answer is the `last` of its connection unless every byte of it was understood and none is left:
whatever follows would be taken for the answer to the next request.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mm_tasks.client.connection import Connection

# A larger head or body, before or after decoding, is no answer of this API.
ANSWER_BYTES_MAX = 64 * 1024
# Answers with a status of 1xx before the final one.
INTERIM_MAX = 100

_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: .*)?", re.DOTALL)
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SWITCHING_PROTOCOLS = 101
_WITHOUT_BODY = {_SWITCHING_PROTOCOLS, 204, 304}
# Arguments of zlib. Some servers leave out the header that "deflate" should have.
_WINDOW_BITS = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}


@dataclass(slots=True)
class Answer:
    """A final answer. `fields` are the headers by name in lower case.

    `body` is None if it is unreadable; `flaw` is the reason in one word, as `flaw_of` returns it.
    """

    status: int
    fields: dict[str, list[str]]
    is_last: bool
    body: bytes | None = None
    flaw: str = ""

    def value(self, name: str) -> str:
        """Return the first value of a header, or ''."""
        return self.fields.get(name, [""])[0]

    def tokens(self, name: str) -> list[str]:
        """Return the members, in lower case, of all lists with this name."""
        parts = ",".join(self.fields.get(name, [])).lower().split(",")
        return [part.strip() for part in parts if part.strip()]


def flaw_of(error: Exception) -> str:
    """Return one word for an answer that could not be read."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, OSError | EOFError):
        return "cut"
    return "unusable" if isinstance(error, ValueError) else "error"


def read_answer(connection: Connection) -> Answer:
    """Return the final answer.

    Raises `TimeoutError`, another `OSError`, `EOFError` or `ValueError` if its head is unreadable.
    """
    answer = read_head(connection)
    try:
        answer.body = _decoded(answer, _read_body(connection, answer))
    except Exception as error:  # noqa: BLE001 - the status is known, and decides
        answer.flaw = flaw_of(error)
    answer.is_last |= bool(answer.flaw) or connection.has_unread
    return answer


def read_head(connection: Connection) -> Answer:
    """Return the final answer without its body; raises as `read_answer`."""
    for _ in range(INTERIM_MAX + 1):
        line = _STATUS_LINE.fullmatch(connection.read_line())
        if line is None:
            msg = "no status line"
            raise ValueError(msg)
        status, (fields, is_odd) = int(line[2]), _read_fields(connection)
        if status // 100 != 1 or status == _SWITCHING_PROTOCOLS:
            answer = Answer(status, fields, is_last=is_odd or line[1] != b"1")
            framing = answer.tokens("content-length") + answer.tokens("transfer-encoding")
            is_framed = len(framing) == 1 or status in _WITHOUT_BODY
            closes = "close" in answer.tokens("connection") or status == _SWITCHING_PROTOCOLS
            answer.is_last |= closes or not is_framed
            return answer
    msg = "too many interim answers"
    raise ValueError(msg)


def _read_fields(connection: Connection) -> tuple[dict[str, list[str]], bool]:
    """Return the header fields, and whether a line is none; such a line is ignored."""
    fields: dict[str, list[str]] = {}
    is_odd, size = False, 0
    while line := connection.read_line():
        size += len(line)
        if size > ANSWER_BYTES_MAX:
            msg = "too long a head"
            raise ValueError(msg)
        name, colon, value = line.partition(b":")
        if colon and _NAME.fullmatch(name):
            fields.setdefault(name.decode().lower(), []).append(value.decode("latin-1").strip())
        else:
            is_odd = True
    return fields, is_odd


def _read_body(connection: Connection, answer: Answer) -> bytes:
    if answer.status in _WITHOUT_BODY:
        return b""
    if codings := answer.tokens("transfer-encoding"):
        _require(codings == ["chunked"])
        return _read_chunks(connection)
    lengths = set(answer.tokens("content-length"))
    if not lengths:
        return connection.read_rest(ANSWER_BYTES_MAX)
    length = lengths.pop()
    _require(not lengths)
    return connection.read_exactly(_size(length, 10))


def _read_chunks(connection: Connection) -> bytes:
    body = b""
    while size := _size(connection.read_line().split(b";")[0].decode().strip(), 16):
        _require(len(body) + size <= ANSWER_BYTES_MAX)
        body += connection.read_exactly(size)
        _require(connection.read_line() == b"")
    _read_fields(connection)
    return body


def _size(text: str, base: int) -> int:
    _require(re.fullmatch(r"[0-9a-fA-F]{1,16}", text) is not None)
    size = int(text, base)
    _require(size <= ANSWER_BYTES_MAX)
    return size


def _decoded(answer: Answer, body: bytes) -> bytes:
    codings = [name for name in answer.tokens("content-encoding") if name != "identity"]
    if not codings or not body:
        return body
    for window_bits in _WINDOW_BITS.get(",".join(codings), ()):
        decoder = zlib.decompressobj(window_bits)
        try:
            decoded = decoder.decompress(body, ANSWER_BYTES_MAX + 1)
        except zlib.error:
            continue
        if decoder.eof and not decoder.unused_data and len(decoded) <= ANSWER_BYTES_MAX:
            return decoded
    msg = "not decodable"
    raise ValueError(msg)


def _require(is_kept: bool) -> None:  # noqa: FBT001 - an assertion about a stranger's bytes
    if not is_kept:
        msg = "not HTTP/1.1"
        raise ValueError(msg)
