"""How stories about the contract begin: a study at a point of its first round, in the rules and in the contract."""

from __future__ import annotations

from contract_cast import GENESIS as WITH_A_WITNESS
from contract_cast import STUDIES, digest
from contract_twin import Twin
from msgspec.structs import replace

from konsil.core.rules import (
    Accept,
    Agree,
    Commit,
    Enter,
    Genesis,
    Initialise,
    ProposeStudy,
    Publish,
    StudySettings,
    settings_digest,
)

AML, ALONE, MIXED, OWN, OUTER = STUDIES
GENESIS = replace(WITH_A_WITNESS, members=WITH_A_WITNESS.members[:5])
FIVE = ("aachen", "bonn", "celle", "dresden", "erlangen")


def begun(settings: StudySettings = AML, members: tuple[str, ...] = FIVE, genesis: Genesis = GENESIS) -> Twin:
    """Both, with a study whose round 1 is open."""
    twin = Twin(genesis)
    assert twin.do(members[0], ProposeStudy(settings)) == ""
    for name in members[1:]:
        assert twin.do(name, Agree(settings.name, settings_digest(settings))) == ""
    assert twin.do(members[0], Initialise(settings.name, digest("schema"), digest("initial"), 80 << 20)) == ""
    for name in members:
        assert twin.do(name, Enter(settings.name)) == ""
    return twin


def merging(
    settings: StudySettings = AML, members: tuple[str, ...] = FIVE, genesis: Genesis = GENESIS
) -> Twin:
    """As ``begun``, and all have committed."""
    twin = begun(settings, members, genesis)
    commit(twin, settings.name, members)
    return twin


def commit(twin: Twin, name: str, members: tuple[str, ...]) -> None:
    study = twin.state.studies[name]
    start = digest("start") if study.settings.outer is not None else ""
    for member in members:
        if twin.state.studies[name].open.phase == "collecting":
            call = Commit(
                name, study.open.number, study.accepted, digest((member, study.open.number)), 5, start
            )
            assert twin.do(member, call) == ""


def publish(twin: Twin, name: str, gram: str = "") -> None:
    current = twin.state.studies[name].open
    for index, part in enumerate(current.parts):
        call = Publish(name, current.number, current.attempt, index, digest(("part", index)), gram)
        assert twin.do(part.leader, call) == ""


def accept(twin: Twin, name: str) -> None:
    current = twin.state.studies[name].open
    for member in current.roster:
        assert twin.do(member, Accept(name, current.number, current.attempt, current.digest)) == ""
