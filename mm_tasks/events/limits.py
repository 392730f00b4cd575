"""The vendor's limits, each with its source.

The source is the vendor's API reference ("One event", "Calls"). Characters are
counted as UTF-16 code units, which is how the vendor's JavaScript counts them.
"""

from __future__ import annotations

BATCH_EVENTS_MAX = 500
# "256 KB" may mean 256 000 or 262 144 bytes; the smaller is always safe.
BATCH_BYTES_MAX = 256_000
# {"events":[]} around the events of a batch. Each event but the first adds a comma.
BATCH_BRACKETS_BYTES = len(b'{"events":[]}')

EVENT_NAME_CHARACTERS_MAX = 128
ID_CHARACTERS_MAX = 128
USER_ID_CHARACTERS_MAX = 256
URL_CHARACTERS_MAX = 2048
# Ours, to bound parsing: a time with microseconds and an offset has 32.
TIMESTAMP_CHARACTERS_MAX = 64
# "8 KB after JSON.stringify"; above it the vendor refuses or silently truncates.
PROPERTIES_BYTES_MAX = 8192
PROPERTIES_DEPTH_MAX = 32
# Number.MAX_SAFE_INTEGER: a larger integer changes when JavaScript reads it.
INTEGER_MAX = 2**53 - 1

# The vendor's own bucket on /v1/batch; our rate and burst must stay below it.
VENDOR_BATCH_RATE_PER_S = 5
VENDOR_BATCH_BURST = 20

# Of ours: the vendor must be called within the month that Art. 12(3) allows.
GRACE_MAX_S = 27 * 86_400
