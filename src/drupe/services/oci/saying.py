"""What `drupe-oci` says beside what it was asked for: errors and warnings, where runc would say them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence

import msgspec

from drupe.errors import DrupeError
from drupe.services.oci.asked import Asked
from drupe.services.oci.host import CallerFiles
from drupe.spec.oci import OciAnswer


def refusal(error: DrupeError, argv: Sequence[str], files: CallerFiles, *, code: int) -> OciAnswer:
    """The error as runc tells it: on standard error, and in the log where one was given, in its format."""
    log, form = _flag(argv, "log"), _flag(argv, "log-format")
    said = f"drupe-oci: {error}\n" + (f"hint: {error.hint}\n" if error.hint else "")
    line = log_line(str(error), form)
    if not log and form == "json":
        said = line
    return OciAnswer(stderr=said, log=files.absolute(log) if log else "", log_line=line, code=code)


def warned(asked: Asked, answer: OciAnswer, message: str) -> OciAnswer:
    """An answer that says a warning first, as runc does: in the log, or where there is none on standard error."""
    if not message:
        return answer
    log, line = asked.words.text("log"), log_line(message, asked.words.text("log-format"), level="warning")
    if not log:
        return msgspec.structs.replace(answer, stderr=answer.stderr + line)
    return msgspec.structs.replace(answer, log=asked.files.absolute(log), log_line=line)


def log_line(message: str, form: str, *, level: str = "error") -> str:
    """One line of a log, as logrus writes it: "json" or text."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if form == "json":
        return json.dumps({"level": level, "msg": message, "time": now}) + "\n"
    return f'time="{now}" level={level} msg={json.dumps(message)}\n'


def _flag(argv: Sequence[str], name: str) -> str:
    """The value of a flag of a line that may be wrong elsewhere."""
    for at, word in enumerate(argv):
        bare, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and bare == name:
            return value if equals else "".join(argv[at + 1 : at + 2])
    return ""
