"""The tables of ``node.toml``: what hospital IT can set, with its default."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

BUILTIN = "builtin"
"""The word in ``[identity] workload_api`` for the authority that comes with Konsil."""


class MemberTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who the member is. ``trust_domain``: the SPIFFE trust domain; "NAME.konsil" when empty. ``witness``: it
    helps to keep the ledger and takes part in no study.
    """

    name: str
    trust_domain: str = ""
    witness: bool = False


class IdentityTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the node gets its certificates: "builtin", or the address of a SPIFFE Workload API.

    ``svid_ttl_s``: how long a certificate of the built-in authority is valid, in seconds.
    """

    workload_api: str = BUILTIN
    svid_ttl_s: Annotated[int, msgspec.Meta(ge=10, le=30 * 24 * 3600)] = 3600


class NodeTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the node listens ("" for a member that only dials out), and how it writes its log.

    ``max_model_gb``: the largest model of a study that this node takes, in GB (1e9 bytes); 0 for an eighth
    of the machine's memory. ``advertise``: the addresses at which peers reach it, where they differ from
    ``listen``. ``proxy``: through which peers are dialled; see ``konsil.node.way_out``.
    """

    listen: str = ""
    advertise: tuple[str, ...] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    max_model_gb: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    proxy: str = ""
    proxy_password_file: str = ""
    no_proxy: str = ""


class LedgerTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The engine of the ledger at this member, where the genesis names one that is a program of its own.

    ``cometbft``: the program's path; "cometbft" is looked for on PATH. ``round_trip_ms``: the longest way to
    a peer and back, in milliseconds, from which the engine's time-outs are made; 0 to have it measured, up to
    600.
    ``validate``: whether this node decides on blocks with the others.
    """

    cometbft: str = "cometbft"
    round_trip_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 0.0
    validate: bool = True
