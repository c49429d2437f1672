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
from konsil.node.config import CONFIG_NAME, NO_PROXY, Config
from konsil.transport.proxy import Direct, Proxy, parse_url

PASSWORD_VARIABLE = "KONSIL_PROXY_PASSWORD"  # noqa: S105 - where it is, not what it is
PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy")
DIRECT_VARIABLES = ("NO_PROXY", "no_proxy")

_MAX_PASSWORD_BYTES = 1024


class WayOut(NamedTuple):
    """The proxy, or None; ``set_by``: who says so, "" where nobody says anything."""

    proxy: Proxy | None
    set_by: str

    def __str__(self) -> str:
        """For people: "" for a node that dials directly because nobody says otherwise."""
        if self.proxy is None:
            return f"no proxy ({self.set_by})" if self.set_by else ""
        return f"{self.proxy} ({self.set_by})"


def way_out(config: Config, environment: Mapping[str, str] = os.environ) -> WayOut:
    """How this node dials its peers.

    Raises:
        ConfigError: what the environment names is no proxy, or there is no password for the user.
    """
    if config.node.proxy == NO_PROXY:
        return WayOut(None, f"`proxy` in {CONFIG_NAME}")
    if config.node.proxy:
        return WayOut(_from_settings(config, environment), f"`proxy` in {CONFIG_NAME}")
    variable = _first(PROXY_VARIABLES, environment)
    if not variable:
        return WayOut(None, "")
    return WayOut(_from_environment(variable, environment), f"{variable} in the environment")


def _first(variables: tuple[str, ...], environment: Mapping[str, str]) -> str:
    return next((variable for variable in variables if environment.get(variable, "").strip()), "")


def _from_settings(config: Config, environment: Mapping[str, str]) -> Proxy:
    """``read_config`` has seen that these can be used."""
    url = parse_url(config.node.proxy)
    password = _password(config, environment)
    if url.user:
        password()  # a node that could never get out says so when it starts
    return Proxy(url.host, url.port, url.user, password, Direct.parse(config.node.no_proxy))


def _password(config: Config, environment: Mapping[str, str]) -> Callable[[], str]:
    """What gives the password, from its file or else from the environment; the file may change any time."""
    if config.node.proxy_password_file:
        path = config.directory / Path(config.node.proxy_password_file).expanduser()
        return lambda: _read_password(path)
    kept = environment.get(PASSWORD_VARIABLE)

    def password() -> str:
        if kept is None:
            raise ConfigError(
                f"{config.config_file}: `proxy` names a user, but there is no password.",
                safe="Nothing was sent to the proxy.",
                do=f"Put it into a file that `proxy_password_file` names, or into {PASSWORD_VARIABLE}.",
            )
        return kept

    return password


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


def _from_environment(variable: str, environment: Mapping[str, str]) -> Proxy:
    at = variable
    try:
        url = parse_url(environment[variable])
        at = _first(DIRECT_VARIABLES, environment)
        direct = Direct.parse(environment.get(at, ""))
    except ValueError as error:
        raise ConfigError(
            f"{at} in the environment {error}.",
            safe="No peer was dialled.",
            do=f'Correct it, or set `proxy` in {CONFIG_NAME}: to the proxy, or to "none" for direct lines.',
            variable=at,
        ) from error
    password = url.password if url.password is not None else environment.get(PASSWORD_VARIABLE, "")
    return Proxy(url.host, url.port, url.user, lambda: password, direct)
