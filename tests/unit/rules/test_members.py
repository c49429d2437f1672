"""Votes: who is admitted and removed, and what a removal does to the studies."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from konsil.core.rules import (
    Announce,
    Enter,
    Finish,
    Initialise,
    ProposeAdmit,
    ProposeRemove,
    ProposeStudy,
    ProposeStudySettings,
    ProposeSwarmSettings,
    Renew,
    SwarmSettings,
    Tick,
    Vote,
    proposals_at,
)


def outcome(world, number=1):
    return world.state.proposals[number - 1].outcome


def remove(world, name, voters="ac"):
    world.do(voters[0], ProposeRemove(name))
    number = len(world.state.proposals)
    for voter in voters[1:]:
        world.do(voter, Vote(number, yes=True))


def test_a_member_is_admitted_by_more_than_half(swarm):
    world = swarm()
    world.do("a", ProposeAdmit(world.record("e")))
    world.do("b", Vote(1, yes=True))
    assert outcome(world) == "open"
    world.do("c", Vote(1, yes=True))
    assert outcome(world) == "passed"
    world.do("e", Announce(("e.example:1",)))
    assert world.state.members["e"].record.addresses == ("e.example:1",)


def test_half_of_the_votes_against_are_enough_to_fail(swarm):
    world = swarm()
    world.do("a", ProposeAdmit(world.record("e")))
    world.do("b", Vote(1, yes=False))
    world.do("c", Vote(1, yes=False))
    assert outcome(world) == "failed"
    assert "e" not in world.state.members


def test_a_vote_expires(swarm):
    world = swarm()
    world.do("a", ProposeAdmit(world.record("e")))
    assert [p.outcome for p in proposals_at(world.state, world.now_s + 3599)] == ["open"]
    assert [p.outcome for p in proposals_at(world.state, world.now_s + 3600)] == ["expired"]
    assert world.refused("b", Vote(1, yes=True), after_s=3600).fields == {"outcome": "expired"}
    world.do("b", ProposeSwarmSettings(SwarmSettings(proposal_s=60)))
    assert outcome(world) == "expired"


def test_the_swarms_settings_change_by_vote(swarm):
    world = swarm()
    world.do("a", ProposeSwarmSettings(SwarmSettings(proposal_s=60)))
    for name in "bc":
        world.do(name, Vote(1, yes=True))
    assert world.state.settings.proposal_s == 60


def test_a_removed_member_is_shut_out_and_its_votes_no_longer_count(swarm):
    world = swarm()
    world.do("d", ProposeAdmit(world.record("e")))
    remove(world, "d")
    assert world.refused("d", Tick("aml")).code == "not_a_member"
    world.do("a", Vote(1, yes=True))
    assert outcome(world) == "open"
    world.do("b", Vote(1, yes=True))
    assert outcome(world) == "passed"


def test_a_removal_may_decide_another_vote(swarm):
    world = swarm()
    world.do("a", ProposeAdmit(world.record("e")))
    world.do("c", Vote(1, yes=True))
    remove(world, "d")
    assert outcome(world, 1) == "passed"  # 2 of 3


def test_of_two_votes_to_admit_one_name_the_second_fails(swarm):
    world = swarm()
    world.do("a", ProposeAdmit(world.record("e")))
    world.do("b", ProposeAdmit(replace(world.record("e"), ledger_key=world.digest("other"))))
    for number, voters in ((1, "bc"), (2, "ac")):
        for name in voters:
            world.do(name, Vote(number, yes=True))
    assert (outcome(world, 1), outcome(world, 2)) == ("passed", "failed")
    assert world.state.members["e"].record == world.record("e")


def test_a_member_that_is_admitted_again_goes_on_with_its_sequence(swarm):
    world = swarm()
    world.do("d", Announce(()))
    remove(world, "d")
    world.do("a", ProposeAdmit(world.record("d")))
    world.do("b", Vote(2, yes=True))
    assert world.state.members["d"].active
    assert world.state.members["d"].sequence == 1


def test_a_removed_member_leaves_a_collecting_round(swarm):
    world = swarm().start().commit("abc")
    remove(world, "d")
    assert world.open.phase == "merging"
    assert world.open.absent == {"d": "removed"}
    assert "d" not in world.study.participants


def test_a_removed_members_update_is_dropped_while_the_round_collects(swarm):
    world = swarm().start().commit("d")
    remove(world, "d")
    assert not world.open.commits
    world.commit("abc").publish().accept()
    assert world.study.history[0].absent == {"d": "removed"}


def test_a_removed_member_leaves_the_roster_and_all_is_dealt_anew(swarm):
    world = swarm().start().commit().publish()
    remove(world, "d")
    assert (world.open.attempt, world.open.roster) == (2, ("a", "b", "c"))
    assert not any(part.digest for part in world.open.parts)


def test_a_study_whose_proposer_is_removed_before_it_gave_the_model_fails(swarm):
    world = swarm()
    world.do("b", ProposeStudy(world.settings))
    remove(world, "b")
    assert world.study.phase == "failed"
    assert "removed before it gave the initial parameters" in world.study.ended


def test_only_participants_vote_on_a_studys_settings(swarm):
    world = swarm(members=("a", "b", "c"))
    world.do("a", ProposeStudy(world.settings))
    world.do("a", ProposeStudySettings(replace(world.settings, rounds=7)))
    assert world.study.settings.rounds == 7  # its only participant has agreed
    assert world.study.settings_digest
    assert world.refused("d", Vote(1, yes=True)).code == "proposal_closed"


@pytest.mark.parametrize("fixed", [{"members": ("a", "b", "c")}, {"min_members": 4}, {"local": ("x",)}])
def test_what_makes_up_a_study_is_never_changed(swarm, fixed):
    world = swarm().start()
    change = ProposeStudySettings(replace(world.settings, **fixed))
    assert world.refused("a", change).code == "fixed_setting"


def test_a_struck_member_stays_struck_after_removal_and_admission(swarm):
    world = swarm().start()
    struck = replace(world.study.participants["d"], struck=True)
    participants = world.study.participants | {"d": struck}
    study = replace(world.study, participants=participants)
    world.state = replace(world.state, studies={"aml": study})
    remove(world, "d")
    world.do("a", ProposeAdmit(world.record("d")))
    world.do("b", Vote(2, yes=True))
    assert world.refused("d", Enter("aml")).code == "struck"


def test_who_decides_alone_does_not_decide_without_end(swarm):
    """In a study that nobody else has agreed to, a change of its settings has passed when it is proposed."""
    world = swarm()
    world.do("a", ProposeStudy(world.settings))
    for number in range(64):
        world.do("a", ProposeStudySettings(replace(world.settings, description=f"{number}")))
    assert {proposal.outcome for proposal in world.state.proposals} == {"passed"}
    assert world.refused("a", ProposeAdmit(world.record("e"))).code == "too_many_proposals"
    world.do("b", ProposeAdmit(world.record("e")))  # the others are not held up
    world.do("a", ProposeAdmit(world.record("f")), after_s=3600)


def test_studies_that_their_proposer_ends_by_itself_do_not_pile_up(swarm):
    world = swarm(min_members=1, quorum=1)
    for number in range(64):
        name = f"study-{number}"
        world.do("a", ProposeStudy(replace(world.settings, name=name)))
        world.do("a", Initialise(name, world.digest("schema"), world.digest("round 0"), 100))
        world.do("a", Enter(name))
        world.do("a", Finish(name))
        assert world.state.studies[name].phase == "finished"
    again = ProposeStudy(replace(world.settings, name="another"))
    assert world.refused("a", again).code == "too_many_studies"
    world.do("b", again)
    world.do("a", ProposeStudy(replace(world.settings, name="tomorrow")), after_s=24 * 3600)


def test_studies_that_nobody_took_up_shut_their_proposer_out_for_a_month_only(swarm):
    world = swarm()
    for number in range(64):
        world.do("a", ProposeStudy(replace(world.settings, name=f"study-{number}")))
    another = ProposeStudy(replace(world.settings, name="another"))
    assert world.refused("a", another, after_s=24 * 3600).code == "too_many_studies"
    world.do("a", another, after_s=29 * 24 * 3600)


def test_a_member_puts_another_trust_bundle_on_record_and_stays_who_it_is(swarm):
    world = swarm().start().commit("ab")
    before, study = world.state.members["b"].record, world.study
    world.do("b", Renew(swarm.digest("new bundle"), swarm.digest("new card")), after_s=5)
    member = world.state.members["b"]
    assert member.record == replace(before, bundle=swarm.digest("new bundle"), card=swarm.digest("new card"))
    assert (member.renewed_s, member.renewals, member.active) == (world.now_s, 1, True)
    assert world.study == study, "no round is touched"


def test_a_renewal_that_is_said_twice_counts_once(swarm):
    world = swarm()
    for _ in range(20):
        world.do("b", Renew(swarm.digest("new bundle"), swarm.digest("new card")), after_s=1)
    assert world.state.members["b"].renewals == 1


def test_renewals_are_bounded_and_the_bound_is_given_back_with_time(swarm):
    world = swarm()
    calls = [Renew(swarm.digest(f"bundle {number}"), swarm.digest(f"card {number}")) for number in range(20)]
    for call in calls[:16]:
        world.do("b", call)
    assert world.refused("b", calls[16], after_s=599).code == "too_many_renewals"
    world.do("b", calls[16], after_s=1)
    assert world.refused("b", calls[17]).code == "too_many_renewals"
    world.do("c", calls[18])  # others have a bound of their own
    world.do("b", calls[17], after_s=100_000)
    assert world.state.members["b"].renewals == 1


@pytest.mark.parametrize("call", [Renew("no digest", "a" * 64), Renew("a" * 64, "no digest"), Renew("", "")])
def test_a_renewal_names_digests(swarm, call):
    assert swarm().refused("b", call).code == "bad_digest"


def test_a_member_that_was_removed_renews_nothing_and_is_admitted_with_its_own_card(swarm):
    world = swarm()
    world.do("b", Renew(swarm.digest("new bundle"), swarm.digest("new card")))
    remove(world, "b", "ac")
    assert world.refused("b", Renew(swarm.digest("x"), swarm.digest("y"))).code == "not_a_member"
    world.do("a", ProposeAdmit(world.record("b")))
    world.do("c", Vote(2, yes=True))
    assert world.state.members["b"].record == world.record("b")
    assert world.state.members["b"].renewals == 0
