"""Put on PYTHONPATH: no Python process that sees it, nor any of its children, reaches a network.

Unix sockets stay: they do not leave the machine.
"""

import socket

_LOCAL = {getattr(socket, "AF_UNIX", None)}


def _refuse(name):
    real = getattr(socket.socket, name)

    def call(self, *arguments):
        if self.family in _LOCAL:
            return real(self, *arguments)
        raise PermissionError(f"socket.{name} to {arguments[-1]!r}: the network is blocked here")

    return call


for _name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, _name, _refuse(_name))


def _no_lookup(host, *arguments, **keywords):
    raise PermissionError(f"a look-up of {host!r}: the network is blocked here")


socket.getaddrinfo = socket.gethostbyname = _no_lookup
