"""Commands in the process of the test: a hundred processes would take minutes."""

import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from subprocess import CompletedProcess

import pytest

from mm_tasks import cli, runtime


def in_this_process(env, words, stdin):
    """Run a command as its own process would, and return how it ended."""
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    code = 0
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(env):
            patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["mm-tasks", *words])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((stdin or "").encode())))
        patch.setattr(sys, "path", [*env.get("PYTHONPATH", "").split(":"), *sys.path])
        patch.setattr(runtime._process, "runtime", None)  # noqa: SLF001 - read once a process
        with redirect_stdout(out), redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
                if isinstance(end.code, str):
                    err.write(f"{end.code}\n")
    out.flush()
    return CompletedProcess(words, code, out.buffer.getvalue().decode(), err.getvalue())
