"""``konsil doctor``: is this site ready? Each line says ok, warn or fail, and what to do."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import click
import msgspec

from konsil import __version__
from konsil.cli import doctor_ledger, doctor_proxy
from konsil.cli.common import Node, Site, printable, verb, when
from konsil.core.rules import State, genesis_digest
from konsil.core.wall import AskNode, AskPeers, ToldNode, ToldPeers
from konsil.errors import ConfigError, KonsilError, NodeUnreachable
from konsil.node.config import Config

LOW_DISK_BYTES, NO_DISK_BYTES = 5 * 10**9, 200 * 10**6
"""Below the first a few large merges may not fit; below the second not even the ledger is safe."""

CLOCK_WARN_S, CLOCK_FAIL_S = 5.0, 120.0
"""Deadlines are in seconds; certificates are accepted from clocks that are up to 5 minutes late."""

EXPIRES_SOON_S = 60.0
"""A certificate is renewed long before; one that ends within this is not being renewed."""

_CONNECT_S = 3.0
_OTHERS, _ALL_BUT_PASSING = 0o077, 0o067
"""The keys are closed to all. Through the directory a group may pass, to the training processes' socket."""

_SEE_PROXY = "See `proxy` above."

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


class Finding(msgspec.Struct, frozen=True):
    """One line. ``do``: what to do, unless all is well."""

    check: str
    level: Literal["ok", "warn", "fail"]
    what: str
    do: str = ""


Findings = Iterator[Finding]


@verb(None, "doctor", example="konsil doctor --model aml.safetensors")
@click.option(
    "--model", type=click.Path(path_type=Path, dir_okay=False), help="Compare its schema with the studies'."
)
def doctor(site: Site, model: Path | None) -> None:
    """Check this member's site: files, keys, disk, port, certificate, clocks, versions, ledger, model.

    Ends with status 1 if anything fails. The node may run or not; with it running, more is checked.
    """
    findings = []
    for finding in _examine(site, model):
        findings.append(finding)
        if not site.as_json:
            mark = click.style(f"{finding.level:4s}", fg=_COLOURS[finding.level])
            click.echo(f"{mark}  {finding.check:12s} {printable(finding.what)}")
            if finding.do:
                click.echo(f"{'':19s}{printable(finding.do)}")
    failed = any(finding.level == "fail" for finding in findings)
    site.show({"ok": not failed, "findings": findings})
    sys.exit(1 if failed else 0)


def _examine(site: Site, model: Path | None) -> Findings:
    try:
        config = site.config()
    except KonsilError as error:
        yield Finding("config", "fail", error.what, error.do)
        return
    yield Finding("config", "ok", f"{config.config_file}: member '{config.name}', konsil {__version__}")
    for check in (_directory, _keys, _card, _genesis, _disk, _journal):
        yield from _guarded(check.__name__.removeprefix("_"), check, config)
    try:
        with site.node() as node:
            yield from _running(node, config, model)
    except NodeUnreachable:
        yield Finding("node", "warn", "The node does not run.", "Start it: `konsil node start`.")
        yield from _port_is_free(config)
        yield from _guarded("proxy", _proxy_before_start, config)
    except KonsilError as error:
        yield Finding("node", "fail", error.what, error.do)


def _guarded(name: str, check: Callable[[Config], Findings], config: Config) -> Findings:
    try:
        yield from check(config)
    except KonsilError as error:
        yield Finding(name, "fail", error.what, error.do)
    except OSError as error:
        yield Finding(name, "fail", f"{error.filename}: {error.strerror}.", "See its owner and permissions.")


# --- without the node ----------------------------------------------------------------------------


def _directory(config: Config) -> Findings:
    for path, closed in ((config.directory, _ALL_BUT_PASSING), (config.keys_dir, _OTHERS)):
        if path.stat().st_mode & closed:
            yield Finding("directory", "fail", f"Others may look into {path}.", f"chmod 700 {path}")
            return
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            yield Finding("directory", "fail", f"This user may not write to {path}.", "Run as its owner.")
            return
    passing = config.directory.stat().st_mode & _OTHERS
    who = "this user alone; its group may reach the sockets" if passing else "this user alone"
    yield Finding("directory", "ok", f"{config.directory} belongs to {who}")


def _keys(config: Config) -> Findings:
    from konsil.identity.authority import Authority  # noqa: PLC0415 - cryptography; `--help` is faster without
    from konsil.identity.ledger_key import LedgerKey  # noqa: PLC0415 - as above

    key = LedgerKey.load(config.ledger_key_file)
    if config.builtin_identity:
        Authority.load(config.keys_dir)
    yield Finding("keys", "ok", f"ledger key {key.public[:16]}..., identities from {config.workload_api}")


def _card(config: Config) -> Findings:
    from konsil.node.genesis import read_card_file  # noqa: PLC0415 - as in _keys

    card = read_card_file(config.card_file)
    if card.addresses != config.addresses:
        yield Finding(
            "card",
            "warn",
            f"The card says {', '.join(card.addresses) or 'no address'}, node.toml "
            f"{', '.join(config.addresses) or 'none'}.",
            "konsil node card",
        )
    else:
        yield Finding("card", "ok", f"{config.card_file}: {', '.join(card.addresses) or 'dials out only'}")


def _genesis(config: Config) -> Findings:
    from konsil.node.genesis import read_genesis  # noqa: PLC0415 - as in _keys

    if not config.genesis_file.exists():
        yield Finding(
            "genesis", "warn", "This member belongs to no swarm yet.", "konsil swarm found NAME CARD..."
        )
        return
    genesis = read_genesis(config.genesis_file)
    yield Finding("genesis", "ok", f"swarm '{genesis.swarm}', digest {genesis_digest(genesis)}")
    said = doctor_ledger.engine(config, genesis)
    if said is not None:
        yield Finding("engine", said.level, said.what, said.do)


def _disk(config: Config) -> Findings:
    free = shutil.disk_usage(config.directory).free
    level: Literal["ok", "warn", "fail"] = (
        "fail" if free < NO_DISK_BYTES else "warn" if free < LOW_DISK_BYTES else "ok"
    )
    do = "" if level == "ok" else "Free disk space: every accepted merge of a running study is kept here."
    yield Finding("disk", level, f"{free / 1e9:.1f} GB free for {config.directory}", do)


def _journal(config: Config) -> Findings:
    from konsil.node.journal import damage_in  # noqa: PLC0415 - as in _keys

    try:
        found = damage_in(config.journal_dir)
    except OSError as error:
        what = f"{config.journal_dir} cannot be read: {error.strerror or error}"
        yield Finding("journal", "fail", what, "Run this as the node's own user; see the folder's mode.")
        return
    for damage in found.values():
        yield Finding("journal", "fail", damage.what, damage.do)
    if not found:
        yield Finding("journal", "ok", f"{config.journal_dir}: what this node has promised can be read")


def _port_is_free(config: Config) -> Findings:
    if not config.node.listen:
        yield Finding("port", "ok", "this node dials out only; no port is needed")
        return
    host, _, port = config.node.listen.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), int(port)))
    except OSError as error:
        yield Finding(
            "port",
            "fail",
            f"{config.node.listen} cannot be listened on: {error.strerror or error}.",
            f"See who has it (`ss -ltnp`), or change `listen` in {config.config_file}.",
        )
    else:
        yield Finding("port", "ok", f"{config.node.listen} is free")


def _proxy_before_start(config: Config) -> Findings:
    from konsil.node.genesis import read_genesis  # noqa: PLC0415 - as in _keys

    if config.genesis_file.exists():
        genesis = read_genesis(config.genesis_file)
        found = doctor_proxy.look(config, genesis.members, genesis.operator)
    else:
        found = doctor_proxy.look(config, (), "")
    yield Finding("proxy", found.level, found.what, found.do)


# --- with the node -------------------------------------------------------------------------------


def _running(node: Node, config: Config, model: Path | None) -> Findings:
    told = node.ask(AskNode(), ToldNode)
    level: Literal["ok", "fail"] = "ok" if told.version == __version__ else "fail"
    do = "" if level == "ok" else "Restart the node: it still runs the version from before an update."
    yield Finding("node", level, f"runs konsil {told.version}, this is {__version__}", do)
    yield from _port_answers(config)
    left_s = told.svid_expires_s - time.time()
    yield (
        Finding("certificate", "ok", f"valid until {when(told.svid_expires_s)}, renewed by itself")
        if left_s > EXPIRES_SOON_S
        else Finding(
            "certificate", "fail", "The certificate is not being renewed.", f"See {config.workload_api}."
        )
    )
    for problem in told.problems:
        yield Finding("node", "warn", problem, "See the node's log.")
    state = node.state()
    records = [member.record for member in state.members.values() if member.active]
    found = doctor_proxy.look(config, records, state.operator, running=told.way_out)
    yield Finding("proxy", found.level, found.what, found.do)
    yield from _peers(config, state, node.ask(AskPeers(), ToldPeers), told, found.cut)
    if model is not None:
        yield from _guarded("model", lambda _config: _model(state, model), config)


def _port_answers(config: Config) -> Findings:
    if not config.node.listen:
        yield Finding("port", "ok", "this node dials out only; no port is needed")
        return
    host, _, port = config.node.listen.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - compared, not listened on
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except OSError as error:
        yield Finding(
            "port",
            "fail",
            f"Nothing answers at {config.node.listen}: {error.strerror or error}.",
            "See its log.",
        )
    else:
        yield Finding("port", "ok", f"{config.node.listen} answers on this machine")


def _peers(config: Config, state: State, told: ToldPeers, own: ToldNode, cut: frozenset[str]) -> Findings:
    """``cut``: who is not to blame for being away; see ``doctor_proxy.Found``."""
    heights = [own.height]
    for peer in told.peers:
        record = state.members[peer.member].record
        if peer.problem and not record.addresses and not config.node.listen:
            yield Finding(
                peer.member, "ok", "dials out only, as this node: reached through a member that both reach"
            )
            continue
        if peer.problem:
            do = "Is its node running? Does a firewall stand between?"
            yield Finding(peer.member, "warn", peer.problem, _SEE_PROXY if peer.member in cut else do)
            continue
        heights.append(peer.height)
        ahead = (
            f"its clock is {abs(peer.clock_ahead_s):.1f} s {'ahead' if peer.clock_ahead_s > 0 else 'behind'}"
        )
        if peer.version != own.version:
            yield Finding(
                peer.member,
                "warn",
                f"runs konsil {peer.version}, this node {own.version}",
                "Update the older one.",
            )
        elif abs(peer.clock_ahead_s) > CLOCK_FAIL_S:
            yield Finding(peer.member, "fail", ahead, "Set the clocks: run NTP at both.")
        elif abs(peer.clock_ahead_s) > CLOCK_WARN_S:
            yield Finding(peer.member, "warn", ahead, "Set the clocks: run NTP at both.")
        else:
            yield Finding(peer.member, "ok", f"konsil {peer.version}, {ahead}, ledger height {peer.height}")
    reached = {peer.member for peer in told.peers if not peer.problem} | {own.member}
    said = doctor_ledger.ledger(state, max(told.height, own.height), heights, reached, cut)
    yield Finding("ledger", said.level, said.what, said.do)


def _model(state: State, path: Path) -> Findings:
    from konsil.core.parameters import Schema  # noqa: PLC0415 - numpy; only here
    from konsil.wall.model_file import bare_header  # noqa: PLC0415 - as above

    try:
        with path.open("rb") as stream:
            header = bare_header(stream)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", do="Give the model's path.") from error
    schema = Schema.from_header(header)
    with_schema = {name: study for name, study in state.studies.items() if study.schema}
    if not with_schema:
        yield Finding(
            "model", "ok", f"{path} can be merged: {len(schema.tensors)} arrays; no study to compare with"
        )
    for name, study in sorted(with_schema.items()):
        if study.schema == schema.digest:
            yield Finding("model", "ok", f"{path} has the schema of study '{name}'")
        else:
            yield Finding(
                "model",
                "warn",
                f"{path} has another schema than study '{name}'.",
                f"Names, dtypes and shapes must be the study's: see `konsil study model {name} --out FILE`.",
            )
