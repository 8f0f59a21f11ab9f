"""The command `drupe`: global options, the table of verbs, and what happens at its end."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from drupe.cli.group import LazyGroup, Verb

_WORK, _IMAGES, _GROUPS, _SYSTEM = "Containers", "Images", "Groups", "System"

VERBS: dict[str, Verb] = {
    "run": Verb("run:run", "Run a command in a new pod of one container", _WORK),
    "create": Verb("run:create", "Create a pod of one container without starting it", _WORK),
    "exec": Verb("exec:exec_", "Run a command in a running container", _WORK),
    "ps": Verb("ps:ps", "List containers", _WORK),
    "logs": Verb("logs:logs", "Show a container's output", _WORK),
    "attach": Verb("attach:attach", "Connect to a running container's standard streams", _WORK),
    "start": Verb("lifecycle:start", "Start containers", _WORK),
    "stop": Verb("lifecycle:stop", "Stop containers: stop signal, then SIGKILL after the grace", _WORK),
    "restart": Verb("lifecycle:restart", "Stop and start containers", _WORK),
    "kill": Verb("lifecycle:kill", "Send a signal to containers", _WORK),
    "pause": Verb("lifecycle:pause", "Freeze containers", _WORK),
    "unpause": Verb("lifecycle:resume", "Thaw containers (same as resume)", _WORK),
    "resume": Verb("lifecycle:resume", "Thaw containers", _WORK),
    "wait": Verb("lifecycle:wait", "Wait for containers to end and print their exit codes", _WORK),
    "rm": Verb("lifecycle:rm", "Remove containers", _WORK),
    "inspect": Verb("inspect:inspect", "Show all that is known of containers, pods, images, networks, volumes", _WORK),
    "cp": Verb("cp:cp", "Copy files between a container and the host", _WORK),
    "stats": Verb("stats:stats", "Show resource use", _WORK),
    "top": Verb("top:top", "List the processes of a container", _WORK),
    "port": Verb("port:port", "Show published ports", _WORK),
    "update": Verb("update:update", "Change the limits of containers", _WORK),
    "fork": Verb("snapshot:fork", "Make a second pod that goes on from where one is", _WORK),
    "export": Verb("image:export_container", "Write a container's file system as a tar", _WORK),
    "images": Verb("image:ls", "List images", _IMAGES),
    "pull": Verb("image:pull", "Get an image from a registry", _IMAGES),
    "push": Verb("image:push", "Send an image to a registry", _IMAGES),
    "build": Verb("image:build", "Make an image from a directory or tarball", _IMAGES),
    "load": Verb("image:load", "Load images from an archive", _IMAGES),
    "save": Verb("image:save", "Write images as an archive", _IMAGES),
    "import": Verb("image:import_rootfs", "Make an image from a root file system tarball", _IMAGES),
    "tag": Verb("image:tag", "Give an image another name", _IMAGES),
    "rmi": Verb("image:rm", "Remove images", _IMAGES),
    "pod": Verb("pod:pod", "Pods: one sandbox, one or many containers", _GROUPS),
    "container": Verb("container:container", "Containers", _GROUPS),
    "image": Verb("image:image", "Images", _GROUPS),
    "network": Verb("network:network", "Networks", _GROUPS),
    "volume": Verb("volume:volume", "Volumes", _GROUPS),
    "snapshot": Verb("snapshot:snapshot", "Snapshots: pods at one moment, kept", _GROUPS),
    "template": Verb("templates:template", "Templates: machines that were booted once", _GROUPS),
    "guest": Verb("guest:guest", "What microVMs boot: kernels and roots", _GROUPS),
    "system": Verb("system:system", "The daemon and its host", _GROUPS),
    "events": Verb("events:events", "Show what happens, as it happens", _SYSTEM),
    "info": Verb("system:info", "Show the daemon and its host", _SYSTEM),
    "doctor": Verb("system:doctor", "Probe what can run here, why not, and how to mend it", _SYSTEM),
    "serve": Verb("serve:serve", "Run the daemon", _SYSTEM),
    "setup": Verb("setup:setup", "Configure containerd, Docker or Podman for drupe", _SYSTEM),
    "completion": Verb("completion:completion", "Print the shell's completion script", _SYSTEM),
    "version": Verb("system:version", "Show versions", _SYSTEM),
}


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from drupe.cli.system import client_version

        click.echo(f"drupe {client_version()}")
        ctx.exit()


def set_env(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """A click callback: --root and --run become DRUPE_ROOT and DRUPE_RUN."""
    # The environment is how the choice reaches the daemon that may be started on demand.
    if value is not None:
        os.environ[f"DRUPE_{str(param.name).upper()}"] = str(os.path.abspath(value))  # noqa: PTH100


cli = LazyGroup(
    "drupe",
    VERBS,
    help="Run containers, each pod in the sandbox that its workload needs.",
    params=[
        click.Option(["--root"], metavar="DIR", expose_value=False, callback=set_env, help="State directory."),
        click.Option(["--run"], metavar="DIR", expose_value=False, callback=set_env, help="Runtime directory."),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version.",
        ),
    ],
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; never raises. Without `argv` this is the process's last call."""
    if argv is None:
        _leave(main(sys.argv[1:]))
    args = list(argv)
    _open_standard_streams()
    try:
        code = _complete() if "_DRUPE_COMPLETE" in os.environ else _invoke(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return _broken_pipe()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _show(error)


def _open_standard_streams() -> None:
    # With one of them closed (`drupe … >&-`), the next file that is opened would take its number and its role.
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(fd, "r" if fd == 0 else "w"))


def _leave(code: int) -> NoReturn:
    """End now: taking the interpreter apart, object by object, is a sixth of the time that `drupe ps` takes."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _invoke(args: list[str]) -> int:
    # Not click's own main(): that one turns a broken pipe into exit 1 and loads what a start does not need.
    try:
        with cli.make_context("drupe", args) as ctx:
            result = cli.invoke(ctx)
    except click.exceptions.Exit as end:
        return end.exit_code
    return result if isinstance(result, int) else 0


def _complete() -> int:
    from click.shell_completion import shell_complete

    return shell_complete(cli, {}, "drupe", "_DRUPE_COMPLETE", os.environ["_DRUPE_COMPLETE"])


def _show(error: Exception) -> int:
    from drupe.cli import errors
    from drupe.errors import DrupeError

    if isinstance(error, DrupeError):
        return errors.show_drupe_error(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.ctx.get_help() if error.ctx else error.format_message())
        return 0 if error.ctx and error.ctx.parent is None else 2
    if isinstance(error, click.Abort):
        return 130
    if isinstance(error, click.ClickException):
        return errors.show_usage_error(error)
    return errors.show_bug(error)


def _broken_pipe() -> int:
    # The reader is gone: the interpreter's own flush at exit must not complain about it again.
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
    return 141


if __name__ == "__main__":
    sys.exit(main())
