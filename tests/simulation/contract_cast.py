"""The members and studies that machines and stories about the contract are about."""

from __future__ import annotations

from msgspec.structs import replace

from konsil.core.digest import bytes_digest
from konsil.core.rules import (
    Genesis,
    MemberRecord,
    Outer,
    StudySettings,
    SwarmSettings,
)

FOUNDERS = ("aachen", "bonn", "celle", "dresden", "erlangen")
LATER = ("am-meer", "z", "bonn-2")
EVERYONE = (*FOUNDERS, *LATER, "waidblick")
START_S = 1_000
MB = 1 << 20

BASE = StudySettings(
    name="s",
    min_members=2,
    rounds=4,
    every_steps=1,
    silence_s=60,
    patience_s=300,
    merge_s=30,
    give_up_s=4_000,
)
STUDIES = (
    replace(BASE, name="aml", min_members=3, quorum=3),
    replace(BASE, name="alone", min_members=1, weighting="equal", parts="leader", silence_s=300),
    replace(BASE, name="mixed", min_members=3, rule="geometric_median", members=FOUNDERS[:4], rounds=9),
    replace(BASE, name="own", rule="ours", rule_digest="ab" * 32, stop_minutes=7.5, rounds=50),
    replace(BASE, name="outer", min_members=4, outer=Outer(), quorum=3, patience_s=60, give_up_s=0),
)
NAMES = tuple(each.name for each in STUDIES)


def digest(text: object) -> str:
    """A digest like any other."""
    return bytes_digest(str(text).encode(), "test")


WITNESS = "waidblick"
"""A founding member that takes part in no study."""


def record(name: str, twin_of: str = "") -> MemberRecord:
    """A member's record; with ``twin_of`` it takes another one's identity."""
    keys = [digest(f"{twin_of or name} {kind}") for kind in ("key", "bundle", "card")]
    addresses = (f"{name}.example:7000",)
    return MemberRecord(name, f"spiffe://{name}.example/node", *keys, addresses, name == WITNESS)


GENESIS = Genesis(
    "lungs", "ethereum", "", START_S, tuple(map(record, (*FOUNDERS, WITNESS))), SwarmSettings(proposal_s=100)
)
