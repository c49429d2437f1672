"""Sockets on the event loop: connected, tuned, secured, and closed without losing the last words."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import zip_longest

from konsil.errors import PeerUnreachable

_AddressInfo = tuple[
    socket.AddressFamily,
    socket.SocketKind,
    int,
    str,
    tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes],
]

UNSENT_BYTES = 256 * 1024
"""Unsent bytes that the kernel may hold: behind more of them, a heartbeat would wait on a slow line."""


NEXT_ADDRESS_S = 0.25
"""An address that has not answered by then has company of the next one (RFC 8305, section 5)."""


async def connect(host: str, port: int) -> socket.socket:
    """A TCP connection to the first of a host's addresses that takes one.

    One that swallows what is sent to it, as IPv6 does where it is set up by half, costs a moment, not the
    whole time that a dial may take.
    """
    addresses = await _resolve(host, port)
    if len(addresses) == 1:
        return await _connect_to(addresses[0])
    errors = list[OSError]()
    left, dialled, pending = _by_turns(addresses), set[_Dial](), set[_Dial]()
    try:
        while left or pending:
            if left:
                dial = asyncio.create_task(_connect_to(left.pop(0)))
                dialled.add(dial)
                pending.add(dial)
            wait_s = NEXT_ADDRESS_S if left else None
            done, pending = await asyncio.wait(pending, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            for dial in done:
                error = dial.exception()
                if error is None:
                    dialled.remove(dial)
                    return dial.result()
                if not isinstance(error, OSError):
                    raise error
                errors.append(error)
    finally:
        for dial in dialled:
            dial.cancel()
            dial.add_done_callback(_close_it)
    raise _of_all(errors, host)


def _of_all(errors: Sequence[OSError], host: str) -> OSError:
    """What is told where no address answers: what each said, in order. The last alone may be the least
    telling, such as that this machine has no IPv6.
    """
    said = list(dict.fromkeys(map(explain, errors)))
    if len(said) == 1:
        return errors[0]
    return OSError("; ".join(said) or f"{host} has no address")


_Dial = asyncio.Task[socket.socket]


def _close_it(dial: _Dial) -> None:
    """Of an address that was not needed any more."""
    if not dial.cancelled() and dial.exception() is None:
        dial.result().close()


async def _connect_to(address: _AddressInfo) -> socket.socket:
    family, kind, protocol, _, where = address
    sock = socket.socket(family, kind, protocol)
    try:
        tune(sock)
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


def _by_turns(addresses: Sequence[_AddressInfo]) -> list[_AddressInfo]:
    """The kinds of address by turns, beginning with the first one's (RFC 8305, section 4)."""
    first = [each for each in addresses if each[0] == addresses[0][0]]
    others = [each for each in addresses if each[0] != addresses[0][0]]
    pairs = zip_longest(first, others)
    return [each for pair in pairs for each in pair if each is not None]


_names = ThreadPoolExecutor(max_workers=4, thread_name_prefix="names")
"""Of their own: a look-up that hangs cannot be ended, and must not keep disks and digests waiting."""


async def _resolve(host: str, port: int) -> Sequence[_AddressInfo]:
    """A host's addresses; an IP address needs no thread to be understood."""
    try:
        try:
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
            return await asyncio.get_running_loop().run_in_executor(_names, look_up)
    except UnicodeError as error:
        raise no_name(host) from error


def no_name(host: str) -> socket.gaierror:
    """What a name that is none leads to, such as one with a label of over 63 letters."""
    return socket.gaierror(socket.EAI_NONAME, f"{host[:80]!r} cannot be the name of a host")


async def shake_hands(sock: ssl.SSLSocket) -> None:
    """Drive a TLS handshake on a non-blocking socket; the deadline is the caller's.

    Raises:
        ssl.SSLError, OSError: the handshake failed.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            await _ready(sock.fileno(), loop.add_reader, loop.remove_reader)
        except ssl.SSLWantWriteError:
            await _ready(sock.fileno(), loop.add_writer, loop.remove_writer)
        else:
            return


async def until_readable(sock: socket.socket) -> None:
    """Wait for the first byte, or the end; the deadline is the caller's."""
    loop = asyncio.get_running_loop()
    await _ready(sock.fileno(), loop.add_reader, loop.remove_reader)


async def _ready(fd: int, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    add(fd, lambda: None if future.done() else future.set_result(None))
    try:
        await future
    finally:
        remove(fd)


async def linger(raw: socket.socket, timeout_s: float) -> None:
    """Say that nothing more comes, read until the peer has closed too or the time is up, and close."""
    loop = asyncio.get_running_loop()
    scratch = bytearray(64 * 1024)
    raw.setblocking(False)
    try:
        with contextlib.suppress(OSError, TimeoutError):
            raw.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(timeout_s):
                while await loop.sock_recv_into(raw, scratch):
                    pass
    finally:
        raw.close()


def tune(sock: socket.socket) -> None:
    """Prepare a TCP socket.

    Buffer sizes are left alone: fixing them would end the kernel's own tuning to the line.
    """
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    unsent = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if unsent is not None:
        sock.setsockopt(socket.IPPROTO_TCP, unsent, UNSENT_BYTES)


def broken(error: OSError) -> PeerUnreachable:
    """What a socket's or TLS's error means, in words."""
    text = explain(error)
    return PeerUnreachable(
        f"The connection broke: {text}.",
        safe="Requests are safe to repeat.",
        do="It is tried again by itself.",
    )


def explain(error: OSError) -> str:
    """A socket's or TLS's error in words a reader of a log can act on."""
    if isinstance(error, ssl.SSLCertVerificationError):
        dates = "; compare both machines' clocks: `konsil doctor`" if error.verify_code in _BY_DATES else ""
        return f"the peer's certificate is not trusted ({error.verify_message}{dates})"
    reason = getattr(error, "reason", None)
    if isinstance(error, ssl.SSLError) and reason:
        return _ALERTS.get(reason, f"TLS failed ({reason.lower().replace('_', ' ')})")
    if isinstance(error, socket.gaierror):
        return error.strerror or str(error)  # its number is not one of the system's errors
    if error.errno and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


_BY_DATES = (9, 10)
"""OpenSSL's codes for a certificate that is not valid yet, or not any more: here mostly a wrong clock."""

_ALERTS = {
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not trust our certificate (no bundle of its directory holds it)",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer says that our certificate has expired",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer does not trust our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer does not trust our certificate",
    "TLSV1_ALERT_DECRYPT_ERROR": "the peer could not check our certificate's signature",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer asked for a certificate and got none",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the peer and this node have no TLS version in common",
    "UNSUPPORTED_PROTOCOL": "the other side offers no TLS 1.3",
    "WRONG_VERSION_NUMBER": "the other side does not speak TLS",
    "HTTP_REQUEST": "the other side speaks HTTP, not TLS",
    "UNEXPECTED_EOF_WHILE_READING": "the other side closed during the handshake",
}
