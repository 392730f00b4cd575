"""The options of `mm-tasks erasure show --receipt`, and the receipt that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mm_tasks import runtime
from mm_tasks.erasure.audit.checkpoints import CheckpointSinks
from mm_tasks.erasure.certificate.issuing import Audience, Form
from mm_tasks.erasure.certificate.wording import Language

# None is an option that was not given.
For = Annotated[Audience | None, typer.Option("--for", help="Reader; default: authority.")]
Format = Annotated[Form | None, typer.Option("--format", help="Form; default: text.")]
Lang = Annotated[Language | None, typer.Option("--lang", help="Language; default: en.")]
Outside = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE", help="Compare checkpoints kept elsewhere; repeatable."),
]


def receipt(id_: str, audience: For, form: Format, language: Lang, outside: Outside) -> str | None:
    """Return the receipt of an erasure; None if there is no such erasure."""
    checkpoints = []
    for path in map(Path, outside or ()):
        if not path.is_file():
            rule = "must be a file of checkpoints"
            raise typer.BadParameter(rule, param_hint="--outside")
        checkpoints += CheckpointSinks(path).read()
    issued = runtime.current().audit_store.certificates.issue(
        id_, audience or Audience.AUTHORITY, language or Language.EN, checkpoints
    )
    return None if issued is None else issued.render(form or Form.TEXT)
