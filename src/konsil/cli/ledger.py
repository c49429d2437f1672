"""``konsil ledger``: read and verify the swarm's history, from this member's own copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import msgspec

from konsil.cli import sentences
from konsil.cli.common import Site, printable, verb, when
from konsil.core.rules import Call, Entry, SignedCall, State, genesis_digest
from konsil.errors import ConfigError, StudyError


@click.group()
def ledger() -> None:
    """Read and verify the swarm's history, from this member's own copy. The node need not run."""


@verb(ledger, "show", example="konsil ledger show aml 17")
@click.argument("study", required=False)
@click.argument("round_number", metavar="[ROUND]", type=int, required=False)
def show(site: Site, study: str | None, round_number: int | None) -> None:
    """The history in sentences: who did what, and when. Of all, of one study, or of one round."""
    from konsil.ledger.verify import read_calls  # noqa: PLC0415 - SQLite; `--help` is faster without

    genesis, path = _history(site)
    shown = (
        (entry, signed)
        for entry, signed in read_calls(genesis, path)
        if _is_about(signed.call, study, round_number)
    )
    if site.as_json:
        site.show([_as_facts(entry, signed) for entry, signed in shown])
        return
    empty = True
    for entry, signed in shown:
        empty = False
        what = sentences.of_call(signed.call)
        click.echo(printable(f"{entry.height:6d}  {when(entry.time_s)}  {signed.caller} {what}"))
    if empty and study is None:
        click.echo("Nothing is on the ledger yet.")
    if study is not None:
        for line in _outcome(_verified_state(site), study, round_number):
            click.echo(printable(line))


@verb(ledger, "verify", example="konsil ledger verify")
def verify(site: Site) -> None:
    """Recompute the whole history from the genesis: links, signatures, rules, states. Changes nothing."""
    from konsil.identity.ledger_key import verify as check  # noqa: PLC0415 - cryptography; as above
    from konsil.ledger.verify import verify as recompute  # noqa: PLC0415 - as above

    genesis, path = _history(site)
    found = recompute(genesis, path, check)
    digest = genesis_digest(genesis)
    site.show(
        {
            "genesis": digest,
            "height": found.height,
            "state": found.digest,
            "head": found.head,
            "calls": found.calls,
            "operator": genesis.operator,
        },
        f"The history holds: {found.height} calls, each signed by its member and allowed by the contract.\n"
        f"  genesis: {digest}\n"
        f"  head:    {found.head}\n"
        f"  state:   {found.digest}\n"
        f"  calls:   {', '.join(f'{name} {count}' for name, count in found.calls.items()) or 'none'}\n"
        "Members that show the same head at this height hold the same history.",
    )


@verb(ledger, "repair", example="konsil ledger repair")
def repair(site: Site) -> None:
    """Bring this member back whose ledger is not what the others have, where CometBFT keeps it.

    Stop the node first. CometBFT goes one block back; this member's copy of the history is put aside and, at
    the next start, made anew from the blocks. Nothing that was accepted is lost, and no vote is forgotten.
    """
    from konsil.ledger.cometbft.repair import repair as bring_back  # noqa: PLC0415 - an extra
    from konsil.node.genesis import read_genesis  # noqa: PLC0415 - the identities' libraries; as above
    from konsil.node.process import only_one  # noqa: PLC0415 - as above

    config = site.config()
    genesis = read_genesis(config.genesis_file)
    if genesis.engine != "cometbft":
        raise ConfigError(
            f"Nothing is repaired in this way on a ledger that is kept by the {genesis.engine} engine.",
            safe="Nothing was changed.",
            do="Where `konsil ledger verify` fails, move ledger.db away: it comes anew from the operator, or "
            "the operator takes any member's copy.",
        )
    with only_one(config.directory):
        done = bring_back(config.ledger.cometbft, config.engine_dir, config.ledger_file)
    site.show(
        {"said": done.said, "kept": done.kept},
        f"{done.said}\n"
        + (f"This member's copy of the history was put aside: {done.kept}\n" if done.kept else "")
        + "Start the node: it applies all blocks again. Compare then: konsil ledger verify",
    )


def _history(site: Site) -> tuple[Any, Any]:
    from konsil.node.genesis import read_genesis  # noqa: PLC0415 - the identities' libraries; as above

    config = site.config()
    return read_genesis(config.genesis_file), config.ledger_file


def _verified_state(site: Site) -> State:
    from konsil.identity.ledger_key import verify as check  # noqa: PLC0415 - cryptography; as above
    from konsil.ledger.verify import verify as recompute  # noqa: PLC0415 - as above

    return recompute(*_history(site), check).state


def _is_about(call: Call, study: str | None, round_number: int | None) -> bool:
    of_study = getattr(call, "study", None) or getattr(getattr(call, "settings", None), "name", None)
    return (study is None or of_study == study) and (
        round_number is None or getattr(call, "round", None) == round_number
    )


def _as_facts(entry: Entry, signed: SignedCall) -> dict[str, Any]:
    return {
        "height": entry.height,
        "time_s": entry.time_s,
        "caller": signed.caller,
        "call": msgspec.to_builtins(signed.call),
        "sentence": f"{signed.caller} {sentences.of_call(signed.call)}",
    }


def _outcome(state: State, study: str, round_number: int | None) -> Iterator[str]:
    """What the study's rounds came to."""
    found = state.studies.get(study)
    if found is None:
        raise StudyError(
            f"There is no study '{study}' on the ledger.",
            safe="Nothing was changed.",
            do=f"Studies: {', '.join(sorted(state.studies)) or 'none yet'}.",
        )
    yield ""
    records = [record for record in found.history if round_number in (None, record.number)]
    for record in records:
        yield from sentences.of_record(record)
    if round_number is not None and not records:
        yield f"Round {round_number} of '{study}' has not been accepted."
    if round_number is None:
        yield from sentences.of_study(found, state.now_s)
