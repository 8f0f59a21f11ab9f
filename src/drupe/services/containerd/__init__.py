"""containerd's face: the Task service (`containerd.task.v2` and `v3`) for tasks of every kind, and what its shim asks.

A containerd is a `Peer`: it has a directory of sockets, one for each kind of sandbox that its shims were called by, and
an outbox for its events. Tasks are containers of ordinary pods that have an owner: they are journalled, recovered and
watched like any other, and only their owner's calls change them.
"""
