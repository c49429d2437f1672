"""What a verified audit bundle proves and what not, and what its studies came to: sentences, and facts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konsil.cli import sentences
from konsil.cli.common import folded, in_groups, when
from konsil.cli.models import of_compared
from konsil.core.card_check import Compared
from konsil.core.model_card import ModelCard
from konsil.core.rules import (
    ProposeStudySettings,
    RoundRecord,
    State,
    Study,
    final_round,
    mean_score,
    metrics_of,
    score_value,
    state_digest,
)

if TYPE_CHECKING:
    from konsil.ledger.bundle import Checked

Model = tuple[Path, ModelCard, Compared]


def proven(found: Checked, *, genesis_named: bool) -> Iterator[str]:
    """What the file shows by itself, a sentence each."""
    height = found.state.height
    yield (
        f"{sentences.counted(height, 'call')}, each signed with the ledger key of the member that made it "
        "and allowed by the contract; the state after each was computed again."
    )
    yield (
        "Of each member all calls are here, from its first one to its last one in this file: they are "
        "numbered under its signature."
    )
    if found.cards:
        yield (
            f"The cards in it ({found.cards}) are those on the ledger: each binds a ledger key to a SPIFFE "
            "identity, with the signatures of both."
        )
    if found.keepers:
        yield (
            f"More than two thirds of the {found.keepers} members that kept the ledger at its end signed a "
            "block with its head: so they agreed on the order and the time of every call in it."
        )
    if genesis_named:
        yield "It is the swarm whose genesis you named."


def not_proven(found: Checked, *, genesis_named: bool) -> Iterator[str]:
    """What no such file can show, and whom to ask, a sentence each."""
    height = found.state.height
    if not genesis_named:
        yield (
            "That it is the swarm that you mean. Compare the genesis digest with two members by telephone, "
            f"or give it as --genesis: {in_groups(found.genesis_digest)}"
        )
    yield (
        f"That it ends where the ledger does. Calls after entry {height} may have been withheld: ask two "
        "members for their height."
    )
    yield from _of_order(found)
    if found.lacking:
        yield f"Whose keys those of {', '.join(found.lacking)} are: their cards are not in the file."
    yield "That a key was in the hands of its member: a signature shows only that somebody had it."
    yield "What members say of themselves: example counts, scores, and what they trained on."


def _of_order(found: Checked) -> Iterator[str]:
    height, operator = found.state.height, found.genesis.operator
    keepers = found.keepers
    if keepers:
        yield (
            f"That the order of the calls and their times are honest: more than two thirds of the {keepers} "
            "members that kept the ledger can agree on any, though on no call that its member did not sign."
        )
        return
    order = (
        f"the word of '{operator}', who operates this ledger, and of whoever made the file"
        if operator
        else "the word of whoever made the file: it holds no proof of the ledger's engine"
    )
    yield (
        "The order of different members' calls, and their times: "
        f"{order}. A member whose entry {height} has the same digest (`head`) holds the same history."
    )


def report_of(
    file: Path, found: Checked, only: str | None, model: Model | None, *, genesis_named: bool
) -> Iterator[str]:
    """The report for people, line by line. ``only``: the one study to tell of; None for all."""
    state = found.state
    yield (
        f"{file} holds: swarm '{found.genesis.swarm}', {sentences.counted(state.height, 'call')} from "
        f"{when(found.begun_s)} to {when(found.ended_s)}."
    )
    yield f"  genesis: {found.genesis_digest}"
    yield f"  head:    {found.head}"
    yield f"  state:   {state_digest(state)}"
    yield f"  bundle:  {found.digest}"
    yield ""
    yield "Proven by this file alone:"
    for sentence in proven(found, genesis_named=genesis_named):
        yield folded(f"- {sentence}", "  ")
    yield ""
    yield "Not proven by it:"
    for sentence in not_proven(found, genesis_named=genesis_named):
        yield folded(f"- {sentence}", "  ")
    if model is not None:
        yield ""
        yield from _of_model(*model)
    for name, study in sorted(state.studies.items()):
        if only in {None, name}:
            yield ""
            yield from of_audited_study(state, study)


def _of_model(file: Path, card: ModelCard, compared: Compared) -> Iterator[str]:
    which = f"the merge of round {card.round}" if card.round else "the initial model"
    yield folded(
        f"{file} is {which} of study '{card.study}'" + (", its final model." if card.final else "."), "  "
    )
    yield f"  digest: {card.digest}"
    yield folded(f"  {card.why}", "  ")
    for line in of_compared(card, compared, "The ledger in this bundle"):
        yield folded(line, "  ")


def of_audited_study(state: State, study: Study) -> Iterator[str]:
    """What a study came to: who took part in which round, who did not and why, disputes, scores."""
    for line in sentences.of_settings(study.settings):
        yield folded(line, "    ")
    yield f"  proposed by {study.proposer} on {when(study.proposed_s)}; digest of these settings:"
    yield f"    {study.settings_digest}"
    changes = sum(
        proposal.outcome == "passed"
        and isinstance(proposal.subject, ProposeStudySettings)
        and proposal.subject.settings.name == study.settings.name
        for proposal in state.proposals
    )
    if changes:
        times = sentences.counted(changes, "time")
        yield f"  its settings were changed by vote: {times}; those above are the last"
    ended = f", on {when(study.ended_s)}: {study.ended}" if study.ended else ""
    yield folded(f"  it is {study.phase}{ended}", "    ")
    yield f"  rounds accepted: {len(study.history)} of {study.settings.rounds}"
    for name in _everybody(study):
        yield folded(f"    {name}: {_attendance(study, name)}", "      ")
    for line in _rounds(study.history):
        yield folded(line, "      ")
    if study.history:
        chosen = final_round(study, state.now_s)
        which = "the final model" if study.ended else "the model so far"
        yield folded(f"  {which}: round {chosen.round}. {chosen.why}", "    ")
        yield f"    {chosen.digest}"
        for metric in metrics_of(study):
            yield folded(f"    {_course(study, metric, chosen.round)}", "      ")
    if study.open is not None:
        for line in sentences.of_open(study.open, state.now_s):
            yield folded(line, "      ")


def _everybody(study: Study) -> list[str]:
    told = (name for record in study.history for name in (*record.roster, *record.absent))
    return sorted({*study.participants, *told})


def _attendance(study: Study, name: str) -> str:
    records = [record for record in study.history if name in record.roster]
    text = f"took part in {len(records)}"
    if records:
        share = sum(record.weights[name] / sum(record.weights.values()) for record in records) / len(records)
        text += f", with {share:.1%} of these merges"
    reasons = [record.absent[name] for record in study.history if name in record.absent]
    for reason in sorted(set(reasons)):
        text += f"; {reason} in {reasons.count(reason)}"
    participant = study.participants.get(name)
    if participant is not None and participant.struck:
        text += "; struck for good: a wrong merge was proven"
    return text


def _rounds(history: tuple[RoundRecord, ...]) -> Iterator[str]:
    """Rounds one after another in which the same took part are told together, unless one was disputed."""
    for _, run in groupby(
        history, lambda record: (record.disputes and record.number, tuple(record.roster), record.absent)
    ):
        records = list(run)
        first, last = records[0], records[-1]
        absent = "".join(f"; {name} did not: {why}" for name, why in first.absent.items())
        took = f"{', '.join(first.roster)} took part{absent}"
        if first is last:
            yield f"    round {first.number}, accepted {when(first.accepted_s)}: {took}"
        else:
            until = f"{when(first.accepted_s)} to {when(last.accepted_s)}"
            yield f"    rounds {first.number} to {last.number}, accepted {until}: {took}"
        for dispute in first.disputes:
            what = f"chunk {dispute.chunk} of {dispute.leader}'s part {dispute.part}"
            yield f"      {dispute.by} disputed {what} in attempt {dispute.attempt}: {dispute.outcome}"
        if first.struck:
            yield f"      proven to have published a wrong merge: {', '.join(first.struck)}"


def _course(study: Study, metric: str, chosen: int) -> str:
    """A score from the first round to the final model, and there at every hospital."""
    means = [(record.number, mean_score(record, metric)) for record in study.history]
    known = [(number, mean) for number, mean in means if mean is not None]
    if not known:
        return f"{metric}: scored only by members that were not on the roster"
    first, last = known[0], next((each for each in known if each[0] == chosen), known[-1])
    count = sum(
        score_value(score, metric) is not None for record in study.history for score in record.scores.values()
    )
    text = f"{metric}, {sentences.counted(count, 'score')}: mean {first[1]:.4g} after round {first[0]}"
    text += f", {last[1]:.4g} after round {last[0]}" if last[0] != first[0] else ""
    values = {
        name: value
        for name, score in sorted(study.history[last[0] - 1].scores.items())
        if (value := score_value(score, metric)) is not None
    }
    return text + " (" + ", ".join(f"{name} {value:.4g}" for name, value in values.items()) + ")"


def facts_of(
    file: Path, found: Checked, only: str | None, model: Model | None, *, genesis_named: bool
) -> dict[str, Any]:
    """The report for programs. ``only``: as in ``report_of``."""
    state = found.state
    return {
        "file": file,
        "bundle": found.digest,
        "swarm": found.genesis.swarm,
        "engine": found.genesis.engine,
        "operator": found.genesis.operator,
        "genesis": found.genesis_digest,
        "genesis_named": genesis_named,
        "height": state.height,
        "head": found.head,
        "state": state_digest(state),
        "begun_s": found.begun_s,
        "ended_s": found.ended_s,
        "calls": found.calls,
        "members": state.members,
        "cards": found.cards,
        "lacking": found.lacking,
        "proof": found.proof,
        "proven": list(proven(found, genesis_named=genesis_named)),
        "not_proven": list(not_proven(found, genesis_named=genesis_named)),
        "studies": {name: study for name, study in state.studies.items() if only in {None, name}},
        "model": None
        if model is None
        else {
            "file": model[0],
            "study": model[1].study,
            "round": model[1].round,
            "digest": model[1].digest,
            "final": model[1].final,
            "why": model[1].why,
            "ledger": model[2].model or "merge only",
        },
    }
