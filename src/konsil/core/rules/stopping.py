"""When a study ends: rounds, time, a plateau in the scores, or nobody left to go on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from konsil.core.rules.agreement import effective_quorum
from konsil.core.rules.settings import Plateau
from konsil.core.rules.state import RoundRecord, ScoreRecord, Study, StudyPhase

End = tuple[StudyPhase, str]

UNSCORED_ROUNDS = 5
"""A study whose best merge is chosen by a score fails when so many rounds in a row brought none: long enough
for a member or two to be away, short enough that nobody trains for weeks towards no choice at all."""


def why_it_ends(study: Study, now_s: int) -> End | None:
    """How and why a study ends now that a round was accepted; None if it goes on."""
    best = study.settings.best
    recent = study.history[:-1][-UNSCORED_ROUNDS:]  # the round just accepted cannot have scores yet
    if (
        best is not None
        and len(recent) == UNSCORED_ROUNDS
        and all(mean_score(record, best.metric, timely=True) is None for record in recent)
    ):
        return "failed", (
            f"The study's final model is the merge with the best '{best.metric}', but its last "
            f"{UNSCORED_ROUNDS} rounds up to round {recent[-1].number} brought no score of that name."
        )
    return _with_a_choice(study, _by_its_limits(study, now_s))


def _with_a_choice(study: Study, end: End | None) -> End | None:
    """The end of a study; failed if its best merge cannot be chosen, since nobody scored any."""
    best = study.settings.best
    if end is None or best is None or study.best or len(study.history) < 2:  # noqa: PLR2004 - of one merge there is no choice
        return end
    return "failed", (
        f"{end[1]} The study's final model is the merge with the best '{best.metric}', but none of its "
        f"{len(study.history)} rounds brought a score of that name in time."
    )


def _by_its_limits(study: Study, now_s: int) -> End | None:
    settings = study.settings
    if study.history[-1].number >= settings.rounds:
        return "finished", f"All {settings.rounds} rounds are done."
    if settings.stop_minutes and now_s >= study.started_s + settings.stop_minutes * 60:
        return "finished", f"Its {settings.stop_minutes:g} minutes are over."
    if settings.plateau is not None:
        return _plateau(settings.plateau, study.history)
    return None


def nobody_goes_on(study: Study) -> End | None:
    """How and why a study ends now that a participant has finished; None if it goes on.

    A participant that left, or agreed and never entered, does not hold the others up; one that fell
    silent does, unless too few are left for a quorum.
    """
    return _with_a_choice(study, _by_its_members(study))


def _by_its_members(study: Study) -> End | None:
    absent = study.open.absent if study.open is not None else {}
    participants = {name: p for name, p in study.participants.items() if not p.struck}
    finished = sorted(name for name, p in participants.items() if p.finished is not None)
    going = [
        name
        for name, p in participants.items()
        if p.finished is None and (p.present or absent.get(name) in {"silent", "unreachable"})
    ]
    if not going:
        return "finished", f"All who took part have finished: {', '.join(finished)}."
    able = [name for name, p in participants.items() if p.finished != "inactive"]
    quorum = effective_quorum(study.settings)
    if len(able) < quorum:
        return "finished", (
            f"Finished: {', '.join(finished)}. Those left ({', '.join(sorted(able))}) are fewer than the "
            f"quorum of {quorum}."
        )
    return None


def _plateau(plateau: Plateau, history: Sequence[RoundRecord]) -> End | None:
    scored = history[:-1]  # the round just accepted cannot have scores yet
    recent = scored[-plateau.rounds :]
    means = [mean_score(record, plateau.metric, timely=True) for record in scored]
    if len(recent) == plateau.rounds and all(mean is None for mean in means[-plateau.rounds :]):
        return "failed", (
            f"The study stops on a plateau of '{plateau.metric}', but its last {plateau.rounds} rounds "
            f"up to round {recent[-1].number} brought no score of that name."
        )
    values = [mean for mean in means if mean is not None]
    if len(values) <= plateau.rounds:
        return None
    sign = 1.0 if plateau.mode == "max" else -1.0
    best_before = max(sign * value for value in values[: -plateau.rounds])
    best_since = max(sign * value for value in values[-plateau.rounds :])
    if best_since - best_before > plateau.min_delta:
        return None
    return "finished", (
        f"'{plateau.metric}' has not improved by more than {plateau.min_delta:g} in {plateau.rounds} rounds: "
        f"best before {sign * best_before:.6g}, since then {sign * best_since:.6g}."
    )


def mean_score(record: RoundRecord, metric: str, *, timely: bool = False) -> float | None:
    """The roster's mean of a score, each weighted as the member's update was in the merge; None without any.

    Example counts of scores weigh nothing: nobody's word about them may move what the mean decides.

    Args:
        record: an accepted round.
        metric: "loss" or a metric's name.
        timely: without those that came too late to decide anything (``ScoreRecord.late``).
    """
    return mean_of(record.scores, record.weights, metric, timely=timely)


def mean_of(
    scores: Mapping[str, ScoreRecord], weights: Mapping[str, int], metric: str, *, timely: bool = False
) -> float | None:
    """As ``mean_score``, of scores by member and the roster's merge weights."""
    measured = [
        (weights[name], value)
        for name, score in sorted(scores.items())
        if weights.get(name)
        and not (timely and score.late)
        and (value := score_value(score, metric)) is not None
    ]
    if not measured:
        return None
    return math.fsum(weight * value for weight, value in measured) / sum(weight for weight, _ in measured)


def score_value(score: ScoreRecord, metric: str) -> float | None:
    """A member's loss, or its metric of that name; None if it has none."""
    return score.loss if metric == "loss" else score.metrics.get(metric)
