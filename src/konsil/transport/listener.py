"""Where peers' connections come in: bound with a clear error, and never more of them than can be handled."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial

from konsil.errors import ConfigError
from konsil.transport.sockets import no_name, tune
from konsil.transport.timings import MAX_HANDSHAKES, MAX_HANDSHAKES_OF_ONE

BACKLOG = 128
_SITE_BITS = 64
"""The part of an IPv6 address that is its network's; the rest a visitor may choose as it likes."""

MAX_PORT = 65535
_ACCEPTS_PER_WAKE = 16
_NO_DESCRIPTORS_S = 1.0
"""Without free file descriptors accepting fails at once, over and over: wait for some to be closed."""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[IPv6]:port".

    Raises:
        ConfigError: something else.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > MAX_PORT:
        raise ConfigError(
            f"'{address}' is not an address.",
            do='Write "host:port", such as "0.0.0.0:7420" or "[::]:7420".',
            address=address,
        )
    return host, int(port)


class Listener:
    """A listening socket that hands out connections while there are slots for their handshakes.

    Where all are taken, whoever has too many of them loses the oldest: nobody keeps members out by saying
    nothing.

    Args:
        address: "host:port"; port 0 takes a free one.
        welcome: takes over a non-blocking socket; its task ends when the handshake is over.
    """

    def __init__(self, address: str, welcome: Callable[[socket.socket], asyncio.Task[None]]) -> None:
        """Bind and listen, but accept nothing until ``start``.

        Raises:
            ConfigError: the address cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        self._welcome = welcome
        self._slots = MAX_HANDSHAKES
        self._shaking: dict[asyncio.Task[None], str] = {}  # in the order in which they came: from where
        self._accepting = False
        self._retry: asyncio.TimerHandle | None = None
        self._sock = _bind(address)
        self.port: int = self._sock.getsockname()[1]

    def start(self) -> None:
        """Accept connections."""
        if not self._accepting and self._sock.fileno() >= 0:
            self._accepting = True
            self._loop.add_reader(self._sock, self._accept)

    def _over(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        """A handshake is over, one way or the other."""
        sock.close()  # where the task never began; else it has let go of it
        self._shaking.pop(task, None)
        self._slots += 1
        if self._retry is None:
            self.start()

    def close(self) -> None:
        """Stop listening."""
        if self._sock.fileno() >= 0:
            self._stop()
            self._sock.close()
        if self._retry is not None:
            self._retry.cancel()

    def _stop(self) -> None:
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._sock)

    def _start_again(self) -> None:
        self._retry = None
        self.start()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_WAKE):
            if not self._slots:
                self._make_room()
                self._stop()
                return
            try:
                sock, where = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                self._stop()
                self._retry = self._loop.call_later(_NO_DESCRIPTORS_S, self._start_again)
                return
            try:
                tune(sock)
            except OSError:  # it is gone already
                sock.close()
                continue
            self._slots -= 1
            task = self._welcome(sock)
            self._shaking[task] = origin(where[0])
            task.add_done_callback(partial(self._over, sock))

    def _make_room(self) -> None:
        """End the oldest handshake of whoever has more of them than anybody else, and than is its share."""
        if not self._shaking:
            return
        ((most, count),) = Counter(self._shaking.values()).most_common(1)
        if count > MAX_HANDSHAKES_OF_ONE:
            oldest = next(task for task, place in self._shaking.items() if place == most)
            del self._shaking[oldest]
            oldest.cancel()


def origin(host: str) -> str:
    """Where an address is, as far as one visitor can be at many: of IPv6, the network that a site has."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, _SITE_BITS), strict=False))


def _bind(address: str) -> socket.socket:
    host, port = split_address(address)
    sock: socket.socket | None = None
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(where)
        sock.listen(BACKLOG)
    except (OSError, UnicodeError) as error:
        if sock is not None:
            sock.close()
        why = error if isinstance(error, OSError) else no_name(host)
        raise _unusable(address, host, port, why) from error
    return sock


def _unusable(address: str, host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        what = f"Port {port} at {host} is in use by another program."
        do = f"Stop it (`ss -ltnp 'sport = :{port}'` names it), or listen on another port."
    elif error.errno == errno.EACCES:
        what = f"Port {port} at {host} needs more rights than this node has."
        do = "Take a port from 1024 up."
    elif error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        what = f"This machine has no address {host} to listen at."
        do = 'Take one of its own addresses, or "0.0.0.0" for all of them.'
    else:
        what = f"Cannot listen at {address}: {error.strerror or error}."
        do = "Look at the address and at the system's limits."
    return ConfigError(
        what, safe="Nothing was started.", do=f"{do} Check with `konsil doctor`.", host=host, port=port
    )
