"""runc's command line: its flags, as Go's flag package takes them (`-x`, `--x`, `--x=v`, `--x v`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from drupe.errors import InvalidArgument

# name or "name,short"; "!" before it: a switch; "+" before it: may be given often
_GLOBAL = "!debug log log-format root criu !systemd-cgroup rootless !help,h !version,v"
_MAKING = "bundle,b console-socket pid-file !no-pivot !no-new-keyring preserve-fds pidfd-socket"
_CRIU = (
    "image-path work-path !tcp-established !ext-unix-sk !shell-job !file-locks manage-cgroups-mode +empty-ns "
    "!auto-dedup !lazy-pages"
)
_VERBS = {
    "checkpoint": f"{_CRIU} parent-path !leave-running status-fd page-server !pre-dump",
    "create": _MAKING,
    "delete": "!force,f",
    "events": "interval !stats",
    "exec": "console-socket cwd +env,e !tty,t user,u +additional-gids,g process,p !detach,d pid-file process-label "
    "apparmor !no-new-privs +cap,c preserve-fds +cgroup !ignore-paused",
    "features": "",
    "kill": "!all,a",
    "list": "format,f !quiet,q",
    "pause": "",
    "ps": "format,f",
    "restore": f"{_CRIU} bundle,b console-socket !detach,d pid-file !no-pivot !no-subreaper lsm-profile "
    "lsm-mount-context",
    "resume": "",
    "run": f"{_MAKING} !detach,d !keep !no-subreaper",
    "spec": "bundle,b !rootless",
    "start": "",
    "state": "",
    "update": "resources,r blkio-weight cpu-period cpu-quota cpu-burst cpu-share cpu-rt-period cpu-rt-runtime "
    "cpuset-cpus cpuset-mems cpu-idle memory memory-reservation memory-swap pids-limit l3-cache-schema mem-bw-schema",
}
VERBS = tuple(_VERBS)
_IN_ORDER = ("exec", "ps")  # what follows the container's id is the command, or for ps(1), flags and all


@dataclass(frozen=True, slots=True)
class Flag:
    name: str
    switch: bool
    often: bool


@dataclass(slots=True)
class Words:
    """A parsed call. Options by their long name; a switch is "true" or "false". arguments: what are no flags."""

    verb: str = ""
    common: dict[str, list[str]] = field(default_factory=dict)
    options: dict[str, list[str]] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)

    def on(self, name: str) -> bool:
        """Whether a switch is set, before or after the verb."""
        return (self.options.get(name) or self.common.get(name) or ["false"])[-1] == "true"

    def text(self, name: str, default: str = "") -> str:
        """The value of an option."""
        return (self.options.get(name) or self.common.get(name) or [default])[-1]

    @property
    def id(self) -> str:
        """The container's id. Raises InvalidArgument when it is missing."""
        if not self.arguments or not self.arguments[0]:
            raise InvalidArgument(f"{self.verb}: the container id is missing")
        return self.arguments[0]


def parse(argv: Iterable[str]) -> Words:
    """A whole call. Raises InvalidArgument for a verb or flag that is unknown."""
    words = Words()
    rest = _take(list(argv), COMMON, words.common, words.arguments, in_order=True)
    if not words.arguments:
        words.verb = "version" if words.on("version") else "help"
        return words
    words.verb = words.arguments.pop()
    if words.verb in ("help", "version"):
        words.arguments = rest[:1]
        return words
    if words.verb not in _VERBS:
        raise InvalidArgument(f"No help topic for '{words.verb}'", hint=f"commands: {', '.join(VERBS)}")
    flags = flags_of(words.verb)
    in_order = words.verb in _IN_ORDER
    words.arguments += _take(rest, flags, words.options, words.arguments, in_order=in_order)
    if words.on("help"):
        words.verb, words.arguments = "help", [words.verb]
    return words


def flags_of(verb: str) -> dict[str, Flag]:
    """Those of a verb, by each of their names."""
    return _flags(_VERBS[verb]) | _flags("!help,h")


def _flags(table: str) -> dict[str, Flag]:
    found = {}
    for entry in table.split():
        names = entry.lstrip("!+").split(",")
        flag = Flag(names[0], switch=entry[0] == "!", often=entry[0] == "+")
        found.update(dict.fromkeys(names, flag))
    return found


def _take(
    argv: list[str], flags: Mapping[str, Flag], options: dict[str, list[str]], arguments: list[str], *, in_order: bool
) -> list[str]:
    """Sort `argv` into options and arguments; with in_order stop after the first argument. Returns what is left."""
    at = 0
    while at < len(argv):
        word = argv[at]
        at += 1
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            arguments.append(word)
            if in_order:
                break
            continue
        name, equals, value = word.lstrip("-").partition("=")
        flag = flags.get(name)
        if flag is None or len(word) - len(word.lstrip("-")) > 2:
            raise InvalidArgument(f"flag provided but not defined: {word.partition('=')[0]}")
        if not equals and not flag.switch:
            if at == len(argv):
                raise InvalidArgument(f"flag needs an argument: {word}")
            value = argv[at]
            at += 1
        _set(options, flag, value if equals or not flag.switch else "true")
    return argv[at:]


def _set(options: dict[str, list[str]], flag: Flag, value: str) -> None:
    if flag.switch:
        if value not in ("true", "false", "1", "0"):
            raise InvalidArgument(f"--{flag.name} is true or false, not {value!r}")
        value = "true" if value in ("true", "1") else "false"
    if flag.often:
        options.setdefault(flag.name, []).append(value)
    else:
        options[flag.name] = [value]


COMMON = _flags(_GLOBAL)  # before the verb
