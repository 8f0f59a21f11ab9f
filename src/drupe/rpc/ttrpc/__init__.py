"""ttrpc: protobuf calls over a stream socket, as containerd, its shims and guest agents speak them.

`frames` is the codec, without I/O. `Client` and `Server` carry unary calls and streams in all three forms over asyncio.
Messages are those of the protobuf runtime (decision 18). Format: https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md
"""

from drupe.rpc.ttrpc.client import Client, ClientStream
from drupe.rpc.ttrpc.envelope import Metadata
from drupe.rpc.ttrpc.server import Server
from drupe.rpc.ttrpc.service import Call, Method, ServerStream, Services, streaming, unary

__all__ = [
    "Client", "ClientStream", "Metadata",
    "Server", "Call", "Method", "ServerStream", "Services", "streaming", "unary",
]  # fmt: skip
