"""Many members in one process: the real contract, round machines, learners, merges and digests; no network.

Nothing fails here but the members' own code. Faults of networks and disks, and members that lie, are not
simulated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from konsil.core.merge import Rule
from konsil.core.rules import (
    BUILT_IN_RULES,
    RoundRecord,
    StudySettings,
    check_against_rule,
    check_pooling,
    check_study_settings,
    state_digest,
)
from konsil.errors import ConfigError
from konsil.node.config import read_study_file
from konsil.node.rules import built_in, rule_in_file
from konsil.simulation.ledger import Ledger
from konsil.simulation.member import Member
from konsil.simulation.node import Node
from konsil.simulation.result import Simulated
from konsil.simulation.run import Run
from konsil.simulation.turns import turns
from konsil.simulation.world import World

DEFAULT_MEMBERS = 8
DEFAULT_NAME = "simulated"


def simulate(
    make_member: Callable[[int], Member],
    *,
    members: int | Sequence[str] | None = None,
    study: StudySettings | Mapping[str, Any] | str | Path,
    rule_file: str | Path | None = None,
    jobs: int = 1,
    round_s: float = 1.0,
    on_round: Callable[[RoundRecord], None] | None = None,
) -> Simulated:
    """Run a study with many members in this process, to try its settings before hospitals agree to them.

    The contract, each member's round machine, the learners, the merges and all digests are the real ones: a
    real swarm with the same members and updates comes to the same digests. There is no network, no disk, and
    no ledger but in memory, whose time starts at 0.

    Args:
        make_member: place (0, 1, ...) -> what this hospital's script would have.
        members: how many, or their names; the first one proposes the study. None for those that the settings
            name, else 8.
        study: the settings, a TOML file of them, or a dict (``name`` may be left out).
        rule_file: of the study's merge rule, where it does not come with Konsil; its digest goes into
            settings that do not name one.
        jobs: how many members train at a time: through joblib unless 1; -1 for all processors.
        round_s: how long a round's training takes in the ledger's time, in seconds, for studies that do not
            count rounds in minutes. It matters for ``stop_minutes`` alone.
        on_round: told of each accepted round as soon as it is scored.

    Returns:
        The study as the ledger has it, the models, the scores. A member whose code fails leaves as a script
        that ends would, and is in ``problems``.

    Raises:
        ConfigError: settings that contradict each other, two members with one model, or joblib is missing.
        StudyError: the study never started, or failed before its first merge; says why.
    """
    began_s = time.perf_counter()
    settings = _settings(study)
    rule, settings = _rule(settings, rule_file)
    names = _names(members, settings)
    check_study_settings(settings, names)
    check_against_rule(settings, rule)
    made = {name: make_member(place) for place, name in enumerate(names)}
    if len({id(member.model) for member in made.values()}) < len(made):
        raise ConfigError(
            "Two simulated members have the same model object.",
            safe="Nothing was trained.",
            do="`make_member` must make a new model each time it is called.",
        )
    if any(member.preprocessing is not None for member in made.values()):
        check_pooling(settings)
    world = World(Ledger(names, settings), [Node(name, settings.name, made[name]) for name in names], rule)
    with turns(jobs) as take_all, closing(world):
        Run(world, take_all, round_s, on_round).run()
    return Simulated(
        study=world.study,
        members=names,
        models={node.name: node.member.model for node in world.nodes},
        problems=tuple(world.problems),
        state_digest=state_digest(world.ledger.state),
        seconds=time.perf_counter() - began_s,
    )


def _settings(study: StudySettings | Mapping[str, Any] | str | Path) -> StudySettings:
    if isinstance(study, StudySettings):
        return study
    if isinstance(study, str | Path):
        return read_study_file(Path(study))
    try:
        return msgspec.convert({"name": DEFAULT_NAME, **study}, StudySettings)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"The study's settings cannot be read: {error}.",
            safe="Nothing was trained.",
            do="The keys are those of a study's TOML file: docs/consortium-lead.md names all.",
        ) from error


def _rule(settings: StudySettings, rule_file: str | Path | None) -> tuple[Rule, StudySettings]:
    if rule_file is None:
        if settings.rule not in BUILT_IN_RULES:
            raise ConfigError(
                f"The merge rule '{settings.rule[:80]}' does not come with Konsil, which has"
                f" {', '.join(sorted(BUILT_IN_RULES))}.",
                safe="Nothing was trained.",
                do="If it is one of your own, give its file with `rule_file=`, for example"
                f" `rule_file='{settings.rule[:80]}.py'`; else correct the study's `rule`.",
            )
        return built_in(settings), settings
    made, digest = rule_in_file(Path(rule_file), settings)
    return made, replace(settings, rule_digest=digest)


def _names(members: int | Sequence[str] | None, settings: StudySettings) -> tuple[str, ...]:
    if members is None:
        members = settings.members or DEFAULT_MEMBERS
    if not isinstance(members, int):
        return tuple(members)
    if settings.members and len(settings.members) != members:
        raise ConfigError(
            f"{members} members are to be simulated, but the study is for {len(settings.members)}.",
            do="Leave `members` out, or take it out of the settings.",
        )
    width = len(str(members))  # so that their order by name is that by place
    return settings.members or tuple(f"member-{place:0{width}}" for place in range(1, members + 1))
