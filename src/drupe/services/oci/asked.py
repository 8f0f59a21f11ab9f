"""One call of `drupe-oci`, understood: its words, the caller's files, and which program is to carry it out."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from drupe.errors import InvalidArgument, NotFound, Unsupported
from drupe.oci.carried import further_devices
from drupe.oci.runtime_spec import Linux, RuntimeConfig
from drupe.runtime.choosing import AUTO, BUILT_IN, WISH
from drupe.runtime.node import Node
from drupe.runtime.policy import level_of, refuse_forbidden, rules_for
from drupe.sandboxers.bundles import BundleProgram
from drupe.sandboxers.kinds import kind_of
from drupe.services.oci.flags import Words
from drupe.services.oci.host import CallerFiles
from drupe.services.oci.kept import Bundles, Kept
from drupe.spec.oci import OciAnswer, OciAsk, OciRun

# a namespace of the bundle's own → what it has without one
_SHARED = {"network": "host-network", "pid": "host-pid", "ipc": "host-ipc", "uts": "host-uts"}
_LONGEST_ID = 255  # NAME_MAX
NAMESPACE = "oci"  # as which bundles of others meet the node's policy
_CALLED = "drupe-oci-"
_ID = re.compile(r"[\w+.-]+", re.ASCII)  # runc's rule


def features_of(config: RuntimeConfig) -> set[str]:
    """What a bundle has that a policy may forbid, in the words of our own pods."""
    linux = config.linux or Linux()
    own = {namespace.type for namespace in linux.namespaces or ()}
    features = {feature for name, feature in _SHARED.items() if name not in own}
    bounding = (config.process and config.process.capabilities and config.process.capabilities.bounding) or ()
    if "CAP_SYS_ADMIN" in bounding and "user" not in own:
        features.add("privileged")
    if further_devices(config):
        features.add("devices")
    return features


@dataclass(frozen=True)
class Asked:
    """lends: the caller sees our /proc, where the copy of a program that starts faster is. node: of the daemon. Its run
    directory holds the default `--root`, its operator decides which kinds may be."""

    ask: OciAsk
    lends: bool
    words: Words
    files: CallerFiles
    node: Node
    bundles: Bundles

    @property
    def root(self) -> str:
        """Absolute path of `--root`: ids are unique below it, and unknown outside."""
        return self.files.absolute(self.words.text("root", str(self.node.paths.run / "bundles")))

    @property
    def id(self) -> str:
        return self.words.id

    def check_id(self) -> None:
        """Raise InvalidArgument unless the container's id can be a file's name."""
        if len(self.id) > _LONGEST_ID:
            raise InvalidArgument(f"a container id of {len(self.id)} characters is too long", hint="at most 255")
        if not _ID.fullmatch(self.id) or self.id in (".", ".."):
            raise InvalidArgument(f"container id {self.id!r} has other characters than letters, digits and _ + - .")

    def ran(self, name: str) -> OciRun | None:
        """How the program of that name ended, once the caller has run it."""
        return (self.ask.runs or {}).get(name)

    # -- which program

    def chosen(self, config: RuntimeConfig | None = None) -> BundleProgram:
        """The program for a new container. Raises as `kind_of`."""
        return self.program_of(self.kind_of(config))

    def program_of(self, kind: str) -> BundleProgram:
        """What makes containers of this kind, or their stand-ins. Raises Unsupported when neither can be."""
        try:
            return self.node.sandboxer(kind).bundle_program()
        except Unsupported:
            self.node.sandboxer(kind)  # else that it cannot be had here is what counts
        return self.bundles.standing_for(kind)

    def kind_of(self, config: RuntimeConfig | None = None) -> str:
        """The kind for a new container: that in our own name (drupe-oci-KIND), else in the bundle's
        annotation, else of the node's configuration, else runc. Raises InvalidArgument when the first two differ,
        Unsupported for a kind that cannot, PermissionDenied where the node's policy wants a stronger one."""
        annotations = (config and config.annotations) or {}
        called = self.ask.name.removeprefix(_CALLED) if self.ask.name.startswith(_CALLED) else ""
        wanted = annotations.get(WISH, "")
        if called and wanted and called != wanted:
            raise InvalidArgument(
                f"the bundle's annotation {WISH} says {wanted!r}, and this is {self.ask.name}",
                hint="the name decides for everyone who uses it; leave the annotation out",
            )
        default = self.node.config.sandbox
        kind = called or wanted or (default if default != AUTO else "") or BUILT_IN
        if config is not None:
            self.node.require_open()
            self._refuse_forbidden(kind, config)
        return kind

    def _refuse_forbidden(self, kind: str, config: RuntimeConfig) -> None:
        features = features_of(config)
        rules = rules_for(self.node.config.policy, namespace=NAMESPACE, labels=config.annotations or {})
        refuse_forbidden("the bundle", rules, level_of(kind_of(kind).level, features), features)

    def found(self) -> BundleProgram:
        """The program that made this container. Raises NotFound."""
        for program in self.programs():
            if self.files.exists(f"{self.root}/{program.home}/{self.id}"):
                return program
        kept = self.bundles.find(self.root, self.id)  # what stood for it is gone, and it is not
        if kept is not None:
            return self.bundles.standing_for(kept.record.kind)
        raise NotFound("container does not exist", hint=f"drupe-oci --root {self.root} list shows those that do")

    def check_free(self) -> None:
        """Raise InvalidArgument when the container's id is taken."""
        for other in self.programs():
            if self.files.exists(f"{self.root}/{other.home}/{self.id}"):
                raise InvalidArgument(f"container with given ID already exists: {self.id}")
        if self.bundles.find(self.root, self.id) or self.bundles.is_being_made(self.root, self.id):
            raise InvalidArgument(f"container with given ID already exists: {self.id}")

    def standing(self) -> BundleProgram | None:
        """The program that made this container, where it only stands for one that the daemon keeps."""
        try:
            program = self.found()
        except NotFound:
            return None
        return program if program.stands else None

    def kept(self) -> Kept:
        """This container, which the daemon keeps. Raises NotFound."""
        kept = self.bundles.find(self.root, self.id)
        if kept is None:
            raise NotFound("container does not exist", hint=f"drupe-oci --root {self.root} list shows those that do")
        return kept

    def programs(self) -> list[BundleProgram]:
        """Those that have made containers below our root."""
        homes = self.files.names(self.root)
        found = []
        for kind in dict.fromkeys(home.partition("-")[0] for home in homes):
            with contextlib.suppress(InvalidArgument, Unsupported):  # no kind, or none that is here
                program = self.program_of(kind)
                found += [program] if program.home in homes else []
        return found

    # -- its command line

    def command(self, program: BundleProgram, *words: str, log: bool = True) -> list[str]:
        """argv for the program below our root, with the caller's own log."""
        argv = [program.executable() if self.lends else program.path, "--root", f"{self.root}/{program.home}"]
        argv += ["--systemd-cgroup"] if self.words.on("systemd-cgroup") else []
        argv += ["--debug"] if self.words.on("debug") and log else []
        for name in ("log", "log-format", "rootless"):
            value = self.words.text(name)
            value = self.files.absolute(value) if value and name == "log" else value
            if value and (log or name == "rootless"):
                argv.append(f"--{name}={value}")
        return [*argv, *words]

    def become(self, program: BundleProgram, *words: str, texts: Mapping[str, str] | None = None) -> OciAnswer:
        """The caller becomes the program."""
        return OciAnswer(
            execute=self.command(program, *words),
            fallback=program.path,
            hide_cgroup=program.name == "crun",
            texts=dict(texts or {}),
        )

    def first_run(self, program: BundleProgram, **runs: list[str]) -> OciAnswer:
        """The caller runs these, and asks again."""
        return OciAnswer(runs=runs, fallback=program.path, hide_cgroup=program.name == "crun", state=self.ask.state)
