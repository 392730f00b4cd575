"""Token buckets of the vendor's rates, and a check of recorded starts against such a rate.

Pure: time is an argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

# Requests a second and burst of each project and route; the other routes are unlimited.
QUOTAS = {"/v1/batch": (5, 20), "/v1/track": (50, 200)}


@dataclass
class Bucket:
    """A token bucket, full at first."""

    rate: float
    burst: float
    tokens: float = field(default=-1)
    at: float = 0

    def take(self, now: float) -> float:
        """Take a token and return 0, or return the seconds until the next token."""
        if self.tokens < 0:
            self.tokens, self.at = self.burst, now
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0
        return (1 - self.tokens) / self.rate


def over_rate(starts: list[float], rate: float, slack: float) -> int:
    """Return by how many requests the fullest window exceeds `rate * w + slack`, at least 0."""
    worst, least = 0.0, math.inf
    for index, start in enumerate(sorted(starts)):
        # In the window from start i to start j there are j - i + 1 requests.
        least = min(least, index - rate * start)
        worst = max(worst, index - rate * start - least + 1 - slack)
    return math.ceil(worst)
