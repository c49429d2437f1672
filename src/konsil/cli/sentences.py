"""The ledger's calls and a study's progress as sentences for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from konsil.cli.common import one_line, span, when
from konsil.core.rules import ScoreMatrix, may_fail, settings_digest
from konsil.core.rules.calls import (
    Accept,
    Agree,
    Alive,
    Announce,
    Call,
    Commit,
    Dispute,
    Enter,
    Finish,
    Initialise,
    Leave,
    ProposeAdmit,
    ProposeRemove,
    ProposeStudy,
    ProposeStudySettings,
    ProposeSwarmSettings,
    Publish,
    Renew,
    Report,
    Score,
    Tick,
    Validate,
    Verdict,
    Vote,
)
from konsil.core.rules.settings import StudySettings
from konsil.core.rules.state import Genesis, OpenRound, RoundRecord, Study

Subject = ProposeAdmit | ProposeRemove | ProposeSwarmSettings | ProposeStudySettings

SHORT_DIGEST = 12
"""Enough of a digest to tell two apart by eye; `--json` has all of it."""


def tag_of(kind: type[Any]) -> str:
    """The word that stands for a kind of call on the ledger: "commit"."""
    return str(kind.__struct_config__.tag)


def of_call(call: Call, subject: Subject | None = None) -> str:
    """What a member did, to follow its name: "commits its update for round 3".

    Args:
        call: what it did.
        subject: where that is a vote, what the vote is about, if it is known.
    """
    about = f", to {_subject(subject, brief=True)}" if isinstance(call, Vote) and subject is not None else ""
    return one_line(_SENTENCES[type(call)](call) + about)


def of_keepers(genesis: Genesis) -> str:
    """Who keeps a swarm's ledger, and how many of them may fail."""
    if genesis.engine == "local":
        return f"Its ledger is served by '{genesis.operator}'."
    keepers = len(genesis.members)
    spare = may_fail(keepers)
    lost = (
        f"{spare} of them may fail without harm."
        if spare
        else "with fewer than four, one that fails halts it. Enrol a witness: a member that keeps the ledger "
        "and trains nothing (`konsil node init --witness`)."
    )
    return f"Its ledger is kept by all {keepers} members together, by {genesis.engine}: {lost}"


def of_subject(subject: Subject) -> str:
    """What a vote is about, to follow "proposes to"."""
    return one_line(_subject(subject))


def _subject(subject: Subject, *, brief: bool = False) -> str:
    match subject:
        case ProposeAdmit(member=record):
            who = f"'{record.name}'" + (" as a witness" if record.witness else "")
            card = short(record.card) if brief else record.card
            return f"admit {who} ({record.spiffe_id}, card {card})"
        case ProposeRemove(member=name, reason=reason):
            return f"remove '{name}'" + (f": {reason}" if reason and not brief else "")
        case ProposeSwarmSettings(settings=settings):
            return f"keep votes open for {span(settings.proposal_s)}"
        case ProposeStudySettings(settings=study):
            return f"change the settings of study '{study.name}'"


def _proposes(call: Any) -> str:
    what = _subject(call, brief=isinstance(call, ProposeAdmit))
    return f"proposes to {what}"


def _proposes_study(call: ProposeStudy) -> str:
    digest = settings_digest(call.settings)
    return f"proposes the study '{call.settings.name}' with settings {short(digest)}"


def _commits(call: Commit) -> str:
    return f"commits its update {short(call.digest)} ({call.examples} examples) for {_round(call)}"


def _publishes(call: Publish) -> str:
    return f"publishes part {call.part} of {_round(call)}: {short(call.digest)}"


def _finds(call: Verdict) -> str:
    return (
        f"finds chunk {call.chunk} of part {call.part} of {_round(call)} {'wrong' if call.wrong else 'right'}"
    )


def _initialises(call: Initialise) -> str:
    return f"gives the initial model of '{call.study}': {short(call.digest)}, {call.data_bytes / 1e6:.1f} MB"


def _scores_merge(call: Score) -> str:
    return f"scores the merge of {_round(call)} on {call.examples} examples: {_scores(call)}"


def _round(call: Any) -> str:
    return f"round {call.round} of '{call.study}'"


_SENTENCES: dict[type, Callable[[Any], str]] = {
    ProposeAdmit: _proposes,
    ProposeRemove: _proposes,
    ProposeSwarmSettings: _proposes,
    ProposeStudySettings: _proposes,
    Vote: lambda call: f"votes {'yes' if call.yes else 'no'} on proposal {call.proposal}",
    Validate: lambda call: (
        "keeps the ledger with the others from now on" if call.on else "no longer helps to keep the ledger"
    ),
    Announce: lambda call: f"announces its addresses: {', '.join(call.addresses) or 'none, it dials out'}",
    Renew: lambda call: f"has another trust bundle, {short(call.bundle)}, on its card {short(call.card)}",
    ProposeStudy: _proposes_study,
    Agree: lambda call: f"agrees to take part in '{call.study}' under settings {short(call.settings)}",
    Initialise: _initialises,
    Enter: lambda call: f"enters '{call.study}': its training is ready",
    Leave: lambda call: f"leaves '{call.study}' for now",
    Commit: _commits,
    Alive: lambda call: f"is still training for {_round(call)} ({call.progress:.0%})",
    Publish: _publishes,
    Accept: lambda call: f"holds the merge {short(call.digest)} of {_round(call)} and accepts it",
    Report: lambda call: f"cannot get the update of {', '.join(call.unreachable)} for {_round(call)}",
    Tick: lambda call: f"notes that a deadline of '{call.study}' has passed",
    Dispute: lambda call: f"disputes chunk {call.chunk} of part {call.part} of {_round(call)}",
    Verdict: _finds,
    Score: _scores_merge,
    Finish: lambda call: f"has finished training in '{call.study}' and stays {call.contribution}",
}


def of_record(record: RoundRecord) -> Iterator[str]:
    """An accepted round: who took part, who did not, what came out."""
    yield f"Round {record.number}, accepted {when(record.accepted_s)}: merge {record.digest}"
    total = sum(record.weights.values()) or 1
    for name, commitment in record.roster.items():
        weight = record.weights.get(name, 0) / total
        yield f"  {name} took part: {commitment.examples} examples, {weight:.1%} of the merge"
    for name, why in record.absent.items():
        yield f"  {name} did not take part: {why}"
    for dispute in record.disputes:
        what = f"chunk {dispute.chunk} of {dispute.leader}'s part {dispute.part}"
        yield f"  {dispute.by} disputed {what}: {dispute.outcome}"
    if record.struck:
        yield f"  proven to have published a wrong merge: {', '.join(record.struck)}"
    for name, score in record.scores.items():
        yield f"  {name} scored it on {score.examples} examples: {_scores(score)}"


def of_study(study: Study, now_s: float) -> Iterator[str]:
    """Where a study is: its round, its phase, who has committed, who is missing, until when."""
    settings = study.settings
    yield f"Study '{settings.name}' is {study.phase}" + (f": {study.ended}" if study.ended else "")
    agreed = sorted(study.participants)
    present = [name for name in agreed if study.participants[name].present]
    if study.phase == "proposed":
        yield f"  agreed: {', '.join(agreed)}; training is ready at: {', '.join(present) or 'nobody'}"
        yield f"  round 1 opens when {settings.min_members} members are ready and the initial model is there"
        if not study.initial:
            yield f"  the initial model is missing: it comes from {study.proposer}"
    yield f"  rounds accepted: {len(study.history)} of {settings.rounds}" + (
        f"; the model: {short(study.accepted)}" if study.accepted else ""
    )
    if study.best:
        yield f"  the best merge so far: round {study.best}, {short(study.history[study.best - 1].digest)}"
    if study.open is not None:
        yield from of_open(study.open, now_s)


def of_open(open_round: OpenRound, now_s: float) -> Iterator[str]:
    """The open round: its phase, who is missing, what it waits for, until when."""
    attempt = f", attempt {open_round.attempt}" if open_round.attempt > 1 else ""
    since = when(open_round.phase_since_s)
    yield f"  round {open_round.number} is {open_round.phase}{attempt}, since {since}"
    if open_round.phase == "collecting":
        missing = missing_members(open_round)
        yield f"    committed: {', '.join(open_round.commits) or 'nobody yet'}"
        for name in missing:
            yield f"    waits for {name} until {when(open_round.expected[name])}"
    else:
        for number, part in enumerate(open_round.parts):
            yield f"    part {number}, led by {part.leader}: " + (short(part.digest) or "not published yet")
        if open_round.digest:
            yield f"    accepted by: {', '.join(open_round.accepts) or 'nobody yet'}"
        if open_round.dispute is not None:
            yield f"    {open_round.dispute.by} disputes a chunk that {open_round.dispute.leader} merged"
    for name, why in open_round.absent.items():
        yield f"    {name} is not in this round: {why}"
    left_s = open_round.deadline_s - now_s
    yield f"    next deadline: {when(open_round.deadline_s)} " + (
        f"(in {span(left_s)})" if left_s >= 0 else f"({span(-left_s)} ago)"
    )


def missing_members(open_round: OpenRound) -> list[str]:
    """Whom the open round waits for now, in name order."""
    if open_round.phase == "collecting":
        return sorted(name for name in open_round.expected if name not in open_round.commits)
    if not open_round.digest:
        return sorted({part.leader for part in open_round.parts if not part.digest})
    return sorted(set(open_round.roster) - set(open_round.accepts))


def of_settings(settings: StudySettings) -> Iterator[str]:
    """A study's settings, one sentence a line, for whoever is asked to agree."""
    return map(one_line, _settings(settings))


def _settings(settings: StudySettings) -> Iterator[str]:
    yield f"Study '{settings.name}'" + (f": {settings.description}" if settings.description else "")
    yield f"  who may take part: {', '.join(settings.members) or 'every member of the swarm'}"
    every = (
        counted(settings.every_steps, "step")
        if settings.every_steps
        else counted(settings.every_epochs, "epoch")
        if settings.every_epochs
        else f"{settings.every_minutes:g} minutes"
    )
    yield (
        f"  {settings.rounds} rounds; the models are merged every {every}, by the rule '{settings.rule}'"
        + (
            f" with {', '.join(f'{key}={value:g}' for key, value in settings.rule_options.items())}"
            if settings.rule_options
            else ""
        )
    )
    if settings.rule_digest:
        yield f"  that rule is a file, the same at every member: digest {settings.rule_digest}"
    yield f"  a member's weight: {settings.weighting}" + (f" {settings.given}" if settings.given else "")
    yield f"  begins with {settings.min_members} members; quorum {settings.quorum or 'a majority of these'}"
    silent, alive = span(settings.silence_s), span(settings.patience_s)
    yield f"  waits {silent} for a member that says nothing, {alive} for one that is training"
    merged = "shared by all members" if settings.parts == "shared" else "the work of one member, dealt anew"
    yield f"  each merge is {merged}; it takes {span(settings.merge_s)} at least before anybody is late"
    yield f"  each member recomputes {settings.audit_fraction:.0%} of what others merged"
    yield f"  fails if a round lacks its quorum for {span(settings.give_up_s)} beyond that patience"
    if settings.stop_minutes:
        yield f"  ends with the round that is accepted after {settings.stop_minutes:g} minutes"
    if settings.plateau is not None:
        plateau = settings.plateau
        better = "rises" if plateau.mode == "max" else "falls"
        yield (
            f"  ends when '{plateau.metric}' no longer {better} by more than {plateau.min_delta:g} "
            f"in {counted(plateau.rounds, 'round')}"
        )
    if settings.best is not None:
        which = "highest" if settings.best.mode == "max" else "lowest"
        yield f"  the final model is the merge with the {which} mean '{settings.best.metric}', not the last"
    if settings.local:
        yield f"  stays at each member: {', '.join(settings.local)}"
    yield f"  privacy: {settings.privacy}. The members see each other's models, never data."


def of_matrix(matrix: ScoreMatrix, best: int = 0) -> Iterator[str]:
    """A score as a table: a row a merge, a column a hospital; ``best``: the round to be marked."""
    marks = [f"{row.round}{' (best)' if row.round == best else ''}" for row in matrix.rows]
    table = [["round", *(f"{name} " for name in matrix.members), "mean "]]
    for mark, row in zip(marks, matrix.rows, strict=True):
        cells = [_cell(row.values.get(name), took_part=name in row.roster) for name in matrix.members]
        table.append([mark, *cells, _cell(row.mean, took_part=False)])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    yield f"{matrix.metric} of each merge, measured by each hospital on its own validation data:"
    for line in table:
        yield "  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    yield "  *: took part in that round; mean: over those who took part, weighted as in the merge"


def _cell(value: float | None, *, took_part: bool) -> str:
    return ("-" if value is None else f"{value:.4g}") + ("*" if took_part else " ")


def counted(number: int, thing: str) -> str:
    """A number of things: "1 step", "5 steps"."""
    return f"{number} {thing}" + ("" if number == 1 else "s")


def short(digest: str) -> str:
    """The beginning of a digest."""
    return digest[:SHORT_DIGEST]


def _scores(score: object) -> str:
    loss = getattr(score, "loss", None)
    metrics: dict[str, float] = getattr(score, "metrics", {})
    named = ([("loss", loss)] if loss is not None else []) + sorted(metrics.items())
    return ", ".join(f"{name} {value:.4g}" for name, value in named) or "nothing"
