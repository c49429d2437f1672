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

    Each score is weighted as its member's update is in the merge. ``metric``: "loss" or a metric's name;
    ``mode``: which way is better.
    """

    metric: str = "loss"
    mode: Literal["min", "max"] = "min"
    rounds: int = 5
    min_delta: float = 0.0


class Adaptive(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Merge less often while a score gets better, as often as set when it does not.

    After each accepted round the interval doubles if the roster's mean of the score has improved by more than
    ``min_delta``, up to ``most`` times the interval that is set; else it halves, down to that interval.
    ``metric``: "loss" or a metric's name; ``mode``: which way is better.
    """

    metric: str = "loss"
    mode: Literal["min", "max"] = "min"
    min_delta: float = 0.0
    most: int = 8


class Best(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The study's final model is the merge with the best mean of this score, not the last one.

    ``metric``: "loss" or a metric's name; ``mode``: which way is better.
    """

    metric: str = "loss"
    mode: Literal["min", "max"] = "min"


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An optimiser over rounds, whose gradient is the agreed merge's difference to the model before it.

    Reddi et al., *Adaptive federated optimization* (ICLR 2021): "adam" is FedAdam, "yogi" FedYogi.
    ``learning_rate``, ``beta1``, ``beta2``: dimensionless; ``tau``: the adaptivity, in the unit of the
    parameters.
    """

    method: Literal["adam", "yogi"] = "adam"
    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3


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
    ``weighting``: "examples", "equal", "given" (then ``given`` names each member's weight), or "capped": by
    examples, but nobody counts more than ``cap_percent`` of the whole.
    ``rule_digest``: of the file of a rule that is not built in. ``adaptive``: the interval between merges
    follows a score. ``best``: which merge is the study's final model; without it the last one.
    ``outer``: an optimiser over rounds. ``prox``: strength of FedProx's local term. ``scaffold``: correct the
    members' drift by control variates, which travel with the parameters.
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
    rule_digest: str = ""
    weighting: Literal["examples", "equal", "given", "capped"] = "examples"
    given: dict[str, int] = {}
    cap_percent: int = 0
    parts: Literal["shared", "leader"] = "shared"
    audit_fraction: float = 0.05
    silence_s: int = 60
    patience_s: int = 24 * 3600
    merge_s: int = 30
    give_up_s: int = 7 * 24 * 3600
    stop_minutes: float = 0.0
    plateau: Plateau | None = None
    adaptive: Adaptive | None = None
    best: Best | None = None
    outer: Outer | None = None
    prox: float = 0.0
    scaffold: bool = False
    local: tuple[str, ...] = ()
    privacy: Literal["open"] = "open"
