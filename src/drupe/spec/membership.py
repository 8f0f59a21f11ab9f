"""Control calls on which networks a pod is on."""

from __future__ import annotations

from drupe.spec.base import Spec
from drupe.spec.network import Attachment


class NetworkConnect(Spec):
    """Have a pod join a built-in network while it runs. ref: a pod, or a container of it. attachment: the network, and
    what the pod wants there."""

    ref: str
    attachment: Attachment


class NetworkDisconnect(Spec):
    """Have a pod leave a network. ref: a pod, or a container of it."""

    ref: str
    network: str
