"""A connection to a peer through a forward proxy: CONNECT, and from then on the bytes of TLS alone.

The proxy moves bytes and is trusted with nothing: what it may do is what any line may do, break or be slow.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from konsil.errors import FrameError, ProxyError
from konsil.transport.connect_answer import AnswerReader, ConnectAnswer
from konsil.transport.proxy import Proxy, written
from konsil.transport.sockets import connect, explain

Dial = Callable[[str, int], Awaitable[socket.socket]]
"""(host, port) -> a connected, non-blocking TCP socket, over which nothing has been said."""

TUNNEL_S = 8.0
"""For a proxy to be reached and to answer: less than a handshake may take, so that its own words are told."""

_TARGET = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}")
_READ_BYTES = 4096
NOT_REACHED = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
"""A proxy's words for a peer that it could not get to; they are not always true of the peer."""

_NO_TUNNELS = (HTTPStatus.BAD_REQUEST, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED)


def dialling(proxy: Proxy | None, timeout_s: float = TUNNEL_S) -> Dial:
    """How peers are dialled: through the proxy, but for the hosts that are reached directly."""
    if proxy is None:
        return connect

    async def dial(host: str, port: int) -> socket.socket:
        if proxy.direct.has(host, port):
            return await connect(host, port)
        return await connect_through(proxy, host, port, timeout_s)

    return dial


async def connect_through(proxy: Proxy, host: str, port: int, timeout_s: float = TUNNEL_S) -> socket.socket:
    """A TCP connection to a host through the proxy, which finds the host's address itself.

    Raises:
        ProxyError: the proxy cannot be reached, does not open the way, or does not answer in time.
        ConfigError: there is no password for it.
    """
    request = await _request(proxy, host, port)
    sock: socket.socket | None = None
    try:
        async with asyncio.timeout(timeout_s):
            sock = await _reach(proxy)
            answer = await _ask(proxy, sock, request)
    except TimeoutError:
        _close(sock)
        raise _too_late(proxy, host, port, timeout_s, reached=sock is not None) from None
    except BaseException:
        _close(sock)
        raise
    problem = _refusal(proxy, host, port, answer)
    if problem is not None:
        sock.close()
        raise problem
    return sock


def _close(sock: socket.socket | None) -> None:
    if sock is not None:
        sock.close()


async def _request(proxy: Proxy, host: str, port: int) -> bytes:
    if not _TARGET.fullmatch(host):
        # The ledger lets no such address through; whatever else did, it must not become lines of a request.
        raise ProxyError(
            f"{host[:80]!r} cannot be asked of a proxy: it is neither a name nor an IP address.",
            safe="Nothing was sent.",
            do="The member's address must be changed: `konsil swarm members` shows it.",
        )
    where = written(host, port)
    lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}", "User-Agent: konsil"]
    if proxy.user:
        password = await asyncio.to_thread(proxy.password)
        known = base64.b64encode(f"{proxy.user}:{password}".encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {known}")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


async def _reach(proxy: Proxy) -> socket.socket:
    try:
        return await connect(proxy.host, proxy.port)
    except OSError as error:
        raise ProxyError(
            f"The proxy {proxy} cannot be reached: {explain(error)}.",
            safe="Nothing was sent; it is tried again by itself.",
            do="See whether it runs, whether this machine may speak to it, and whether its address is right.",
        ) from error


async def _ask(proxy: Proxy, sock: socket.socket, request: bytes) -> ConnectAnswer:
    loop = asyncio.get_running_loop()
    reader = AnswerReader()
    try:
        await loop.sock_sendall(sock, request)
        while True:
            piece = await loop.sock_recv(sock, _READ_BYTES)
            if not piece:
                what = "closed in the middle of its answer" if reader.begun else "closed without an answer"
                raise _no_way(proxy, what, "See its log; it may let only some machines or programs through.")
            answer = reader.feed(piece)
            if answer is not None:
                return answer
    except FrameError as error:
        raise _no_way(
            proxy,
            f"does not answer as an HTTP proxy. {error.what.removesuffix('.')}",
            "See whether its address and port are right.",
        ) from error
    except OSError as error:
        raise _no_way(
            proxy, f"broke the connection: {explain(error)}", "See its log; it is tried again by itself."
        ) from error


# --- what is wrong, in words -----------------------------------------------------------------------


def _refusal(proxy: Proxy, host: str, port: int, answer: ConnectAnswer) -> ProxyError | None:
    """Why there is no tunnel after this answer; None if there is one."""
    where, status = written(host, port), answer.status
    said = f"{status} {answer.reason}".strip()
    if answer.opens:
        if not answer.surplus_bytes:
            return None
        # A peer says nothing before it is spoken to: these bytes are the proxy's own, or another one's.
        what = f"sent {answer.surplus_bytes} bytes of its own into the way to {where}"
        do = "It opens or changes what it should pass on: ask IT to let this way through untouched."
    elif status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        what, do = _who_are_you(proxy, answer, said)
    elif status in NOT_REACHED:
        what = f"could not reach {where} ({said})"
        do = "Is that node running, and does its firewall let the proxy in? See the proxy's log."
    elif status in _NO_TUNNELS:
        what = f"opens no way to {where} ({said})"
        do = f"Ask IT whether it is a proxy that knows CONNECT, and to allow CONNECT to {where}."
    elif status // 100 == 3:  # noqa: PLR2004 - HTTP's own class of redirects
        what = (
            f"sends this node elsewhere ({said}) instead of opening the way to {where}; that is not followed"
        )
        do = f"It may want a person to log in first: ask IT to allow CONNECT to {where} from this machine."
    elif status // 100 == 4:  # noqa: PLR2004 - HTTP's own class of refusals
        what = f"refuses the way to {where} ({said})"
        do = f"Ask IT to allow CONNECT to {where} from this machine."
    else:
        what = f"answered {said} instead of opening the way to {where}"
        do = "See the proxy's log; it is tried again by itself."
    return _no_way(proxy, what, do, status=status, host=host, port=port)


def _who_are_you(proxy: Proxy, answer: ConnectAnswer, said: str) -> tuple[str, str]:
    """What is wrong where the proxy asks for a user and a password, and what to do."""
    if answer.schemes and "basic" not in {scheme.lower() for scheme in answer.schemes}:
        offered = ", ".join(answer.schemes)
        return (
            f"wants to know who asks ({said}), by {offered}; this node can tell it only by Basic",
            "Ask IT to let this machine through without, or to allow Basic for it.",
        )
    if proxy.user:
        stand = f": they come from {proxy.known_from}" if proxy.known_from else ""
        return (
            f"does not take the user '{proxy.user}' with its password ({said})",
            f"See whether both are right{stand}.",
        )
    return f"wants a user and a password ({said})", proxy.make_known


def _no_way(proxy: Proxy, what: str, do: str, **facts: object) -> ProxyError:
    return ProxyError(f"The proxy {proxy} {what}.", safe="Nothing was sent to the peer.", do=do, **facts)


def _too_late(proxy: Proxy, host: str, port: int, timeout_s: float, *, reached: bool) -> ProxyError:
    where = written(host, port)
    if not reached:
        return ProxyError(
            f"The proxy {proxy} cannot be reached: nothing answered in {timeout_s:g} s.",
            safe="Nothing was sent; it is tried again by itself.",
            do="See whether it runs, whether this machine may speak to it, and whether its address is right.",
        )
    return _no_way(
        proxy,
        f"did not open the way to {where} in {timeout_s:g} s",
        "Most often it waits for that node: is it running, does its firewall let the proxy in?",
        host=host,
        port=port,
    )
