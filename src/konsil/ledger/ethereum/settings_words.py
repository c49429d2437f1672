"""A study's settings as the contract takes them: the numbers that it decides by, and two texts for the rest.

Nothing stands in both, except what the numbers say in short of a text (whether a rule mixes, how many members
it needs, whether all weigh alike, whether there is an outer optimiser): `read` refuses settings of which the
two differ.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from konsil.core.merge import required_members, rule
from konsil.core.rules import BUILT_IN_RULES, StudySettings, rule_mixes
from konsil.errors import ConfigError, Refused

N_NUMBERS = 14
SETTINGS_BYTES = 16_384
NOBODY = 255
"""The number of no member: for names that the contract does not know."""

_FIXED = ("members", "local", "privacy", "best", "outer", "prox", "scaffold")
"""Settings that never change and that the contract does not look into."""

_NUMBERS = ("min_members", "quorum", "rounds", "silence_s", "patience_s", "merge_s", "give_up_s")
_IN_NUMBERS = frozenset({"name", "stop_minutes", "parts", *_NUMBERS})
_MINUTE_S = 60

_json = msgspec.json.Encoder(order="deterministic")


def numbers_of(settings: StudySettings, invited: int) -> tuple[int, ...]:
    """The numbers, in the order in which the contract takes them. ``invited``: bitmap of ``members``."""
    mixes = rule_mixes(settings)
    return (
        invited,
        settings.min_members,
        settings.quorum,
        settings.rounds,
        int(settings.weighting == "equal"),
        int(settings.parts == "leader"),
        2 if mixes is None else int(mixes),
        int(settings.outer is not None),
        settings.silence_s,
        settings.patience_s,
        settings.merge_s,
        settings.give_up_s,
        round(settings.stop_minutes * _MINUTE_S),
        required_members(rule(settings.rule, settings.rule_options))
        if settings.rule in BUILT_IN_RULES
        else 0,
    )


def texts_of(settings: StudySettings) -> tuple[str, str]:
    """The settings that never change, then the others, as canonical JSON."""
    fields: dict[str, Any] = msgspec.to_builtins(settings)
    fixed = {name: fields[name] for name in _FIXED}
    free = {name: value for name, value in fields.items() if name not in fixed and name not in _IN_NUMBERS}
    return _json.encode(fixed).decode(), _json.encode(free).decode()


def require_supported(settings: StudySettings) -> None:
    """See that the contract can keep a study with these settings.

    Raises:
        Refused: "bad_settings".
    """
    for name in ("plateau", "adaptive", "best"):
        _require(
            getattr(settings, name) is None, f"`{name}` decides by scores, which this contract cannot yet."
        )
    seconds = settings.stop_minutes * _MINUTE_S
    _require(
        math.isfinite(seconds)
        and seconds == round(seconds)
        and round(seconds) / _MINUTE_S == settings.stop_minutes,
        "`stop_minutes` must be a whole number of seconds.",
    )
    try:
        rule_mixes(settings)
    except ConfigError as error:
        raise Refused("bad_settings", error.what, do=error.do) from error
    numbers = [getattr(settings, name) for name in _NUMBERS]
    _require(all(0 <= number < 1 << 64 for number in numbers), "a number is out of every range.")
    _require(
        all(len(text.encode()) <= SETTINGS_BYTES for text in texts_of(settings)),
        f"its texts are over {SETTINGS_BYTES} bytes.",
    )


def _require(held: bool, what: str) -> None:
    if not held:
        raise Refused(
            "bad_settings",
            f"This swarm's ledger cannot keep such a study: {what}",
            do="Change it and propose again.",
        )


def read(name: str, numbers: tuple[int, ...], fixed: str, free: str) -> StudySettings:
    """The settings from what the contract took.

    Raises:
        Refused: "bad_settings": they are not the one encoding of any settings.
    """
    try:
        fields = {**msgspec.json.decode(fixed), **msgspec.json.decode(free)}
        held = dict(zip(_NUMBERS, (*numbers[1:4], *numbers[8:12]), strict=True))
        parts = "leader" if numbers[5] else "shared"
        minutes = numbers[12] / _MINUTE_S
        all_fields = {**fields, **held, "name": name, "parts": parts, "stop_minutes": minutes}
        settings = msgspec.convert(all_fields, StudySettings)
        same = texts_of(settings) == (fixed, free) and numbers_of(settings, numbers[0]) == numbers
    except (msgspec.MsgspecError, ConfigError, TypeError, ValueError, OverflowError) as error:
        raise Refused("bad_settings", f"The settings of study '{name}' cannot be read: {error}.") from error
    _require(same, "its numbers and its texts are not of one study.")
    require_supported(settings)
    return settings
