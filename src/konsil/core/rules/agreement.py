"""What a study's settings may not be: contradictions, found before anybody agrees to them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Final

import msgspec

from konsil.core.digest import bytes_digest, is_digest
from konsil.core.merge import WEIGHT_LIMIT, Rule, required_members, rule, rule_names
from konsil.core.rules.refusing import SLUG
from konsil.core.rules.settings import Plateau, StudySettings, SwarmSettings
from konsil.errors import ConfigError

BUILT_IN_RULES: Final = frozenset(rule_names())
"""Rules that every member's contract knows. One in a file is unknown to it, and the contract must decide
alike everywhere: of such a rule it asks nothing but the digest of its file."""

RULE_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
"""A rule's name: its file is called so."""

FIXED_SETTINGS: Final = (
    "name",
    "members",
    "min_members",
    "local",
    "privacy",
    "best",
    "outer",
    "prox",
    "scaffold",
)
"""Never changed by vote: who may take part, when it starts, what the parameters' schema is made of, which
merges are kept since they may be chosen, an optimiser whose state follows from all rounds, and what training
scripts build in when they join."""

MAX_ROUNDS: Final = 1_000_000
MAX_SECONDS: Final = 10 * 366 * 24 * 3600
"""Ten years: longer than any study, and far from the end of any integer."""
MAX_TEXT: Final = 2_000
MAX_PATTERNS: Final = 64
MAX_STUDY_MEMBERS: Final = 1_024
"""A Gram matrix has at most as many rows."""
MAX_METRIC_NAME: Final = 64
MIN_PROPOSAL_S: Final = 60
"""Shorter than this, a vote could be over before the others' nodes have seen it."""
MAX_INTERVAL: Final = 1e9
"""Steps, epochs or minutes between merges."""

WHOLE_PERCENT: Final = 100
MIN_STRETCH, MAX_STRETCH = 2, 1_024
"""How many times the set interval an adaptive one may become: far more makes members drift apart."""
MAX_PROX: Final = 1e6
MAX_RATE: Final = 1e3
OUTER_QUORUM: Final = 3
"""So few that one of them alone cannot keep the others from a majority."""
MIN_TAU: Final = 1e-30
"""Far below any step, far above where dividing by it would overflow."""

_DIGEST_CONTEXT = "study settings"


def settings_digest(settings: StudySettings) -> str:
    """The digest that members agree to: the same for settings that read alike.

    Raises:
        ConfigError: they hold a NaN or an infinity.
    """
    # A whole number may stand where a fraction is meant; reading it back makes it one.
    try:
        read = msgspec.json.decode(msgspec.json.encode(settings), type=StudySettings)
    except (msgspec.MsgspecError, OverflowError) as error:
        raise ConfigError(f"The study's settings cannot be written down: {error}.") from error
    return bytes_digest(msgspec.json.encode(read, order="deterministic"), _DIGEST_CONTEXT)


def effective_quorum(settings: StudySettings) -> int:
    """The commits needed before a round may merge: as set, or a majority of ``min_members``."""
    return settings.quorum or settings.min_members // 2 + 1


def rule_mixes(settings: StudySettings) -> bool | None:
    """Whether the merge rule needs a Gram matrix; None for a rule that is not built in."""
    if settings.rule not in BUILT_IN_RULES:
        return None
    return rule(settings.rule, settings.rule_options).mix is not None


def check_study_settings(settings: StudySettings, members: Collection[str]) -> None:
    """See that a study's settings make sense together.

    Args:
        settings: the settings.
        members: names of the swarm's active members.

    Raises:
        ConfigError: names the settings that contradict each other.
    """
    _check_names(settings, members)
    _check_numbers(settings)
    _check_quorum(settings, members)
    _check_interval(settings)
    _check_weighting(settings)
    if settings.plateau is not None:
        _check_plateau(settings.plateau, settings.rounds)
    _check_scores(settings)
    _check_optimisers(settings)
    _check_majority(settings)
    _check_rule(settings)


def check_swarm_settings(settings: SwarmSettings) -> None:
    """See that the swarm's settings make sense.

    Raises:
        ConfigError: names the setting.
    """
    _require(
        MIN_PROPOSAL_S <= settings.proposal_s <= MAX_SECONDS,
        f"`proposal_s` must be from {MIN_PROPOSAL_S} s to ten years.",
    )


def _require(held: bool, what: str) -> None:
    if not held:
        raise ConfigError(what, safe="Nothing was proposed.", do="Correct the settings and try again.")


def _check_names(settings: StudySettings, members: Collection[str]) -> None:
    _require(
        SLUG.fullmatch(settings.name) is not None,
        "The study's `name` must be 1 to 63 lower-case letters, digits and hyphens, not a hyphen first.",
    )
    _require(len(settings.description) <= MAX_TEXT, f"`description` is over {MAX_TEXT} characters.")
    _require(len(settings.members) <= MAX_STUDY_MEMBERS, f"`members` has over {MAX_STUDY_MEMBERS} names.")
    _require(len(set(settings.members)) == len(settings.members), "`members` names a member twice.")
    strangers = sorted(set(settings.members) - set(members))
    _require(
        not strangers,
        f"`members` names {', '.join(strangers)[:200]}, not an active member of the swarm that may train.",
    )
    _require(
        len(settings.local) <= MAX_PATTERNS
        and all(0 < len(pattern) <= MAX_TEXT for pattern in settings.local),
        f"`local` must be at most {MAX_PATTERNS} patterns, none of them empty.",
    )


def _check_numbers(settings: StudySettings) -> None:
    _require(
        len(settings.rule_options) <= MAX_PATTERNS
        and all(math.isfinite(value) for value in settings.rule_options.values()),
        f"`rule_options` must be at most {MAX_PATTERNS} finite numbers.",
    )
    _require(0 < len(settings.rule) <= MAX_METRIC_NAME, "`rule` must be a merge rule's name.")
    _require(1 <= settings.rounds <= MAX_ROUNDS, f"`rounds` must be from 1 to {MAX_ROUNDS}.")
    _require(0 <= settings.audit_fraction <= 1, "`audit_fraction` must be from 0 to 1.")
    for name in ("silence_s", "patience_s", "merge_s"):
        _require(1 <= getattr(settings, name) <= MAX_SECONDS, f"`{name}` must be from 1 s to ten years.")
    _require(0 <= settings.give_up_s <= MAX_SECONDS, "`give_up_s` must be from 0 s to ten years.")
    _require(
        settings.patience_s >= settings.silence_s,
        f"`patience_s` ({settings.patience_s}) is below `silence_s` ({settings.silence_s}): a member that is "
        "alive would be waited for less long than one that says nothing.",
    )
    _require(0 <= settings.stop_minutes <= MAX_SECONDS / 60, "`stop_minutes` must be from 0 to ten years.")


def _check_quorum(settings: StudySettings, members: Collection[str]) -> None:
    pool = len(settings.members or members)
    named = "`members`" if settings.members else "the swarm's members"
    _require(settings.min_members >= 1, "`min_members` must be at least 1.")
    _require(
        settings.min_members <= min(pool, MAX_STUDY_MEMBERS),
        f"`min_members` is {settings.min_members}, but {named} are {pool}: the study could never start.",
    )
    _require(
        0 <= settings.quorum <= settings.min_members,
        f"`quorum` ({settings.quorum}) must be from 0 to `min_members` ({settings.min_members}): "
        "else round 1 could open without ever being able to merge.",
    )


def _check_interval(settings: StudySettings) -> None:
    given = [
        name for name in ("every_steps", "every_epochs", "every_minutes") if getattr(settings, name) != 0
    ]
    _require(
        len(given) == 1,
        "Exactly one of `every_steps`, `every_epochs`, `every_minutes` says when to merge; "
        f"{' and '.join(f'`{name}`' for name in given) or 'none'} is given.",
    )
    value = getattr(settings, given[0])
    _require(0 < value <= MAX_INTERVAL, f"`{given[0]}` must be above 0 and at most 1e9.")


def _check_weighting(settings: StudySettings) -> None:
    if settings.weighting == "capped":
        _require(
            0 < settings.cap_percent < WHOLE_PERCENT,
            '`weighting` is "capped", so `cap_percent`, what one may count at most, must be from 1 to 99.',
        )
    else:
        _require(not settings.cap_percent, '`cap_percent` is set, but `weighting` is not "capped".')
    if settings.weighting != "given":
        _require(not settings.given, '`given` has weights, but `weighting` is not "given".')
        return
    _require(bool(settings.members), '`weighting` is "given", so `members` must name who may take part.')
    lacking = sorted(set(settings.members) - set(settings.given))
    _require(not lacking, f"`given` has no weight for {', '.join(lacking)[:200]}.")
    others = sorted(set(settings.given) - set(settings.members))
    _require(not others, f"`given` has weights for {', '.join(others)[:200]}, not in `members`.")
    _require(
        all(1 <= weight < WEIGHT_LIMIT for weight in settings.given.values()),
        f"Weights in `given` must be from 1 to {WEIGHT_LIMIT - 1}.",
    )


def _check_plateau(plateau: Plateau, rounds: int) -> None:
    _require(is_metric(plateau.metric), "`plateau.metric` must be a metric's name of at most 64 characters.")
    _require(
        1 <= plateau.rounds < rounds,
        f"`plateau.rounds` ({plateau.rounds}) must be from 1 to below `rounds` ({rounds}).",
    )
    _require(
        math.isfinite(plateau.min_delta) and plateau.min_delta >= 0,
        "`plateau.min_delta` must be a finite number, 0 or above.",
    )


def _check_scores(settings: StudySettings) -> None:
    for key, chosen in (("adaptive", settings.adaptive), ("best", settings.best)):
        if chosen is not None:
            _require(
                is_metric(chosen.metric), f"`{key}.metric` must be a metric's name of at most 64 characters."
            )
    adaptive = settings.adaptive
    if adaptive is not None:
        _require(
            MIN_STRETCH <= adaptive.most <= MAX_STRETCH,
            f"`adaptive.most` must be from {MIN_STRETCH} to {MAX_STRETCH} times the interval that is set.",
        )
        _require(
            math.isfinite(adaptive.min_delta) and adaptive.min_delta >= 0,
            "`adaptive.min_delta` must be a finite number, 0 or above.",
        )


def _check_optimisers(settings: StudySettings) -> None:
    _require(
        math.isfinite(settings.prox) and 0 <= settings.prox <= MAX_PROX,
        f"`prox` must be from 0 (no local term) to {MAX_PROX:g}.",
    )
    if settings.scaffold:
        _require(
            settings.rule == "mean" and settings.weighting == "equal",
            '`scaffold` needs the control variates\' plain mean: set `rule` to "mean" and `weighting` to '
            '"equal".',
        )
    outer = settings.outer
    if outer is not None:
        _require(
            0 < outer.learning_rate <= MAX_RATE,
            f"`outer.learning_rate` must be above 0, at most {MAX_RATE:g}.",
        )
        _require(
            0 <= outer.beta1 < 1 and 0 <= outer.beta2 < 1,
            "`outer.beta1` and `beta2` must be from 0 to below 1.",
        )
        _require(
            not settings.scaffold,
            "`outer` moves every array that travels, and `scaffold`'s control variates must be the members' "
            "plain mean: take one of the two.",
        )
        _require(MIN_TAU <= outer.tau <= 1, f"`outer.tau` must be from {MIN_TAU:g} to 1.")


def _check_majority(settings: StudySettings) -> None:
    """Where two make a round and one names another outer state, none has a majority: no third could go on."""
    quorum = effective_quorum(settings)
    _require(
        settings.outer is None or quorum >= OUTER_QUORUM or len(settings.members) == OUTER_QUORUM - 1,
        f"`outer` needs a quorum of {OUTER_QUORUM}, and it is {quorum}: of two members one could keep all"
        " others out for good. Raise `quorum` (and `min_members`), or name exactly two in `members`.",
    )


def _check_rule(settings: StudySettings) -> None:
    if settings.rule in BUILT_IN_RULES:
        _require(
            not settings.rule_digest,
            f"`rule_digest` is set, but the rule {settings.rule} comes with Konsil: it is in no file.",
        )
        check_against_rule(settings, rule(settings.rule, settings.rule_options))
        return
    _require(
        RULE_NAME.fullmatch(settings.rule) is not None,
        "`rule` must be the name of a merge rule: 1 to 64 small letters, digits, hyphens and underscores, "
        "a letter first.",
    )
    _require(
        is_digest(settings.rule_digest),
        f"There is no merge rule '{settings.rule}' in Konsil; there are {', '.join(rule_names())}. For one "
        "of your own `rule_digest` must be the digest of its file, 64 hexadecimal digits: "
        "`konsil rule digest FILE`.",
    )


def check_against_rule(settings: StudySettings, chosen: Rule) -> None:
    """See that the settings leave their merge rule what it needs.

    Args:
        settings: the settings.
        chosen: what their ``rule`` is: built in, or from its file.

    Raises:
        ConfigError: the quorum is too small for it, or members do not start where it thinks that they do.
    """
    needed = required_members(chosen)
    quorum = effective_quorum(settings)
    _require(
        needed <= quorum,
        f"`rule` {settings.rule} with `rule_options` {dict(settings.rule_options)} needs {needed} members, "
        f"but the quorum is {quorum}: raise `quorum` (and `min_members`), or trim less.",
    )
    _require(
        settings.outer is None or not chosen.around_base,
        f"`rule` {settings.rule} looks at how far members go from the last merge, but with `outer` they "
        "start from what that optimiser made of it: take another rule, or no `outer`.",
    )


def is_metric(name: str) -> bool:
    """Whether a text may name a metric: letters, digits and ``_ - . @``, at most 64."""
    return 0 < len(name) <= MAX_METRIC_NAME and _METRIC.issuperset(name)


_METRIC = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.@")
