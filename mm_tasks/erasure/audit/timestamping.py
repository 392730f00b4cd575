"""Time stamps of checkpoints by an authority, as RFC 3161 says.

A token shows that the log had this size and head at its time, whatever happens to the log and
to the other checkpoints. Two files for each: `<size>.txt`, the line that was stamped, and
`<size>.tsr`, the answer of the authority. A stranger verifies them without our code:

    openssl ts -verify -data 120.txt -in 120.tsr -CAfile authority.pem

`timestamped` in the log has the SHA-256 of the answer, `timestamp_failed` the reason of a
failure, a fixed word. The signature is not verified here, since the authority's certificate is
for the person to trust who verifies it.
"""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.erasure.audit import log as audit_log
from mm_tasks.erasure.audit import protocol
from mm_tasks.erasure.audit.database import create_private_file
from mm_tasks.errors import ConfigurationError
from mm_tasks.events import ids
from mm_tasks.timestamps import stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from redis import Redis

    from mm_tasks.erasure.audit.checkpoints import Checkpoint
    from mm_tasks.erasure.audit.session import AuditSession

# After a failure, which adds an entry to the log.
_RETRY_S = 3600.0
_ANSWER_WAIT_S = 10
_ANSWER_BYTES_MAX = 64 * 1024
_GRANTED = {0, 1}
_QUERY = {"Content-Type": "application/timestamp-query"}


class Turns:
    """When the next checkpoint is stamped, over all processes of a project."""

    def __init__(self, redis: Redis, project: str) -> None:
        """Take the client; read nothing."""
        self._redis = redis
        self._key = ProjectKeys(project).timestamp

    def claim(self, retry_s: float) -> bool:
        """Return whether a stamp is due; if so, nobody else's is for this time."""
        return bool(self._redis.set(self._key, "1", px=round(retry_s * 1000), nx=True))

    def wait(self, interval_s: float) -> None:
        """Let the next stamp be due after this time."""
        self._redis.set(self._key, "1", px=round(interval_s * 1000))


class Timestamper:
    """A checkpoint hook that has one checkpoint stamped in each interval.

    After a failure it tries again with a checkpoint an hour later. `record` appends an entry about
    the store.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        record: Callable[[str, Mapping[str, object]], None],
        turns: Turns,
        interval_s: float,
    ) -> None:
        """Take the parts; raise `ConfigurationError` without the extra `timestamp`."""
        try:
            import rfc3161_client
        except ModuleNotFoundError:
            msg = "MM_TASKS_TIMESTAMP_URL: needs pip install mm-tasks[timestamp]"
            raise ConfigurationError(msg) from None
        self._library: Any = rfc3161_client
        self._url = url
        self._folder = folder
        self._record = record
        self._turns = turns
        self._interval_s = interval_s

    def __call__(self, checkpoint: Checkpoint) -> None:
        """Have a checkpoint stamped if one is due; raises if that failed, after recording it."""
        if not self._turns.claim(_RETRY_S):
            return
        line = "{} {} {}\n".format(*checkpoint).encode()
        try:
            answer = self._answer(line)
        except Exception as error:
            outcome = _word(error)
            self._record("timestamp_failed", {"size": checkpoint.size, "outcome": outcome})
            raise
        create_private_file(self._folder / f"{checkpoint.size}.txt", line)
        create_private_file(self._folder / f"{checkpoint.size}.tsr", answer)
        token = hashlib.sha256(answer).hexdigest()
        self._record("timestamped", {"size": checkpoint.size, "token": token})
        self._turns.wait(self._interval_s)

    def _answer(self, line: bytes) -> bytes:
        """Return the authority's answer, which is about this line and this request."""
        builder = self._library.TimestampRequestBuilder().data(line)
        query = builder.hash_algorithm(self._library.HashAlgorithm.SHA256).build()
        request = urllib.request.Request(self._url, query.as_bytes(), _QUERY)  # noqa: S310 - http or https, by the setting
        with urllib.request.urlopen(request, timeout=_ANSWER_WAIT_S) as response:  # noqa: S310 - as above
            answer: bytes = response.read(_ANSWER_BYTES_MAX)
        decoded = self._library.decode_timestamp_response(answer)
        if decoded.status not in _GRANTED:
            raise _RefusedError
        info = decoded.tst_info
        digest = hashlib.sha256(line).digest()
        if (info.message_imprint.message, info.nonce) != (digest, query.nonce):
            raise _OtherAnswerError
        return answer


class _RefusedError(Exception):
    """The authority refused the request."""


class _OtherAnswerError(Exception):
    """The answer is about another line or request."""


def _word(error: Exception) -> str:
    match error:
        case _RefusedError():
            return "refused"
        case _OtherAnswerError():
            return "other_answer"
        case urllib.error.HTTPError(code=status):
            return f"status:{status}"
        case OSError():
            return "unavailable"
        case _:
            return "unusable"


def record(session: AuditSession, kind: str, details: Mapping[str, object]) -> None:
    """Append an entry about the store, in a transaction of its own."""
    protocol.check_store_entry(kind, details)
    with session.transaction() as connection:
        at = stamp(session.log.database.now(connection))
        key = session.pseudonyms
        about = (ids.uuid7(), audit_log.NO_SUBJECT, key.epoch)
        entry = audit_log.StoredEntry(*about, kind, dict(details), at)
        audit_log.append(connection, entry, key.seals)
