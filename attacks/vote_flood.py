"""Make the ledger's state grow: votes, studies, and calls without an end, all signed as they must be."""

from __future__ import annotations

import time
from collections.abc import Sequence

from msgspec.structs import replace
from stage import OTHER, Raw, Stage, alone, took

from konsil.core.messages import LedgerSubmit
from konsil.core.rules import (
    Announce,
    Call,
    Enter,
    Finish,
    Initialise,
    ProposeRemove,
    ProposeStudy,
    ProposeStudySettings,
    StudySettings,
    Vote,
    encode_state,
)
from konsil.core.rules.members import MAX_OPEN_PROPOSALS, MAX_RECENT_PROPOSALS
from konsil.core.rules.studies import MAX_STUDIES_PROPOSED

SECONDS = 20.0


def attack(stage: Stage) -> None:
    """What one member may leave on the ledger is bounded; what it says beyond that is refused."""
    before = len(encode_state(stage.state()))
    with stage.member() as line:
        _studies(stage, line)
        _mill(stage, line)
        _votes(stage, line)
        _alone(stage, line)
        grown = len(encode_state(stage.state())) - before
        stage.says(f"all of this made the state grow by {grown // 1024} KiB")
        _calls(stage, line)


def _all(stage: Stage, line: Raw, calls: Sequence[Call]) -> tuple[int, set[str]]:
    """How many calls were taken, sent at once, and why the first of the others was not."""
    sequence = stage.state().members[stage.own.name].sequence
    signed = [stage.signed(call, sequence=sequence + n) for n, call in enumerate(calls, start=1)]
    answers = line.ask_all([LedgerSubmit(each) for each in signed])
    count = sum(map(took, answers))
    return count, {stage.refused(answer).code for answer in answers[count : count + 1]}


def _settings(number: int) -> StudySettings:
    return StudySettings(name=f"flood-{number}", description="x" * 2000, every_steps=1, min_members=1)


def _studies(stage: Stage, line: Raw) -> None:
    calls = [ProposeStudy(_settings(number)) for number in range(MAX_STUDIES_PROPOSED + 4)]
    count, codes = _all(stage, line, calls)
    stage.must(
        count <= MAX_STUDIES_PROPOSED and codes == {"too_many_studies"}, f"{count} were taken: {codes}"
    )
    stage.says(f"{len(calls)} studies proposed: {count} taken, then {', '.join(codes)}")


def _mill(stage: Stage, line: Raw) -> None:
    """A study for one member can be begun and ended by it alone: that must not make place for another."""
    for number in range(10):
        name = f"flood-{number}"
        calls = [Initialise(name, "1" * 64, "2" * 64, 100), Enter(name), Finish(name, "inactive")]
        count, _ = _all(stage, line, calls)
        stage.must(count == len(calls), f"a study for one cannot be ended: {count}")
    stage.refused(stage.submit(line, ProposeStudy(_settings(1000))), "too_many_studies")
    stage.says("10 of them begun and ended by itself, to propose others: too_many_studies")


def _votes(stage: Stage, line: Raw) -> None:
    calls = [ProposeRemove(OTHER, "x" * 2000) for _ in range(MAX_OPEN_PROPOSALS + 4)]
    count, codes = _all(stage, line, calls[: MAX_OPEN_PROPOSALS // 2])
    stage.must(count == MAX_OPEN_PROPOSALS // 2, f"only {count} votes could be opened: {codes}")
    number = len(stage.state().proposals)
    for vote in (Vote(number, yes=True), Vote(number, yes=False), Vote(10**9, yes=True), Vote(-1, yes=True)):
        stage.refused(stage.submit(line, vote), "second_vote", "unknown_proposal")
    stage.must(stage.state().members[OTHER].active, f"{OTHER} was removed by one member")
    stage.says("a second vote of its own, votes on what is none: refused")


def _alone(stage: Stage, line: Raw) -> None:
    """Votes that it decides alone, since nobody else takes part in its study: each stays on the ledger."""
    calls = [
        ProposeStudySettings(replace(_settings(20), description=f"{n}" + "x" * 1900))
        for n in range(MAX_RECENT_PROPOSALS + 4)
    ]
    count, codes = _all(stage, line, calls)
    stage.must(
        count <= MAX_RECENT_PROPOSALS and codes == {"too_many_proposals"}, f"{count} were taken: {codes}"
    )
    stage.says(f"{len(calls)} votes that it decides alone: {count} taken, then {', '.join(codes)}")


def _calls(stage: Stage, line: Raw) -> None:
    """Calls that change nothing, or the same thing again: the history has each of them."""
    addresses = tuple(
        f"{'a' * 60}.{'b' * 60}.{'c' * 60}.{'d' * 60}.example:{port}" for port in range(7400, 7408)
    )
    calls = [Announce(addresses if n % 2 else addresses[::-1]) for n in range(50)]
    count, sent, codes = 0, 0, set[str]()
    began_s = time.monotonic()
    while not codes and time.monotonic() - began_s < SECONDS:
        taken, codes = _all(stage, line, calls)
        count, sent = count + taken, sent + taken * len(stage.signed(calls[0]))
    took_s = time.monotonic() - began_s
    stage.must(codes == {"too_fast"}, f"{count} calls were taken, and there is no end: {codes}")
    stage.says(
        f"calls that change nothing: {count} taken in {took_s:.1f} s ({sent >> 10} KiB), then too_fast"
    )
    stage.control(OTHER).call(Announce(stage.addresses(OTHER)))
    stage.says("the calls of others are taken all the same")


if __name__ == "__main__":
    alone(attack)
