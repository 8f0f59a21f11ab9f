"""`drupe container …`: Docker's management group; the verbs are those of the top level."""

from __future__ import annotations

from drupe.cli.group import LazyGroup, Verb

VERBS: dict[str, Verb] = {
    "create": Verb("run:create", "Create a container, in a new pod or (--pod) an existing one"),
    "run": Verb("run:run", "Create and start a container"),
    "start": Verb("lifecycle:start", "Start containers"),
    "stop": Verb("lifecycle:stop", "Stop containers"),
    "restart": Verb("lifecycle:restart", "Stop and start containers"),
    "kill": Verb("lifecycle:kill", "Send a signal to containers"),
    "pause": Verb("lifecycle:pause", "Freeze containers"),
    "unpause": Verb("lifecycle:resume", "Thaw containers"),
    "resume": Verb("lifecycle:resume", "Thaw containers"),
    "exec": Verb("exec:exec_", "Run a command in a running container"),
    "enter": Verb("exec:exec_", "Run a command in a running container (same as exec)"),
    "attach": Verb("attach:attach", "Connect to a container's standard streams"),
    "wait": Verb("lifecycle:wait", "Wait for containers to end"),
    "logs": Verb("logs:logs", "Show a container's output"),
    "ls": Verb("ps:ps", "List containers"),
    "ps": Verb("ps:ps", "List containers (same as ls)"),
    "inspect": Verb("inspect:containers", "Show all that is known of containers"),
    "status": Verb("inspect:containers", "Show all that is known of containers (same as inspect)"),
    "stats": Verb("stats:stats", "Show resource use"),
    "top": Verb("top:top", "List the processes of a container"),
    "port": Verb("port:port", "Show published ports"),
    "update": Verb("update:update", "Change the limits of containers"),
    "cp": Verb("cp:cp", "Copy files between a container and the host"),
    "diff": Verb("changes:diff", "List what a container has changed of its image"),
    "commit": Verb("changes:commit", "Make an image of a container and its changes"),
    "rename": Verb("changes:rename", "Give a container another name"),
    "export": Verb("image:export_container", "Write a container's file system as a tar"),
    "rm": Verb("lifecycle:rm", "Remove containers"),
}

container = LazyGroup("container", VERBS, help="Containers.")
