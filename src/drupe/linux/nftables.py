"""libnftables(3): nftables transactions in the language of nft(8), answers as JSON (libnftables-json(5)).

Debian's package libnftables1. Loaded on first use. A context belongs to the network namespace and thread of its maker.
"""

from __future__ import annotations

import ctypes
import json
from functools import lru_cache
from typing import Any, Final

LIBRARY: Final = "libnftables.so.1"
_NFT_CTX_OUTPUT_JSON: Final = 1 << 4


class NftablesError(Exception):
    """What libnftables said about a transaction that it or the kernel refused; nothing of it was done."""


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(LIBRARY)
    context = ctypes.c_void_p
    for name, result, arguments in (
        ("nft_ctx_new", context, [ctypes.c_uint32]),
        ("nft_ctx_free", None, [context]),
        ("nft_ctx_buffer_output", ctypes.c_int, [context]),
        ("nft_ctx_buffer_error", ctypes.c_int, [context]),
        ("nft_ctx_get_output_buffer", ctypes.c_char_p, [context]),
        ("nft_ctx_get_error_buffer", ctypes.c_char_p, [context]),
        ("nft_ctx_output_set_flags", None, [context, ctypes.c_uint]),
        ("nft_run_cmd_from_buffer", ctypes.c_int, [context, ctypes.c_char_p]),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


class Nftables:
    """One libnftables context. OSError when the library is not installed."""

    def __init__(self) -> None:
        self._lib = _library()
        self._context = self._lib.nft_ctx_new(0)
        if not self._context:
            raise OSError("nft_ctx_new failed")
        self._lib.nft_ctx_buffer_output(self._context)
        self._lib.nft_ctx_buffer_error(self._context)
        self._lib.nft_ctx_output_set_flags(self._context, _NFT_CTX_OUTPUT_JSON)

    def run(self, commands: str) -> list[dict[str, Any]]:
        """nft_run_cmd_from_buffer: all commands as one transaction; the objects that list commands ask for.

        Raises NftablesError with the library's message.
        """
        code = self._lib.nft_run_cmd_from_buffer(self._context, commands.encode())
        output = (self._lib.nft_ctx_get_output_buffer(self._context) or b"").decode(errors="replace")
        problem = (self._lib.nft_ctx_get_error_buffer(self._context) or b"").decode(errors="replace")
        if code != 0:
            raise NftablesError(problem.strip() or f"libnftables returned {code}")
        found: list[dict[str, Any]] = []
        for line in output.splitlines():
            found += json.loads(line).get("nftables", [])
        return found

    def close(self) -> None:
        if self._context:
            self._lib.nft_ctx_free(self._context)
            self._context = None
