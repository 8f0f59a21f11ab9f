"""How mistakes, refusals, interruptions and bugs look, and how each ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from drupe.cli.main import VERBS, cli, main
from drupe.errors import DeadlineExceeded, HelperFailed, InternalError, Unavailable
from framework.scripted import Scripted

Use = Callable[..., Scripted]
Capture = pytest.CaptureFixture[str]


def test_a_refusal_is_one_line_and_a_hint(daemon: Use, capsys: Capture) -> None:
    error = HelperFailed("crun failed", stage="start", cause="line one\nline two\n", hint="look\nthere")
    daemon({"pod.list": error})
    assert main(["ps"]) == 125
    assert capsys.readouterr().err == "drupe: start: crun failed: line one; line two\nhint: look; there\n"


def test_what_a_guest_says_does_not_move_the_terminal(daemon: Use, capsys: Capture) -> None:
    daemon({"pod.list": HelperFailed("\x1b]0;owned\x07said", cause="\x9b2Jred\u202e\ta\rb")})
    assert main(["ps"]) == 125
    assert capsys.readouterr().err == "drupe: ]0;ownedsaid: 2Jred\ta; b\n"


def test_exit_codes_by_kind(daemon: Use, capsys: Capture) -> None:
    daemon({"pod.list": DeadlineExceeded("late")})
    assert main(["ps"]) == 124
    daemon({"pod.list": InternalError("oops")})
    assert main(["ps"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_debug_shows_the_traceback(daemon: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRUPE_DEBUG", "1")
    daemon({"pod.list": Unavailable("no daemon")})
    assert main(["ps"]) == 125
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_shows_a_traceback_and_asks_for_a_report(daemon: Use, capsys: Capture) -> None:
    daemon({"pod.list": ZeroDivisionError("x")})
    assert main(["ps"]) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "drupe: ZeroDivisionError: x\nhint: this is a bug in drupe" in err


def test_ctrl_c_ends_with_130_in_silence(daemon: Use, capsys: Capture) -> None:
    daemon({"pod.list": KeyboardInterrupt()})
    assert main(["ps"]) == 130
    assert tuple(capsys.readouterr()) == ("", "")


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["rnu"], 2, "unknown command 'rnu', did you mean run"),
        (["image", "lss"], 2, "unknown command 'lss', did you mean ls"),
        (["ps", "--al"], 2, "--all"),
        (["stop"], 2, "Missing argument"),
        (["run"], 125, "Missing argument 'IMAGE'"),
        (["exec", "--nope", "x", "y"], 125, "--nope"),
        (["container", "run", "--nope"], 125, "--nope"),
        (["completion", "tcsh"], 2, "'tcsh' is not one of"),
    ],
)
def test_usage_errors(argv: list[str], code: int, words: str, capsys: Capture) -> None:
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.startswith("drupe: ")
    assert "\nhint: see 'drupe" in err


def test_help_of_everything_loads(capsys: Capture) -> None:
    """Each verb of each group exists and can print its help."""
    import click

    def walk(group: click.Group, path: list[str]) -> None:
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None, name
            assert main([*path, name, "--help"]) == 0
            if isinstance(command, click.Group):
                walk(command, [*path, name])

    walk(cli, [])
    assert "Usage: drupe run [OPTIONS] IMAGE" in capsys.readouterr().out


def test_the_groups_cover_the_virtcontainers_calls() -> None:
    from drupe.cli.container import VERBS as CONTAINER
    from drupe.cli.pod import VERBS as POD

    assert set(["create", "start", "run", "stop", "pause", "resume", "status", "ls", "rm"]) <= set(POD)
    calls = "create start stop enter kill status top update pause resume rm ls".split()  # noqa: SIM905
    assert set(calls) <= set(CONTAINER)
    docker = "run exec ps logs attach stop kill rm inspect cp stats top pause resume update wait events"
    assert set(docker.split()) <= set(VERBS)


def test_a_broken_pipe_is_quiet() -> None:
    command = [sys.executable, "-m", "drupe", "--help"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)
    assert done.returncode in (0, 141)
    assert done.stderr == b""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: Capture) -> None:
    import shutil

    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_DRUPE_COMPLETE" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True, capture_output=True)


def test_completion_of_verbs_flags_and_names(daemon: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from drupe.spec.control import ContainerList
    from framework.scripted import container

    def complete(*words: str) -> list[str]:
        monkeypatch.setenv("_DRUPE_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", " ".join(("drupe", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        main([])
        return [line.partition(",")[2] for line in capsys.readouterr().out.split()]

    daemon({"container.list": ContainerList(containers=[container(), container(name="db")])})
    assert complete("pu") == ["pull", "push"]
    assert "--memory-swap" in complete("run", "--mem")
    assert complete("stop", "w") == ["web"]
    daemon({"container.list": Unavailable("nobody there")})
    assert complete("stop", "w") == []


def test_help_and_listing_import_little() -> None:
    """No verb pays for what it does not use: asyncio, rich, TLS and HTTP stay out of the listing's start."""
    code = (
        "import sys; from drupe.cli.main import main; main(['--help']);"
        "assert 'msgspec' not in sys.modules, 'help loads msgspec';"
        "import drupe.cli.ps, drupe.cli.run, drupe.cli.exec, drupe.rpc.client;"
        "heavy = {'asyncio', 'rich', 'ssl', 'httpx', 'subprocess', 'tarfile'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
