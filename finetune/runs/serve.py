"""Runs over HTTP, for a phone, probes and Prometheus."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.errors import UserError
from finetune.runs.web.access import Access
from finetune.runs.web.server import Server
from finetune.runs.web.site import Site


def serve(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or one in which runs lie.")] = Path("runs"),
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8420,
    token: Annotated[
        str | None,
        typer.Option(envvar="LONGHAUL_TOKEN", show_default=False, help="What a visitor has to know; better not typed."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name by which visitors reach it, as behind a proxy.")
    ] = None,
) -> None:
    """Show runs to a browser (/), to probes (/healthz) and to Prometheus (/metrics), from their files alone."""
    access = Access.to(host, token, allow_host or [])
    try:
        server = Server(host, port, Site(folder), access)
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be listened on ({error.strerror}): give another port or host") from error
    with server:
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{server.server_port}/", flush=True)
        server.serve_forever()
