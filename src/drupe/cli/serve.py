"""`drupe serve`: the daemon, in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from drupe.cli import borrowed
from drupe.cli.main import set_env
from drupe.cli.options import option


@click.command("serve")
@option("--root", metavar="DIR", expose_value=False, callback=set_env, help="State directory.")
@option("--run", metavar="DIR", expose_value=False, callback=set_env, help="Runtime directory.")
@option("--socket", metavar="FILE", help="Control socket (drupe.sock in the runtime directory).")
@option("--config", metavar="FILE", help="Configuration ($DRUPE_CONFIG, /etc/drupe/drupe.toml).")
def serve(*, socket: str | None, config: str | None) -> int:
    """Run the daemon until SIGTERM or SIGINT; running pods go on without it. SIGHUP reads the configuration again."""
    borrowed.needs_own_process()
    from drupe.api.daemon import default_root, default_run, socket_path
    from drupe.cli.startup import wake_collector
    from drupe.services.daemon import serve as run_daemon

    wake_collector()

    path = Path(socket) if socket else Path(socket_path())
    return run_daemon(root=default_root(), run=default_run(), socket=path, config=Path(config) if config else None)
