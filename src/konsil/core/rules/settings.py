"""What a swarm and a study agree on: values with defaults, checked for contradictions in one place."""

from __future__ import annotations

from typing import Literal

import msgspec


class SwarmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the whole swarm, changed by vote.

    ``proposal_s``: how long a vote stays open, in seconds.
    """

    proposal_s: int = 14 * 24 * 3600


class Plateau(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Stop when the roster's weighted mean of a score has not improved by ``min_delta`` in ``rounds`` rounds.

    ``metric``: "loss" or a metric's name; ``mode``: which way is better.
    """

    metric: str = "loss"
    mode: Literal["min", "max"] = "min"
    rounds: int = 5
    min_delta: float = 0.0


class StudySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the members of a study agree on.

    Exactly one of ``every_steps``, ``every_epochs``, ``every_minutes`` says when to merge.
    ``members``: who may take part; empty for every member of the swarm.
    ``min_members``: how many must have entered before round 1 opens.
    ``quorum``: the commits needed before a round may merge; 0 for a majority of ``min_members``.
    ``silence_s``: how long a round waits for a member that says nothing; ``patience_s``: how long for one
    that is alive; ``merge_s``: the least time for leaders to publish; ``give_up_s``: how long a round may
    lack its quorum before the study fails.
    ``local``: patterns (fnmatch) of parameter names that stay at each member.
    ``weighting``: "examples", "equal", or "given" (then ``given`` names each member's weight).
    """

    name: str
    description: str = ""
    members: tuple[str, ...] = ()
    min_members: int = 2
    quorum: int = 0
    rounds: int = 10
    every_steps: int = 0
    every_epochs: int = 0
    every_minutes: float = 0.0
    rule: str = "mean"
    rule_options: dict[str, float] = {}
    weighting: Literal["examples", "equal", "given"] = "examples"
    given: dict[str, int] = {}
    parts: Literal["shared", "leader"] = "shared"
    audit_fraction: float = 0.05
    silence_s: int = 60
    patience_s: int = 24 * 3600
    merge_s: int = 30
    give_up_s: int = 7 * 24 * 3600
    stop_minutes: float = 0.0
    plateau: Plateau | None = None
    local: tuple[str, ...] = ()
    privacy: Literal["open"] = "open"
