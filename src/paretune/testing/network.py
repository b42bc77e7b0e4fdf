"""Notice any attempt to reach the network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def refused() -> Iterator[list[str]]:
    """Refuse connections and name look-ups from Python in every thread, and list what was attempted."""
    attempts: list[str] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def refuse_connect(self: socket.socket, address: Any) -> None:
        if self.family == getattr(socket, "AF_UNIX", None):
            return connect(self, address)
        attempts.append(f"connect {address}")
        raise OSError("the network is refused during a conformance test")

    def refuse_look_up(host: Any, *rest: Any, **options: Any) -> Any:
        attempts.append(f"look up {host}")
        raise OSError("the network is refused during a conformance test")

    socket.socket.connect, socket.getaddrinfo = refuse_connect, refuse_look_up  # type: ignore[method-assign, assignment]
    try:
        yield attempts
    finally:
        socket.socket.connect, socket.getaddrinfo = connect, look_up  # type: ignore[method-assign]
