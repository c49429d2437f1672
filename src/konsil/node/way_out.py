"""How this node gets out to its peers: by itself, or through the forward proxy of its hospital.

`proxy` in node.toml says it first; where that is not set, the environment does, as it does to other programs:
HTTPS_PROXY, and NO_PROXY for what is reached without. Either is told in the log, by `konsil node status` and
by `konsil doctor`: nobody's traffic takes a way that nobody can see.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from konsil.errors import ConfigError, IdentityError
from konsil.identity.files import read_private
from konsil.node.config import CONFIG_NAME, Config, says_no_proxy
from konsil.transport.proxy import Direct, Proxy, parse_url

PASSWORD_VARIABLE = "KONSIL_PROXY_PASSWORD"  # noqa: S105 - where it is, not what it is
PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy")
DIRECT_VARIABLES = ("NO_PROXY", "no_proxy")

ENCODED = "in a URL's user and password / is written %2F, @ %40, : %3A, # %23, ? %3F and % %25"

_MAX_PASSWORD_BYTES = 1024
_ENVIRONMENTS_PORT = 80
"""What other programs take where HTTPS_PROXY names no port."""

_SETTINGS = f"`proxy` and `proxy_password_file` in {CONFIG_NAME}"


class WayOut(NamedTuple):
    """The proxy, or None; ``set_by``: who says so, "" where nobody says anything.

    ``unclear``: what is passed over in the list of hosts that are reached without it, in words.
    """

    proxy: Proxy | None
    set_by: str
    unclear: str = ""

    def __str__(self) -> str:
        """For people: "" for a node that dials directly because nobody says otherwise."""
        if self.proxy is None:
            return f"no proxy ({self.set_by})" if self.set_by else ""
        return f"{self.proxy} ({self.set_by})"


def way_out(config: Config, environment: Mapping[str, str] = os.environ) -> WayOut:
    """How this node dials its peers.

    Raises:
        ConfigError: what the environment names is no proxy, or there is no password for the user. Has the
            field ``variable`` where another environment would do, and ``way`` where that lacks nothing but
            the password.
    """
    if says_no_proxy(config.node.proxy):
        return WayOut(None, f"`proxy` in {CONFIG_NAME}")
    if config.node.proxy:
        return _from_settings(config, environment)
    variable = _first(PROXY_VARIABLES, environment)
    return _from_environment(variable, environment) if variable else WayOut(None, "")


def _first(variables: tuple[str, ...], environment: Mapping[str, str]) -> str:
    return next((variable for variable in variables if environment.get(variable, "").strip()), "")


def _from_settings(config: Config, environment: Mapping[str, str]) -> WayOut:
    """``read_config`` has seen that these can be used."""
    url = parse_url(config.node.proxy)
    password, known_from = _password(config, environment)
    proxy = Proxy(
        url.host,
        url.port,
        url.user,
        password,
        Direct.parse(config.node.no_proxy),
        known_from,
        f"In {CONFIG_NAME} write the user into `proxy`, as http://USER@HOST:PORT, and the password's file "
        "into `proxy_password_file`.",
    )
    way = WayOut(proxy, f"`proxy` in {CONFIG_NAME}")
    if url.user and not config.node.proxy_password_file and not environment.get(PASSWORD_VARIABLE):
        raise _no_password(
            way,
            f"{config.config_file}: `proxy` names a user, but there is no password.",
            f"Put it into a file that `proxy_password_file` names, or into {PASSWORD_VARIABLE}.",
        )
    if url.user:
        password()  # a node that could never get out says so when it starts
    return way


def _password(config: Config, environment: Mapping[str, str]) -> tuple[Callable[[], str], str]:
    """What gives the password, from its file or else from the environment, and where it is and the user.

    The file may change any time.
    """
    if config.node.proxy_password_file:
        path = config.directory / Path(config.node.proxy_password_file).expanduser()
        return lambda: _read_password(path), _SETTINGS
    kept = environment.get(PASSWORD_VARIABLE, "")
    return lambda: kept, f"`proxy` in {CONFIG_NAME} and {PASSWORD_VARIABLE} in the environment"


def _no_password(way: WayOut, what: str, do: str) -> ConfigError:
    """An empty one is none: nobody means to send it, but many a variable is set to nothing."""
    return ConfigError(
        what, safe="Nothing was sent to the proxy.", do=do, variable=PASSWORD_VARIABLE, way=str(way)
    )


def _read_password(path: Path) -> str:
    try:
        text = read_private(path, _MAX_PASSWORD_BYTES).decode()
    except (IdentityError, UnicodeDecodeError) as error:
        why = error.what if isinstance(error, IdentityError) else f"{path} is not UTF-8."
        raise ConfigError(
            f"The proxy's password is not used. {why}",
            safe="Nothing was sent to the proxy.",
            do=f"It must stand in a file of this user alone (`chmod 600 {path}`), on one line.",
            path=str(path),
        ) from error
    password = text.removesuffix("\n").removesuffix("\r")
    if not password or not password.isprintable():
        raise ConfigError(
            f"{path} does not hold a password on one line.",
            safe="Nothing was sent to the proxy.",
            do="Write the proxy's password into it, and nothing else.",
            path=str(path),
        )
    return password


def _from_environment(variable: str, environment: Mapping[str, str]) -> WayOut:
    text = environment[variable]
    try:
        url = parse_url(text, _ENVIRONMENTS_PORT)
    except ValueError as error:
        hint = f" ({ENCODED})" if "@" in text else ""
        raise ConfigError(
            f"{variable} in the environment {error}.",
            safe="No peer was dialled.",
            do=f"Correct it{hint}, or set `proxy` in {CONFIG_NAME}: "
            'to the proxy, or to "none" for direct lines.',
            variable=variable,
        ) from error
    at = _first(DIRECT_VARIABLES, environment)
    direct = Direct.parse(environment.get(at, ""))
    if url.password is None:
        password, known_from = environment.get(PASSWORD_VARIABLE, ""), f"{variable} and {PASSWORD_VARIABLE}"
        known_from += " in the environment"
    else:
        password, known_from = url.password, f"{variable} in the environment ({ENCODED})"
    otherwise = f"or set {_SETTINGS}"
    make_known = f"Write {variable} as http://USER@HOST:PORT, and the password into {PASSWORD_VARIABLE}; "
    proxy = Proxy(
        url.host, url.port, url.user, lambda: password, direct, known_from, f"{make_known}{otherwise}."
    )
    way = WayOut(proxy, f"{variable} in the environment", _unclear(at, direct))
    if url.user and url.password is None and not password:
        raise _no_password(
            way,
            f"{variable} in the environment names a user, but there is no password.",
            f"Put it into {PASSWORD_VARIABLE}, {otherwise}.",
        )
    return way


def _unclear(variable: str, direct: Direct) -> str:
    if not direct.unknown:
        return ""
    more = f" and {len(direct.unknown) - 1} more" if len(direct.unknown) > 1 else ""
    return (
        f"{variable} in the environment has {direct.unknown[0]!r}{more}, which is no name, IP address or "
        "network: what it stands for is reached through the proxy."
    )
