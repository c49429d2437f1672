"""Bugs to plant in the contract and in the rules, of which the machine that drives both must find each.

    python tests/simulation/contract_planted.py NAME [EXAMPLES]   what was found, or nothing

One text of one file becomes another one; it must occur exactly once there.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from planter import Planter

EXAMPLES = 1_500
STEPS = 60


@dataclass(frozen=True)
class Bug:
    """``file``: a file of the contract, or a module of the rules with its dots."""

    name: str
    file: str
    old: str
    new: str


IN_CONTRACT = (
    Bug(
        "the quorum that was set counts for nothing",
        "mechanics",
        "return set_ if set_ != 0 else state.settings[s].min_members // 2 + 1",
        "return state.settings[s].min_members // 2 + 1",
    ),
    Bug(
        "whom a vote is to remove votes too",
        "membership",
        "return state.active & ~(1 << subject)",
        "return state.active",
    ),
    Bug("a draw leaves the last one out", "mechanics", "draws[last] % (last + 1)", "draws[last] % last"),
    Bug(
        "half of the roster is enough to accept",
        "mechanics",
        "and 2 * held > n):",
        "and 2 * held >= n):",
    ),
    Bug(
        "a second attempt has no more time than the first",
        "mechanics",
        "max(first_s, min(first_s << doublings, patience_s))",
        "first_s",
    ),
    Bug(
        "a majority of a roster strikes for good",
        "deadlines",
        "self._wrong(s, opened.leader, now_s, 2 * wrong > able)",
        "self._wrong(s, opened.leader, now_s, True)",
    ),
    Bug(
        "all parts are dealt anew for one silent leader",
        "deadlines",
        "mechanics.deal_parts(s, now_s, True)",
        "mechanics.deal_parts(s, now_s, False)",
    ),
    Bug(
        "one of two throws the other out by its word",
        "rounds",
        "mechanics.doubt(s, gone, now_s)",
        "mechanics.leave_roster(s, gone, mechanics.UNREACHABLE, now_s)",
    ),
    Bug(
        "half of the Gram matrices are a majority",
        "rounds",
        "return 2 * votes > len(grams), found",
        "return 2 * votes >= len(grams), found",
    ),
    Bug(
        "a removal reaches no study",
        "beginning",
        "self._without(s, removal.name, removal.at_s)",
        "pass",
    ),
    Bug("a call may leave some out", "state", '        raise "sequence_gap"\n', ""),
    Bug(
        "who enters while a round merges is in it",
        "studies",
        "    if not collects and not committed:\n        is_in = False\n",
        "",
    ),
    Bug("BLAKE3 turns by eight instead of seven", "blake3", "b >> 7 | b << 25", "b >> 8 | b << 24"),
)

IN_RULES = (
    Bug(
        "half of the roster accepts, in the rules",
        "rounds",
        "not (time_is_up and 2 * held > n)",
        "not (time_is_up and 2 * held >= n)",
    ),
    Bug(
        "a majority of a roster strikes for good, in the rules",
        "disputes",
        "for_good=2 * wrong > able",
        "for_good=True",
    ),
    Bug(
        "who was alive to the end is silent",
        "collecting",
        '"too slow" if until_s >= patient_s and',
        '"too slow" if until_s > patient_s and',
    ),
    Bug(
        "half of no is not enough",
        "members",
        "if 2 * no >= len(allowed):",
        "if 2 * no > len(allowed):",
    ),
    Bug(
        "half of the others take a member off the roster",
        "merging",
        "if 2 * count > others}",
        "if 2 * count >= others}",
    ),
    Bug("a merge has three times what the longest took", "rounds", "SLACK = 4", "SLACK = 3"),
    Bug("the deal leaves the last one out", "deal", "% (last + 1)", "% last"),
    Bug(
        "a quorum that is just there ends the study",
        "stopping",
        "if len(able) < quorum:",
        "if len(able) <= quorum:",
    ),
    Bug(
        "who agrees to a running study is in its open round",
        "studies",
        "from_round = study.open.number + 1 if",
        "from_round = study.open.number if",
    ),
    Bug(
        "a vote whose time is up just now is open",
        "members",
        "if now_s >= proposal.closes_s:\n        return _with",
        "if now_s > proposal.closes_s:\n        return _with",
    ),
    Bug(
        "scores count one round longer",
        "final",
        "len(study.history) > number + 1",
        "len(study.history) > number + 2",
    ),
    Bug(
        "a dispute that all have judged stays open",
        "disputes",
        "if len(opened.verdicts) == n or now_s >= opened.closes_s:",
        "if now_s >= opened.closes_s:",
    ),
)

BUGS = {bug.name: bug for bug in (*IN_CONTRACT, *IN_RULES)}


def hunt(bug: Bug, examples: int = EXAMPLES) -> str:
    """What the machine says with this bug planted; "" if it finds nothing."""
    in_rules = bug in IN_RULES
    if in_rules:
        sys.meta_path.insert(0, Planter(f"konsil.core.rules.{bug.file}", bug.old, bug.new))
    from contract_machine import drive  # noqa: PLC0415 - with the bug
    from contract_twin import sources  # noqa: PLC0415 - as above

    texts = None if in_rules else tuple(_with(bug, name, text) for name, text in sources())
    try:
        drive(examples, STEPS, texts, shrink=False)
    except AssertionError as error:
        return str(error).splitlines()[0]
    return ""


def _with(bug: Bug, name: str, text: str) -> tuple[str, str]:
    if name != bug.file:
        return name, text
    if text.count(bug.old) != 1:
        sys.exit(f"the text to be replaced is in {name}.vy {text.count(bug.old)} times, not once")
    return name, text.replace(bug.old, bug.new)


if __name__ == "__main__":
    sys.stdout.write(hunt(BUGS[sys.argv[1]], int((sys.argv[2:] or [EXAMPLES])[0])))
