"""A forward proxy as settings name it, and the hosts that are reached without it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Self
from urllib.parse import unquote

_PORTS = range(1, 65536)
_HOST = r"\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}"
_URL = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://)?"
    r"(?:(?P<user>[^:@/?#\s]*)(?P<colon>:(?P<password>[^@/?#\s]*))?@)?"
    rf"(?P<host>{_HOST})(?::(?P<port>[0-9]{{1,5}}))?/?"
)
_ENTRY = re.compile(
    r"(?P<host>\[[^\[\]]+\]|[^\[\]:]+|[0-9A-Fa-f:.]+:[0-9A-Fa-f:.]*(?:/[0-9]+)?)(?::(?P<port>[0-9]{1,5}))?"
)
_NAME = re.compile(r"(?:\*?\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?")
_BEGINNING = re.compile(r"((?:[0-9]{1,3}\.){1,3})\*(?:\.\*)*")
_SHOWN = 80
"""Letters of an entry that nobody understands."""

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ProxyUrl(NamedTuple):
    """A proxy's URL in its parts. ``password``: None where the URL names none."""

    host: str
    port: int
    user: str = ""
    password: str | None = None


def parse_url(text: str, port_unless_named: int | None = None) -> ProxyUrl:
    """The proxy in a text such as "http://proxy.hospital:3128" or "http://user:password@proxy.hospital:3128".

    Args:
        text: the URL.
        port_unless_named: the port where the URL names none; None where it must name one.

    Raises:
        ValueError: it is none; says why, and never shows the text, in which a password may stand.
    """
    found = _URL.fullmatch(text.strip())
    if found is None:
        raise ValueError('is not such as "http://proxy.hospital:3128"')
    scheme = (found["scheme"] or "http").lower()
    if scheme != "http":
        raise ValueError(f'begins with "{scheme}://", but Konsil speaks to a proxy over "http://" only')
    port = int(found["port"]) if found["port"] else port_unless_named
    if port is None:
        raise ValueError("names no port")
    if port not in _PORTS:
        raise ValueError(f"has the port {port}, which does not exist")
    user = unquote(found["user"] or "")
    password = unquote(found["password"]) if found["colon"] else None
    if ":" in user or not (user + (password or "")).isprintable():
        raise ValueError("names a user or a password with characters that cannot be sent")
    if password is not None and not user:
        raise ValueError("has a password, but no user")
    return ProxyUrl(found["host"].strip("[]").lower(), port, user, password)


class _Entry(NamedTuple):
    """Hosts that are reached without the proxy: "" for any; ``port``: 0 for any."""

    name: str = ""
    network: _Network | None = None
    port: int = 0

    def holds(self, host: str, address: _Address | None, port: int) -> bool:
        if self.port not in (0, port):
            return False
        if self.network is not None:
            return address is not None and address in self.network
        return not self.name or (address is None and (host == self.name or host.endswith(f".{self.name}")))


@dataclass(frozen=True)
class Direct:
    """The hosts that are reached without the proxy, as ``NO_PROXY`` of other programs lists them."""

    entries: tuple[_Entry, ...] = ()
    unknown: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """A list with commas or spaces: names (with all below them), IP addresses, networks, "*", each with
        a port or not; and beginnings of IPv4 addresses as other systems write them, such as "192.168.*".

        There is no standard for such a list, and programs pass over an entry that they do not know: so does
        this, and keeps it in ``unknown``.
        """
        parts = [part for part in re.split(r"[,\s]+", text.lower()) if part]
        found = [(part, _entry(part)) for part in parts]
        return cls(
            tuple(entry for _, entry in found if entry is not None),
            tuple(part[:_SHOWN] for part, entry in found if entry is None),
        )

    def has(self, host: str, port: int) -> bool:
        """Whether this host is reached directly. This machine itself always is: no proxy could reach it."""
        host = host.strip("[]").rstrip(".").lower()
        address = _address(host)
        if host == "localhost" or host.endswith(".localhost"):
            return True
        if address is not None and address.is_loopback:
            return True
        return any(entry.holds(host, address, port) for entry in self.entries)


def _entry(text: str) -> _Entry | None:
    found = _ENTRY.fullmatch(text)
    host = found["host"].strip("[]") if found is not None else ""
    port = int(found["port"] or 0) if found is not None else 0
    if host and port <= _PORTS[-1]:
        if host == "*":
            return _Entry(port=port)
        try:
            return _Entry(network=ipaddress.ip_network(_without_stars(host), strict=False), port=port)
        except ValueError:
            name = host.removesuffix(".")
            if _NAME.fullmatch(name) and not name.rpartition(".")[2].isdigit():
                return _Entry(name.removeprefix("*").removeprefix("."), port=port)
    return None


def _without_stars(host: str) -> str:
    """The network that the beginning of an IPv4 address stands for; anything else as it is."""
    beginning = _BEGINNING.fullmatch(host)
    if beginning is None or host.count(".") > 3:  # noqa: PLR2004 - an IPv4 address has four numbers
        return host
    known = beginning[1].count(".")
    return f"{beginning[1]}{'.'.join(['0'] * (4 - known))}/{8 * known}"


def _address(host: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if isinstance(mapped, ipaddress.IPv4Address) else address


def _no_password() -> str:
    return ""


@dataclass(frozen=True)
class Proxy:
    """A forward proxy through which peers are dialled.

    Attributes:
        host: its name or IP address.
        port: its port.
        user: whom it knows; "" where it asks for nobody.
        password: asked for each time that it is needed, so that it can be changed and is nowhere kept.
        direct: hosts that are reached without it.
        known_from: for people: where user and password come from.
        make_known: for people: what to write where, if it asks for a user and none is named.
    """

    host: str
    port: int
    user: str = ""
    password: Callable[[], str] = field(default=_no_password, repr=False, compare=False)
    direct: Direct = Direct()
    known_from: str = field(default="", compare=False)
    make_known: str = field(default="Name both where the proxy is named.", compare=False)

    def __str__(self) -> str:
        """For people and logs: without the password."""
        user = f"{self.user}@" if self.user else ""
        return f"http://{user}{written(self.host, self.port)}"


def written(host: str, port: int) -> str:
    """Host and port as one text, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
