"""The daemon's end of the control socket."""

from drupe.rpc.call import Call, Handler

__all__ = ["Call", "Handler"]
