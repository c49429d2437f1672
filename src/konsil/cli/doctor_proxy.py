"""The proxy's line in `konsil doctor`: does it let this node out?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Literal, NamedTuple

from konsil.core.rules import MemberRecord
from konsil.errors import ConfigError, ProxyError
from konsil.node.config import Config
from konsil.node.way_out import PASSWORD_VARIABLE, WayOut, way_out
from konsil.transport.listener import split_address
from konsil.transport.proxy import Proxy, written
from konsil.transport.tunnel import NOT_REACHED, connect_through


class Found(NamedTuple):
    """What is said of the way out; see ``konsil.cli.doctor.Finding``.

    ``cut``: members that this node could dial only in a way that fails: nothing is known of their nodes.
    """

    level: Literal["ok", "warn", "fail"]
    what: str
    do: str = ""
    cut: frozenset[str] = frozenset()


class _Address(NamedTuple):
    """Where a member's node is dialled."""

    member: str
    host: str
    port: int


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
    others = sorted(
        (each for each in members if each.name != config.name), key=lambda each: each.name != operator
    )
    addresses = [
        _Address(each.name, *split_address(address)) for each in others for address in each.addresses
    ]
    try:
        way = way_out(config)
    except ConfigError as error:
        if running is not None and "variable" in error.fields:
            return _shells_fault(running, error)
        return Found("fail", error.what, error.do, frozenset(each.member for each in addresses))
    if running is not None and running != str(way):
        return _another(running, str(way))
    return _with_what_is_unclear(way, _tried(way, addresses))


def _with_what_is_unclear(way: WayOut, found: Found) -> Found:
    if not way.unclear:
        return found
    do = found.do or "Write such entries as names, IP addresses or networks, with commas between them."
    level = "warn" if found.level == "ok" else found.level
    return found._replace(level=level, what=f"{found.what}. {way.unclear}", do=do)


def _tried(way: WayOut, addresses: list[_Address]) -> Found:
    if way.proxy is None:
        return Found("ok", f"peers are dialled directly{f': {way}' if way.set_by else ''}")
    direct = {each for each in addresses if way.proxy.direct.has(each.host, each.port)}
    behind = [each for each in addresses if each not in direct]
    if not behind:
        return Found("ok", f"{way}; no peer is known that is dialled through it")
    cut = {each.member for each in behind} - {each.member for each in direct}
    return _try(way, way.proxy, behind[0], frozenset(cut))


def _shells_fault(running: str, error: ConfigError) -> Found:
    """What this shell's environment lacks, the running node has from its own."""
    if error.fields["variable"] != PASSWORD_VARIABLE:
        what = f"The running node's way out: {running or 'direct'}. Of this shell's environment: {error.what}"
        return Found("warn", what, error.do)
    way = str(error.fields["way"])
    if running != way:
        return _another(running, way)
    return Found(
        "warn",
        f"The running node goes out by {running}; this shell has no {PASSWORD_VARIABLE}, so the proxy was "
        "not tried from here.",
        "Run doctor with the service's variables, or use `proxy_password_file`.",
    )


def _another(running: str, way: str) -> Found:
    return Found(
        "warn",
        f"The running node's way out: {running or 'direct'}. By node.toml and this shell's environment "
        f"it would be: {way or 'direct'}.",
        "Restart the node if node.toml was changed; set `proxy` there if the two environments differ.",
    )


def _try(way: WayOut, proxy: Proxy, to: _Address, cut: frozenset[str]) -> Found:
    """Have the proxy open a way to a peer; nothing is said over it. ``cut``: who is, if it does not."""
    try:
        asyncio.run(_open(proxy, to.host, to.port))
    except ProxyError as error:
        if error.fields.get("status") in NOT_REACHED:
            # Then the proxy did its part, and its answer says that the peer did not.
            return Found("warn", error.what, error.do)
        return Found("fail", error.what, error.do, cut)
    except ConfigError as error:
        return Found("fail", error.what, error.do, cut)
    return Found("ok", f"{way} opens the way to {written(to.host, to.port)}")


async def _open(proxy: Proxy, host: str, port: int) -> None:
    (await connect_through(proxy, host, port)).close()
