from __future__ import annotations

from tests.system.conftest import stack

__all__ = ["stack"]
