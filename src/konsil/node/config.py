"""A member's directory: ``node.toml``, read with errors that name the key, and the paths beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from konsil.core.rules.settings import StudySettings
from konsil.errors import ConfigError
from konsil.files import BY_UMASK, write_whole
from konsil.node.tables import BUILTIN, IdentityTable, LedgerTable, MemberTable, NodeTable
from konsil.node.toml import read_settings_file
from konsil.transport.proxy import Direct, parse_url

CONFIG_NAME = "node.toml"
NO_PROXY = "none"
"""The word in ``[node] proxy`` for peers that are dialled directly, whatever the environment says.

In letters of any size; what else is set for a proxy may stay beside it.
"""

MAX_SOCKET_PATH_BYTES = 100
"""Linux takes 107 bytes for a Unix socket's path; some systems fewer. A round figure below all."""

NO_CONFIG = "Give the member's directory by --dir or KONSIL_DIR, or make one: `konsil node init --name NAME`."

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_TRUST_DOMAIN = re.compile(r"[a-z0-9_-]+")
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:\[\]/]+):(\d{1,5})")


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``node.toml`` as it is written."""

    member: MemberTable
    identity: IdentityTable = IdentityTable()
    node: NodeTable = NodeTable()
    ledger: LedgerTable = LedgerTable()


class Config(msgspec.Struct, frozen=True):
    """A member's settings and where everything in its directory lies."""

    directory: Path
    member: MemberTable
    identity: IdentityTable = IdentityTable()
    node: NodeTable = NodeTable()
    ledger: LedgerTable = LedgerTable()

    @property
    def name(self) -> str:
        """The member's name."""
        return self.member.name

    @property
    def trust_domain(self) -> str:
        """The member's SPIFFE trust domain."""
        return self.member.trust_domain or f"{self.member.name}.konsil"

    @property
    def builtin_identity(self) -> bool:
        """Whether the built-in authority issues this node's certificates."""
        return self.identity.workload_api == BUILTIN

    @property
    def workload_api(self) -> str:
        """Address of the Workload API, as a SPIFFE client takes it."""
        return f"unix://{self.workload_socket}" if self.builtin_identity else self.identity.workload_api

    @property
    def addresses(self) -> tuple[str, ...]:
        """What the member's card tells peers to dial: ``advertise``, else ``listen``."""
        return self.node.advertise or ((self.node.listen,) if self.node.listen else ())

    @property
    def config_file(self) -> Path:
        """The file that this was read from."""
        return self.directory / CONFIG_NAME

    @property
    def genesis_file(self) -> Path:
        """What the founding members agreed on."""
        return self.directory / "genesis.json"

    @property
    def ledger_file(self) -> Path:
        """This member's copy of the ledger's history."""
        return self.directory / "ledger.db"

    @property
    def engine_dir(self) -> Path:
        """What the ledger's engine keeps, where it is a program of its own."""
        return self.directory / "engine"

    @property
    def journal_dir(self) -> Path:
        """What the node promised and was told, written before anything relies on it: a file a study."""
        return self.directory / "journal"

    @property
    def keys_dir(self) -> Path:
        """Private keys; they never leave this directory."""
        return self.directory / "keys"

    @property
    def ledger_key_file(self) -> Path:
        """The key that signs this member's calls."""
        return self.keys_dir / "ledger.pem"

    @property
    def cards_dir(self) -> Path:
        """The members' public cards, by digest."""
        return self.directory / "cards"

    @property
    def merges_dir(self) -> Path:
        """Accepted merges and the member's own committed updates."""
        return self.directory / "merges"

    @property
    def rules_dir(self) -> Path:
        """Merge rules in files, which IT put there: `konsil rule add`."""
        return self.directory / "rules"

    @property
    def card_file(self) -> Path:
        """The member's own public card, to be sent to the others."""
        return self.directory / f"{self.member.name}.card.json"

    @property
    def control_socket(self) -> Path:
        """Where the command line speaks to the node."""
        return self.directory / "control.sock"

    @property
    def session_socket(self) -> Path:
        """Where the training process speaks to the node."""
        return self.directory / "session.sock"

    @property
    def workload_socket(self) -> Path:
        """Where the built-in authority serves the Workload API."""
        return self.directory / "workload.sock"


# --- reading -------------------------------------------------------------------------------------


def read_config(directory: Path) -> Config:
    """A member's directory, from its ``node.toml``.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, a value of another type or out of range, or
            a directory whose path is too long for Unix sockets. Nothing was changed.
    """
    directory = directory.expanduser().absolute()
    file = directory / CONFIG_NAME
    parsed = read_settings_file(file, _File, missing=NO_CONFIG)
    config = Config(directory, parsed.member, parsed.identity, parsed.node, parsed.ledger)
    check_config(config)
    return config


def read_study_file(path: Path) -> StudySettings:
    """A study's settings from a TOML file whose top-level keys are the fields of ``StudySettings``.

    ``[plateau]``, ``[rule_options]`` and ``[given]`` are tables of it.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, or a value of another type.
    """
    return read_settings_file(path, StudySettings)


def write_config(config: Config) -> None:
    """Write ``node.toml`` into the member's directory; a file that is there already is replaced.

    Raises:
        ConfigError: a value that ``read_config`` would refuse, or a disk that refuses.
    """
    check_config(config)
    lines = [
        "# A Konsil node. Every key that is left out has its default; an unknown key is an error.",
        "[member]",
        f"name = {_quoted(config.member.name)}",
        f"trust_domain = {_quoted(config.trust_domain)}",
        "# A witness helps to keep the ledger and takes part in no study; it stands on the card.",
        f"witness = {_quoted(config.member.witness)}",
        "",
        "[identity]",
        '# "builtin", or the address of a SPIFFE Workload API such as "unix:///run/spire/agent.sock".',
        f"workload_api = {_quoted(config.identity.workload_api)}",
        f"svid_ttl_s = {config.identity.svid_ttl_s}",
        "",
        "[ledger]",
        "# The program, where the swarm's ledger is kept by CometBFT; a path, or a name on PATH.",
        f"cometbft = {_quoted(config.ledger.cometbft)}",
        "# The longest way to a peer and back, in milliseconds, for its time-outs; 0 to have it measured.",
        f"round_trip_ms = {config.ledger.round_trip_ms}",
        "# Whether this node decides on the ledger's blocks with the others.",
        f"validate = {_quoted(config.ledger.validate)}",
        "",
        "[node]",
        '# "host:port"; "" for a member that only dials out.',
        f"listen = {_quoted(config.node.listen)}",
        "# Where peers reach this node, if that is another address than `listen`.",
        f"advertise = [{', '.join(_quoted(address) for address in config.node.advertise)}]",
        '# The proxy through which peers are dialled, such as "http://proxy.hospital:3128"; "none" for none;',
        '# "" for what HTTPS_PROXY and NO_PROXY in the environment say.',
        f"proxy = {_quoted(config.node.proxy)}",
        "# The file with the proxy's password, this user's alone; the hosts reached without the proxy.",
        f"proxy_password_file = {_quoted(config.node.proxy_password_file)}",
        f"no_proxy = {_quoted(config.node.no_proxy)}",
        "# The largest model of a study that this node takes, in GB; 0 for an eighth of the memory.",
        f"max_model_gb = {config.node.max_model_gb}",
        f"log_level = {_quoted(config.node.log_level)}",
        f"log_format = {_quoted(config.node.log_format)}",
        "",
    ]
    try:
        write_whole(config.config_file, ["\n".join(lines).encode()], mode=BY_UMASK)
    except OSError as error:
        raise ConfigError(
            f"{config.config_file} cannot be written: {error.strerror}.",
            safe="What was in it before is still there.",
            do="Free disk space, or see that this user may write there, and run the command again.",
        ) from error


# --- checking ------------------------------------------------------------------------------------


class _Require(Protocol):
    """Raise unless it is good."""

    def __call__(self, good: bool, key: str, problem: str, do: str = "Correct it.") -> None: ...


def check_config(config: Config, options: Mapping[str, str] | None = None) -> None:
    """See that every value can be used.

    Args:
        config: the values.
        options: by which option of a command each key was given, where no file holds it yet.

    Raises:
        ConfigError: names the key, or the option.
    """
    file = config.config_file

    def require(good: bool, key: str, problem: str, do: str = "Correct it.") -> None:
        if not good:
            named = f"{file}: '{key}'" if options is None else f"'{options.get(key, key)}'"
            raise ConfigError(
                f"{named} {problem}.",
                safe="Nothing was changed.",
                do=do,
                file=str(file),
                key=key,
            )

    require(
        _NAME.fullmatch(config.member.name) is not None,
        "member.name",
        f"is '{config.member.name}', but a name has 1 to 63 small letters, digits and hyphens",
    )
    require(
        all(_TRUST_DOMAIN.fullmatch(label) for label in config.trust_domain.split(".")),
        "member.trust_domain",
        f"is '{config.trust_domain}', which is not a SPIFFE trust domain such as 'lyon.example'",
    )
    require(
        config.builtin_identity or config.identity.workload_api.startswith("unix:///"),
        "identity.workload_api",
        f"is '{config.identity.workload_api}', but must be \"builtin\" or an address such as unix:///run/agent.sock",
    )
    for key, addresses in (
        ("node.listen", (config.node.listen,) if config.node.listen else ()),
        ("node.advertise", config.node.advertise),
    ):
        for address in addresses:
            require(is_address(address), key, f"is '{address}', which is not HOST:PORT")
    _check_proxy(config.node, require)
    _check_sockets(config)


def is_address(text: str) -> bool:
    """Whether a text is HOST:PORT, with an IPv6 host in brackets."""
    match = _ADDRESS.fullmatch(text)
    return match is not None and int(match[1]) < 2**16


def says_no_proxy(proxy: str) -> bool:
    """Whether these are the words of ``[node] proxy`` for lines without a proxy."""
    return proxy.strip().lower() == NO_PROXY


def _check_proxy(node: NodeTable, require: _Require) -> None:
    """What is wrong with a proxy's URL is told without showing it: somebody may have put a password there."""
    if node.proxy and not says_no_proxy(node.proxy):
        _check_url(node, require)
    for key in ("proxy_password_file", "no_proxy"):
        require(
            bool(node.proxy) or not getattr(node, key),
            f"node.{key}",
            "is set, but `proxy` names no proxy",
            "Leave it empty, or name the proxy in `proxy`; with HTTPS_PROXY use NO_PROXY and "
            "KONSIL_PROXY_PASSWORD.",
        )
    unknown = Direct.parse(node.no_proxy).unknown
    require(
        not unknown,
        "node.no_proxy",
        f"has the entry {unknown[0]!r}, which is no name, IP address or network" if unknown else "",
        'Write names, IP addresses, networks or "*", with commas between them.',
    )


def _check_url(node: NodeTable, require: _Require) -> None:
    with_user = "Write http://USER@HOST:PORT, and the password's file into `proxy_password_file`"
    try:
        url = parse_url(node.proxy)
    except ValueError as error:
        do = f"{with_user} in {CONFIG_NAME}" if "@" in node.proxy else "Write http://HOST:PORT"
        require(False, "node.proxy", str(error), f'{do}, or "{NO_PROXY}" for none.')
        return
    require(
        url.password is None,
        "node.proxy",
        "holds a password, which belongs into a file of its own",
        f"{with_user} in {CONFIG_NAME}.",
    )
    require(
        bool(url.user) or not node.proxy_password_file,
        "node.proxy_password_file",
        "names a file, but `proxy` names no user",
        "Write `proxy` as http://USER@HOST:PORT, or leave this empty.",
    )


def _check_sockets(config: Config) -> None:
    longest = max(
        (config.control_socket, config.session_socket, config.workload_socket),
        key=lambda path: len(str(path)),
    )
    length = len(str(longest).encode())
    if length > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"The path {longest} has {length} bytes, but a Unix socket's may have {MAX_SOCKET_PATH_BYTES}.",
            safe="Nothing was changed.",
            do="Use a directory with a shorter path, or a symbolic link to it.",
            path=str(longest),
        )


def _quoted(text: str | bool) -> str:
    """A text as a TOML basic string, whose escapes JSON's are a subset of; true or false alike."""
    return msgspec.json.encode(text).decode()
