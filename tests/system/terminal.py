"""A terminal whose other end the test holds."""

from __future__ import annotations

import contextlib
import os


def read_to_end(terminal):
    """Return the rest of the output, once the last process that has the terminal is gone.

    One read returns no more than a page. At the end Linux raises EIO (pty(7)).
    """
    output = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(terminal, 65536):
            output += chunk
    return output
