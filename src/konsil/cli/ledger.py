"""``konsil ledger``: read and verify the swarm's history, from this member's own copy."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from konsil.cli import sentences
from konsil.cli.common import Site, folded, printable, utc, verb, when
from konsil.cli.ledger_filter import KINDS, Seen, Wanted, moment
from konsil.core.rules import Entry, Genesis, SignedCall, State, Study, Vote, entry_digest, genesis_digest
from konsil.errors import ConfigError


@click.group()
def ledger() -> None:
    """Read and verify the swarm's history, from this member's own copy. The node need not run."""


@verb(ledger, "show", example="konsil ledger show aml --member bonn --since 2026-11-21")
@click.argument("study", required=False)
@click.argument("round_number", metavar="[ROUND]", type=click.IntRange(min=1), required=False)
@click.option("--member", "members", multiple=True, metavar="NAME", help="Only what this member did.")
@click.option(
    "--call",
    "kinds",
    multiple=True,
    metavar="KIND",
    type=click.Choice(sorted(KINDS)),
    help="Only such calls: commit, publish, accept, score, dispute ...",
)
@click.option("--since", metavar="DATE", help="From this day or moment on: 2026-11-21, '2026-11-21 12:48'.")
@click.option("--until", metavar="DATE", help="Up to this day or moment, which is shown too.")
@click.option("--last", metavar="N", type=click.IntRange(min=1), help="Only the last N of these.")
def show(
    site: Site,
    study: str | None,
    round_number: int | None,
    members: tuple[str, ...],
    kinds: tuple[str, ...],
    since: str | None,
    until: str | None,
    last: int | None,
) -> None:
    """The history in sentences: who did what, and when. Of all, of one study, or of one round.

    A call is one line, with the times of this machine's zone. --member and --call can be given several times.
    Without any of these options a study's lines are followed by what its rounds came to.

    With --json each call is a JSON object on a line of its own (JSON Lines), with whole digests.
    """
    wanted = Wanted(
        study,
        round_number,
        frozenset(members),
        frozenset(KINDS[kind] for kind in kinds),
        float("-inf") if since is None else moment(since, "--since"),
        float("inf") if until is None else moment(until, "--until", end=True),
    )
    genesis, path = _history(site)
    seen = Seen.founders(genesis)
    outcome = study is not None and wanted.is_whole and not last and not site.as_json
    asked = _asked(_steps(genesis, path, replayed=outcome), wanted, seen)
    empty = True
    for told in asked if last is None else deque(asked, maxlen=last):
        empty = False
        click.echo(_as_json(told) if site.as_json else _as_line(told))
    seen.require(wanted)
    if empty and not site.as_json:
        click.echo(
            f"None of the ledger's {seen.calls} calls is such a one."
            if seen.calls
            else "Nothing is on the ledger yet."
        )
    if outcome and study is not None and seen.state is not None:
        for line in _outcome(seen.state.studies[study], seen.state.now_s, round_number):
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


def _history(site: Site) -> tuple[Genesis, Path]:
    from konsil.node.genesis import read_genesis  # noqa: PLC0415 - the identities' libraries; as above

    config = site.config()
    return read_genesis(config.genesis_file), config.ledger_file


class _Told(NamedTuple):
    entry: Entry
    signed: SignedCall
    sentence: str


def _steps(
    genesis: Genesis, path: Path, *, replayed: bool
) -> Iterator[tuple[Entry, SignedCall, State | None]]:
    """Every entry with its call and, where it is replayed, the state after it."""
    from konsil.identity.ledger_key import verify as check  # noqa: PLC0415 - cryptography; as above
    from konsil.ledger.verify import read_calls, read_steps  # noqa: PLC0415 - as above

    if replayed:
        yield from read_steps(genesis, path, check)
    else:
        for entry, signed in read_calls(genesis, path):
            yield entry, signed, None


def _asked(
    steps: Iterable[tuple[Entry, SignedCall, State | None]], wanted: Wanted, seen: Seen
) -> Iterator[_Told]:
    """The calls that are asked for, as sentences; ``seen`` takes in all of them."""
    subjects: list[sentences.Subject] = []  # a vote names the number under which its subject was proposed
    for entry, signed, state in steps:
        call = signed.call
        seen.note(call, state)
        if isinstance(call, sentences.Subject):
            subjects.append(call)
        if wanted.has(entry, signed):
            about = (
                subjects[call.proposal - 1]
                if isinstance(call, Vote) and 0 < call.proposal <= len(subjects)
                else None
            )
            yield _Told(entry, signed, f"{signed.caller} {sentences.of_call(call, about)}")


def _as_line(told: _Told) -> str:
    """One line; in a terminal what does not fit goes on under the sentence's beginning."""
    beginning = f"{told.entry.height:6d}  {when(told.entry.time_s)}  "
    return folded(printable(beginning + told.sentence), " " * len(beginning))


def _as_json(told: _Told) -> bytes:
    entry, signed = told.entry, told.signed
    facts = {
        "height": entry.height,
        "time_s": entry.time_s,
        "time": utc(entry.time_s),
        "caller": signed.caller,
        "sequence": signed.sequence,
        "call": signed.call,
        "sentence": told.sentence,
        "digest": entry_digest(entry),
        "state": entry.state,
    }
    return msgspec.json.encode(facts)


def _outcome(study: Study, now_s: int, round_number: int | None) -> Iterator[str]:
    """What the study's rounds came to."""
    yield ""
    records = [record for record in study.history if round_number in (None, record.number)]
    for record in records:
        yield from sentences.of_record(record)
    if round_number is not None and not records:
        yield f"Round {round_number} of '{study.settings.name}' has not been accepted."
    if round_number is None:
        yield from sentences.of_study(study, now_s)
