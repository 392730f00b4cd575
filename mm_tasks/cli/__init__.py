"""The command `mm-tasks`: one thin function and its help text for each command."""

from __future__ import annotations

import json
import socket
import sys
from typing import Annotated

import typer
from redis.exceptions import RedisError
from rich.console import Console

from mm_tasks.cli import audit, dead_letters, demo, erasure, import_command, stack, status
from mm_tasks.cli import check as check_
from mm_tasks.cli import health as health_
from mm_tasks.cli import metrics as exporter
from mm_tasks.cli import top as top_view
from mm_tasks.cli.output import log_to_stderr
from mm_tasks.errors import MMTasksError
from mm_tasks.events.json_schema import schemas
from mm_tasks.monitoring.health import AGE_MAX_S

# Local variables in a traceback would show keys and events.
app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False)
app.add_typer(dead_letters.app, name="dead")
app.add_typer(erasure.app, name="erasure")
app.add_typer(audit.app, name="audit")
app.command(name="import")(import_command.import_command)
out = Console()


def main() -> None:
    """Run the command; print an error of ours or of Redis as one sentence, with exit code 1."""
    log_to_stderr()
    try:
        app()
    except MMTasksError as error:
        sys.exit(f"mm-tasks: {error}")
    except RedisError as error:
        sys.exit(f"mm-tasks: Redis does not answer ({type(error).__name__})")


@app.command()
def up(
    concurrency: Annotated[int, typer.Option(min=1, help="Processes of the worker.")] = 4,
) -> None:
    """Start a worker and beat, and an embedded Redis if none answers. Ctrl-C ends all of them.

    Safe to repeat: the embedded Redis keeps its data in the state directory.

    Example: mm-tasks up
    """
    stack.up(concurrency)


@app.command(name="demo")
def demo_command(
    bulk: Annotated[int, typer.Option(min=1, help="Events of the backfill.")] = 20_000,
    *,
    on_settings: Annotated[
        bool,
        typer.Option(
            "--on-settings", help="Use your Redis and audit database; both must be empty."
        ),
    ] = False,
) -> None:
    """Send a small shop's events through real processes to the sandbox, for about a minute.

    Exit 0 if every promise was kept, otherwise 1. Safe to repeat: it starts its own Redis and
    audit database and removes both. With --on-settings its events stay in yours.

    Example: mm-tasks demo
    """
    raise typer.Exit(demo.run(bulk, on_settings=on_settings))


@app.command()
def sandbox(  # noqa: PLR0913 - its options
    port: Annotated[int, typer.Option(help="Port to listen on; 0: a free one.")] = 8787,
    *,
    key: Annotated[
        list[str] | None, typer.Option(help="A valid key, repeatable; default: any key.")
    ] = None,
    validated: Annotated[bool, typer.Option(help="Validate events as the vendor does.")] = True,
    limits: Annotated[bool, typer.Option(help="Answer 429 above the vendor's rates.")] = True,
    latency_ms: Annotated[int, typer.Option(help="Delay of each answer.")] = 0,
    forget_lag_s: Annotated[float, typer.Option(help="Delay until a forget runs.")] = 0.5,
) -> None:
    """Serve a stand-in of the vendor's API until Ctrl-C, with a page at /_sandbox/.

    Keeps everything in memory, so that each start is empty.

    Example: mm-tasks sandbox --port 8787
    """
    # Both need the extra `sandbox`.
    from mm_tasks.sandbox.config import Config
    from mm_tasks.sandbox.server import serve

    serve(
        Config(
            port=port,
            keys=tuple(key or ()),
            validated=validated,
            limited=limits,
            latency_s=latency_ms / 1000,
            forget_lag_s=forget_lag_s,
        )
    )


@app.command()
def check(
    *, send: Annotated[bool, typer.Option(help="Post one event to /v1/track.")] = False
) -> None:
    """Print every setting and check them: exit 1 on a problem, 0 on warnings.

    Creates the tables of the audit database and a pseudonym key in the state directory if they
    do not exist, and changes nothing else. Safe to repeat.

    Example: mm-tasks check
    """
    raise typer.Exit(check_.run(out, send=send))


@app.command(name="status")
def status_command(
    *, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False
) -> None:
    """Show the place of every event, the reason of a pause, and the erasures. Reads only.

    Exit 0 if Redis could be read, even if the audit database could not.

    Example: mm-tasks status --json
    """
    status.run(out, as_json=as_json)


@app.command()
def top(
    *,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two views.")] = 1,
    once: Annotated[bool, typer.Option("--once", help="Print one view and exit.")] = False,
) -> None:
    """Show waiting and sent events, rates and pauses live, until Ctrl-C. Reads only.

    Example: mm-tasks top
    """
    top_view.run(interval_s=interval, once=once)


@app.command()
def health(
    *,
    worker: Annotated[str | None, typer.Option(help="Check only this worker.")] = None,
    this_host: Annotated[
        bool, typer.Option("--this-host", help="Check only the worker celery@HOSTNAME.")
    ] = False,
    beat: Annotated[bool, typer.Option("--beat", help="Check only beat.")] = False,
    max_age: Annotated[
        float, typer.Option(min=1, help="Permitted age of a heartbeat, in seconds.")
    ] = AGE_MAX_S,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Check whether workers, beat and stores are alive: exit 0 if all are, otherwise 1. Reads only.

    Without options: each queue is served, beat is alive, Redis takes writes, the database answers.

    Example: mm-tasks health --this-host
    """
    if this_host:
        worker = f"celery@{socket.gethostname()}"
    raise typer.Exit(health_.run(worker, beat=beat, age_max_s=max_age, as_json=as_json))


@app.command()
def metrics(
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")
    ] = 9187,
    address: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 admits other machines.")
    ] = "127.0.0.1",
) -> None:
    """Serve metrics for Prometheus at /metrics until Ctrl-C. Reads only.

    One exporter for each project is enough.

    Example: mm-tasks metrics --port 9187
    """
    exporter.run(address, port)


@app.command(name="schema")
def schema_command() -> None:
    """Print the JSON Schema of the events. Needs no store and no setting.

    Example: mm-tasks schema
    """
    print(json.dumps(schemas(), indent=2))  # noqa: T201 - its output


@app.command()
def flush() -> None:
    """Make the workers send all waiting events now, in part-full batches too. Safe to repeat.

    Exit 1 if no worker serves the queues, or none serves the broker that this command publishes to.

    Example: mm-tasks flush
    """
    from mm_tasks.cli import flush_command

    flush_command.run()
