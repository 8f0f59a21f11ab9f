"""`drupe-oci help`, and `--help` of each verb: runc's flags, in the form of its own help."""

from __future__ import annotations

from collections.abc import Mapping

from drupe.errors import InvalidArgument
from drupe.services.oci.asked import Asked
from drupe.services.oci.flags import COMMON, VERBS, Flag, flags_of
from drupe.spec.oci import OciAnswer

# verb to its arguments and what it does
_ABOUT = {
    "checkpoint": ("ID", "write a running container down"),
    "create": ("ID", "make a container; its process waits for start"),
    "delete": ("ID", "remove a container that has stopped, or any by force"),
    "events": ("ID", "tell statistics and kills for memory, as JSON"),
    "exec": ("ID COMMAND [ARGUMENT ...]", "run a further process in a container"),
    "features": ("", "tell what bundles may ask for"),
    "kill": ("ID [SIGNAL]", "send a signal to a container's process (TERM)"),
    "list": ("", "list the containers below the root"),
    "pause": ("ID", "stop all processes of a container until resume"),
    "ps": ("ID [ps OPTION ...]", "list the processes of a container"),
    "restore": ("ID", "run a container that was written down"),
    "resume": ("ID", "let a paused container run again"),
    "run": ("ID", "create and start a container"),
    "spec": ("", "write a config.json to start from"),
    "start": ("ID", "start the process of a container that was created"),
    "state": ("ID", "tell the state of a container, as JSON"),
    "update": ("ID", "change the limits of a container"),
}
_SUMMARY = "runs containers as the OCI runtime specification has them, in the sandbox that each needs"


async def tell(asked: Asked) -> OciAnswer:
    """Of one verb, or of them all. Raises InvalidArgument for a verb that there is not."""
    verb = (asked.words.arguments or [""])[0]
    if verb and verb not in VERBS:
        raise InvalidArgument(f"No help topic for '{verb}'", hint=f"commands: {', '.join(VERBS)}")
    return OciAnswer(stdout=_of(verb) if verb else _of_all())


def _of(verb: str) -> str:
    arguments, about = _ABOUT[verb]
    usage = " ".join(word for word in ("drupe-oci", verb, "[flags]", arguments) if word)
    return f"NAME:\n   drupe-oci {verb} - {about}\n\nUSAGE:\n   {usage}\n\n{_options(flags_of(verb))}"


def _of_all() -> str:
    room = max(map(len, VERBS)) + 3
    lines = "".join(f"   {verb.ljust(room)}{_ABOUT[verb][1]}\n" for verb in VERBS)
    usage = "drupe-oci [flags] COMMAND [flags] [arguments]"
    return f"NAME:\n   drupe-oci - {_SUMMARY}\n\nUSAGE:\n   {usage}\n\nCOMMANDS:\n{lines}\n{_options(COMMON)}"


def _options(flags: Mapping[str, Flag]) -> str:
    lines = []
    for flag in dict.fromkeys(flags.values()):
        names = [("--" if len(name) > 1 else "-") + name for name, found in flags.items() if found == flag]
        lines.append(f"   {', '.join(names)}{'' if flag.switch else ' VALUE'}{' ...' if flag.often else ''}\n")
    return f"OPTIONS:\n{''.join(lines)}"
