"""The proxy's line in `konsil doctor`: does it let this node out?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Literal, NamedTuple

from konsil.core.rules import MemberRecord
from konsil.errors import ConfigError, ProxyError
from konsil.node.config import Config
from konsil.node.way_out import WayOut, way_out
from konsil.transport.listener import split_address
from konsil.transport.proxy import Proxy, written
from konsil.transport.tunnel import NOT_REACHED, connect_through


class Found(NamedTuple):
    """What is said of the way out; see ``konsil.cli.doctor.Finding``."""

    level: Literal["ok", "warn", "fail"]
    what: str
    do: str = ""


def look(
    config: Config, members: Iterable[MemberRecord], operator: str, *, running: str | None = None
) -> Found:
    """Whether this node gets out; one line.

    Args:
        config: the member's.
        members: the swarm's, with their nodes' addresses.
        operator: without whose node nothing goes: its address is tried first.
        running: what the running node says of its way out; None if it does not run.
    """
    try:
        way = way_out(config)
    except ConfigError as error:
        return Found("fail", error.what, error.do)
    if running is not None and running != str(way):
        return Found(
            "warn",
            f"The running node's way out: {running or 'direct'}. By node.toml and this shell's environment "
            f"it would be: {str(way) or 'direct'}.",
            "Restart the node if node.toml was changed; set `proxy` there if the two environments differ.",
        )
    if way.proxy is None:
        return Found("ok", f"peers are dialled directly{f': {way}' if way.set_by else ''}")
    others = sorted(
        (each for each in members if each.name != config.name), key=lambda each: each.name != operator
    )
    where = (split_address(address) for each in others for address in each.addresses)
    behind = [(host, port) for host, port in where if not way.proxy.direct.has(host, port)]
    if not behind:
        return Found("ok", f"{way}; no peer is known that is dialled through it")
    return _try(way, way.proxy, *behind[0])


def _try(way: WayOut, proxy: Proxy, host: str, port: int) -> Found:
    """Have the proxy open a way to a peer; nothing is said over it."""
    try:
        asyncio.run(_open(proxy, host, port))
    except ProxyError as error:
        # Then the proxy did its part, and its answer says that the peer did not.
        peer_away = error.fields.get("status") in NOT_REACHED
        return Found("warn" if peer_away else "fail", error.what, error.do)
    except ConfigError as error:
        return Found("fail", error.what, error.do)
    return Found("ok", f"{way} opens the way to {written(host, port)}")


async def _open(proxy: Proxy, host: str, port: int) -> None:
    (await connect_through(proxy, host, port)).close()
