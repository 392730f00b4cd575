"""The vendor's limits, each with its source. Facts only; nothing here is computed.

Source of all: the vendor's API reference ("One event", "Calls"). Characters are
counted as UTF-16 code units, which is how the vendor's JavaScript counts them.
"""

from __future__ import annotations

BATCH_EVENTS_MAX = 500
# "256 KB" is not said to be 256 000 or 262 144 bytes; the smaller is always safe.
BATCH_BYTES_MAX = 256_000
# {"events":[]} around the events of a batch; one comma more for each but the first.
BATCH_BRACKETS_BYTES = len(b'{"events":[]}')

EVENT_NAME_CHARACTERS_MAX = 128
ID_CHARACTERS_MAX = 128
USER_ID_CHARACTERS_MAX = 256
URL_CHARACTERS_MAX = 2048
# "8 KB after JSON.stringify"; over it the vendor refuses or silently truncates.
PROPERTIES_BYTES_MAX = 8192
PROPERTIES_DEPTH_MAX = 32
# Number.MAX_SAFE_INTEGER: a larger integer changes when JavaScript reads it.
INTEGER_MAX = 2**53 - 1

# The vendor's own bucket on /v1/batch, which our rate and burst must stay below.
VENDOR_BATCH_RATE_PER_S = 5
VENDOR_BATCH_BURST = 20
