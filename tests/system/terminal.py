"""A terminal that a test holds at its other end."""

from __future__ import annotations

import contextlib
import os


def to_its_end(terminal):
    """Whatever is still shown, until the last process that has the terminal is gone.

    One read gives no more than a page of it. After the last, Linux says EIO (pty(7)).
    """
    shown = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(terminal, 65536):
            shown += chunk
    return shown
