"""Which merge is a study's final model: the last one or, where its settings say so, the best one.

The choice follows from the ledger alone, so every member ends with the same model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from konsil.core.rules.settings import Best
from konsil.core.rules.state import RoundRecord, Study
from konsil.core.rules.stopping import mean_score


@dataclass(frozen=True)
class FinalModel:
    """The merge that a study's choice falls on, as far as it is known.

    ``round``: its round, 0 for the initial parameters. ``settled``: nothing can change the choice any more.
    ``why``: a sentence for people.
    """

    round: int
    digest: str
    settled: bool
    why: str


def final_round(study: Study, now_s: float) -> FinalModel:
    """The study's final model; while it runs, what it would be if it ended now.

    Args:
        study: the study as it stands on the ledger.
        now_s: unix time.
    """
    over = is_over(study)
    best, last = study.settings.best, len(study.history)
    if not last:
        return FinalModel(0, study.initial, over, "No round was accepted.")
    number = study.best if best is not None and study.best else last
    settled = over and (best is None or scores_settled(study, now_s))
    why = _why(study, best, last)
    if study.phase == "failed":
        why += f" But the study failed: {study.ended}"
    return FinalModel(number, study.history[number - 1].digest, settled, why)


def asked_for(study: Study, number: int, final: FinalModel) -> FinalModel:
    """The merge of a round that somebody named; 0 for the initial parameters."""
    digest = study.history[number - 1].digest if number else study.initial
    why = f"It was asked for by its round, {number}; the final model is that of round {final.round}."
    return FinalModel(number, digest, settled=False, why=why)


def _why(study: Study, best: Best | None, last: int) -> str:
    if best is None:
        return f"It is the last of {last} merges."
    if not study.best:
        return f"It is the last of {last} merges: none has a score '{best.metric}' that came in time."
    mean = mean_score(study.history[study.best - 1], best.metric, timely=True)
    which = "highest" if best.mode == "max" else "lowest"
    return f"Of {last} merges it has the {which} mean '{best.metric}': {mean:.6g}."


def is_over(study: Study) -> bool:
    """Whether no further round can be accepted."""
    return study.phase in {"finished", "failed"}


def scores_settled(study: Study, now_s: float) -> bool:
    """Whether no further score can count: the study is over, and all have scored its last merge or had
    the time that it gives to a member that says nothing.
    """
    if not is_over(study):
        return False
    last = study.history[-1] if study.history else None
    if last is None or set(last.roster) <= set(last.scores):
        return True
    return now_s >= study.ended_s + study.settings.silence_s


def is_late(study: Study, number: int, now_s: int) -> bool:
    """Whether a score of this round comes too late to count for which merge is best.

    It counts until the round after next is accepted. So nodes need to keep few merges on their disks, and
    nobody can change the choice long afterwards.
    """
    return len(study.history) > number + 1 or scores_settled(study, now_s)


def choosable(study: Study) -> tuple[int, ...]:
    """The rounds of which one is the final model, however the scores come that can still count.

    Scores of the last two merges still count; of those before them only the best can be chosen. So nodes
    keep these on their disks, in whatever order they become the best one.
    """
    last = len(study.history)
    if study.settings.best is None:
        return (last,) if last else ()
    return tuple(sorted({study.best_of_old, last - 1, last} - {-1, 0}))


def best_round(study: Study) -> int:
    """The round whose merge has the best mean score, the earlier one of equals; 0 for none."""
    best = study.settings.best
    return 0 if best is None else _best_of([study.history[at - 1] for at in choosable(study)], best)


def best_of_all(study: Study) -> int:
    """As ``best_round``, from all rounds: for a history of which some scores are left out."""
    best = study.settings.best
    return 0 if best is None else _best_of(study.history, best)


def best_of_old(study: Study) -> int:
    """The best round among those whose scores cannot change any more, now that one more is accepted."""
    best = study.settings.best
    rounds = {study.best_of_old, len(study.history) - 2}
    return 0 if best is None else _best_of([study.history[at - 1] for at in sorted(rounds) if at > 0], best)


def _best_of(records: Iterable[RoundRecord], best: Best) -> int:
    ranked = [(rank, -record.number) for record in records if (rank := _rank(record, best)) is not None]
    return -max(ranked)[1] if ranked else 0


def _rank(record: RoundRecord, best: Best) -> float | None:
    mean = mean_score(record, best.metric, timely=True)
    if mean is None:
        return None
    return mean if best.mode == "max" else -mean
