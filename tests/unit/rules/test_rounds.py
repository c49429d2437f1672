"""A round's stories: it waits, merges, loses members, is disputed, and is accepted."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace

from konsil.core.digest import root_from
from konsil.core.rules import (
    Accept,
    Agree,
    Alive,
    Dispute,
    Enter,
    Finish,
    Initialise,
    Leave,
    Plateau,
    ProposeAdmit,
    ProposeStudySettings,
    Publish,
    Report,
    Score,
    Tick,
    Verdict,
    Vote,
    deal,
    merge_time_s,
    missing,
    part_count,
)


def test_a_round_is_accepted_once_all_hold_its_merge(swarm):
    world = swarm().start().commit().publish()
    parts = world.open.parts
    world.accept("abc")
    assert not world.study.history
    world.accept("d")
    record = world.study.history[0]
    assert record.digest == root_from(world.study.schema, [part.digest for part in parts])
    assert list(record.roster) == ["a", "b", "c", "d"]
    assert world.open.number == 2
    assert world.open.base == record.digest


def test_a_majority_that_holds_the_merge_is_enough_once_the_time_is_up(swarm):
    world = swarm().start().commit().publish().accept("abc").tick("b")
    assert world.study.history[0].accepts == ("a", "b", "c")


def test_saying_late_that_one_holds_an_accepted_merge_changes_nothing(swarm):
    world = swarm().start().commit().publish()
    held = world.held()
    world.accept("abc").tick()
    before = world.study
    world.do("d", held)
    assert world.study == before


def test_half_of_the_roster_is_not_enough_when_the_time_is_up(swarm):
    world = swarm().start().commit().publish().accept("ab").tick()
    assert not world.study.history
    assert world.open.attempt == 1
    world.do("c", world.held())  # after the time is up, the majority's last voice decides
    assert len(world.study.history) == 1


def test_the_time_to_merge_doubles_up_to_the_patience(swarm):
    study = swarm(merge_s=30, patience_s=600).start().study
    assert [merge_time_s(study, attempt) for attempt in range(1, 8)] == [30, 60, 120, 240, 480, 600, 600]
    study = swarm(merge_s=900, patience_s=600).start().study
    assert {merge_time_s(study, attempt) for attempt in range(1, 8)} == {900}  # who asks for it has it


def test_a_merge_that_no_majority_can_pull_is_begun_again(swarm):
    world = swarm().start().commit().publish().accept("ab").tick().tick()
    assert world.open.attempt == 2
    assert world.open.roster == ("a", "b", "c", "d")
    assert not any(part.digest for part in world.open.parts)


def test_members_that_do_nothing_do_not_keep_the_others_from_a_majority(swarm):
    world = swarm().start().commit().publish(but="cd").tick().publish()
    assert {part.leader for part in world.open.parts} == {"a", "b"}
    world.accept("ab").tick().tick()
    assert world.open.roster == ("a", "b")
    world.publish().accept()
    assert world.study.history[0].absent == {"c": "silent", "d": "silent"}


def test_members_that_have_done_nothing_yet_are_not_thrown_out_at_once(swarm):
    world = swarm(parts="leader").start().commit().publish().tick().tick()
    assert (world.open.attempt, world.open.roster) == (2, ("a", "b", "c", "d"))
    assert all(participant.present for participant in world.study.participants.values())
    for _ in range(2):  # but in the third attempt they are gone
        world.publish().tick().tick()
    assert len(world.open.commits) == 1


def test_every_member_leads_a_part_and_the_deal_changes_with_the_attempt():
    deals = {deal("0" * 64, 1, attempt, "abcd", 4) for attempt in range(30)}
    assert all(sorted(dealt) == list("abcd") for dealt in deals)
    assert len(deals) > 10


def test_each_order_of_leaders_is_dealt_about_equally_often():
    counts = dict.fromkeys(itertools.permutations("abc"), 0)
    for number in range(1200):
        counts[deal("0" * 64, number, 1, "abc", 3)] += 1
    assert min(counts.values()) > 150
    assert max(counts.values()) < 250


@pytest.mark.parametrize(
    ("parts", "data_bytes", "expected"),
    [("shared", 100 << 20, 4), ("shared", (4 << 20) + 1, 2), ("shared", 1, 1), ("leader", 100 << 20, 1)],
)
def test_a_merge_has_a_part_for_each_leader_but_none_without_a_chunk(swarm, parts, data_bytes, expected):
    assert part_count(swarm(parts=parts).settings, 4, data_bytes) == expected


# --- waiting -------------------------------------------------------------------------------------


def test_a_silent_member_is_waited_for_no_longer_than_the_silence(swarm):
    world = swarm().start().commit("abc")
    assert missing(world.open) == ("d",)
    assert world.open.deadline_s == world.now_s + 60
    world.tick()
    assert world.open.roster == ("a", "b", "c")
    world.publish().accept()
    assert world.study.history[0].absent == {"d": "silent"}


def test_the_next_round_does_not_wait_for_the_silent_until_they_are_back(swarm):
    world = swarm().start().commit("abc").tick().publish().accept()
    assert set(world.open.expected) == {"a", "b", "c"}
    assert world.open.absent == {"d": "silent"}
    world.do("d", Enter("aml"))
    assert set(world.open.expected) == {"a", "b", "c", "d"}


def collecting_again(swarm, after_s, **settings):
    """Attempt 2 collects from so long after the opening: of three one has lost its update."""
    world = swarm(quorum=3, **settings).start("abc").commit("abc")
    world.do("c", Report("aml", 1, 1, ("c",)), after_s)
    assert (world.open.phase, world.open.attempt) == ("collecting", 2)
    world.do("c", Enter("aml"))
    return world


@pytest.mark.parametrize(
    ("after_s", "give_up_s", "most_s"), [(500, 1000, 1100), (900, 1000, 1200), (500, 300, 900)]
)
def test_who_is_let_in_by_a_later_attempt_has_the_patience_that_the_others_had(
    swarm, after_s, give_up_s, most_s
):
    world = collecting_again(swarm, after_s, give_up_s=give_up_s)
    opened_s = world.open.opened_s
    while world.now_s + 50 < opened_s + most_s:
        world.do("c", Alive("aml", 1, 0.5), 50)
        assert missing(world.open) == ("c",)
    world.do("c", Alive("aml", 1, 0.5), 49)
    assert world.open.expected["c"] == opened_s + most_s


def test_a_member_that_is_alive_is_waited_for_up_to_the_patience(swarm):
    world = swarm().start().commit("abc")
    opened_s = world.now_s
    for _ in range(20):
        world.do("d", Alive("aml", 1, 0.5), after_s=30)
        if world.now_s >= opened_s + 600:
            break
    assert world.open.deadline_s == opened_s + 600
    world.tick()
    assert world.open.absent == {"d": "too slow"}
    assert world.study.participants["d"].present


def test_a_member_whose_time_was_up_is_waited_for_again_when_it_is_alive(swarm):
    world = swarm().start("abcd").commit("a")
    world.tick("a")
    assert not world.open.expected.keys() & {"b", "c", "d"}
    world.do("c", Alive("aml", 1))
    assert missing(world.open) == ("c",)
    world.do("c", world.update("c"))
    assert world.open.roster == ("a", "c")


def test_a_late_update_is_welcome_while_the_round_collects(swarm):
    world = swarm().start().commit("a").tick().commit("b")
    assert world.open.roster == ("a", "b")
    assert world.study.participants["b"].present


def test_the_same_update_again_changes_nothing_but_the_sequence(swarm):
    world = swarm().start().commit("a")
    before = world.study
    world.commit("a")
    assert world.study == before


def test_a_round_without_a_quorum_waits_and_then_fails_the_study_by_name(swarm):
    world = swarm().start().commit("a")
    opened_s = world.open.opened_s
    for _ in range(100):
        if world.study.open is None:
            break
        world.tick()
    assert world.now_s == opened_s + 600 + 1000
    assert world.study.phase == "failed"
    assert "Missing: b (silent), c (silent), d (silent)." in world.study.ended


def test_a_member_that_leaves_is_not_waited_for(swarm):
    world = swarm().start().commit("abc")
    world.do("d", Leave("aml"))
    assert world.open.phase == "merging"
    assert world.open.absent == {"d": "left"}


# --- joining -------------------------------------------------------------------------------------


def test_round_1_opens_when_enough_have_entered_and_takes_in_who_comes_before_any_update(swarm):
    world = swarm().start("abc")
    assert set(world.open.expected) == {"a", "b", "c"}
    world.do("d", Enter("aml"))
    assert set(world.open.expected) == {"a", "b", "c", "d"}


def test_a_new_member_joins_a_running_study_from_the_next_round_on(swarm):
    world = swarm().start()
    world.commit("a")
    world.do("a", ProposeAdmit(world.record("e")))
    for name in "bc":
        world.do(name, Vote(1, yes=True))
    world.do("e", Agree("aml", world.study.settings_digest))
    world.do("e", Enter("aml"))
    assert "e" not in world.open.expected
    world.commit("bcd").publish().accept()
    assert world.study.history[0].absent == {"e": "joined later"}
    assert "e" in world.open.expected


def test_a_newcomer_is_waited_for_at_once_while_nobody_has_committed(swarm):
    world = swarm().start("abc")
    world.do("a", ProposeAdmit(world.record("e")))
    for name in "bc":
        world.do(name, Vote(1, yes=True))
    world.do("e", Agree("aml", world.study.settings_digest))
    world.do("e", Enter("aml"))
    assert missing(world.open) == ("a", "b", "c", "e")


def test_an_early_newcomer_may_commit_to_the_open_round(swarm):
    world = swarm().start()
    world.commit("a")
    world.do("a", ProposeAdmit(world.record("e")))
    for name in "bc":
        world.do(name, Vote(1, yes=True))
    world.do("e", Agree("aml", world.study.settings_digest))
    world.do("e", Enter("aml"))
    world.commit("ebcd")
    assert world.open.roster == ("a", "b", "c", "d", "e")


# --- merging -------------------------------------------------------------------------------------


def test_a_silent_leader_loses_its_part_and_the_others_keep_theirs(swarm):
    world = swarm().start().commit().publish(but="c")
    parts = world.open.parts
    at = world.part_of("c")
    world.tick()
    assert world.open.attempt == 2
    assert world.open.roster == ("a", "b", "c", "d")
    assert world.open.parts[at].leader != "c"
    assert [p for i, p in enumerate(world.open.parts) if i != at] == [
        p for i, p in enumerate(parts) if i != at
    ]
    world.publish().accept("abd").tick()
    assert world.study.history[0].attempt == 2


def test_each_attempt_gives_the_leaders_twice_the_time(swarm):
    world = swarm().start().commit()
    waits = []
    for _ in range(3):
        waits.append(world.open.deadline_s - world.now_s)
        world.tick()
    assert waits == [30, 60, 120]


def test_a_slow_merge_gives_the_next_ones_more_time(swarm):
    world = swarm().start().commit().publish()
    world.now_s += 20
    world.accept().commit()
    assert world.open.deadline_s - world.now_s == 80


def test_members_that_hold_a_round_up_to_its_deadline_do_not_lengthen_the_next(swarm):
    world = swarm().start().commit().publish().accept("abc").tick().commit()
    assert world.open.deadline_s - world.now_s == 30


def test_a_member_that_a_majority_cannot_reach_leaves_the_roster_at_once(swarm):
    world = swarm().start().commit().publish()
    world.do("a", Report("aml", 1, 1, ("d",)))
    assert world.open.attempt == 1
    world.do("b", Report("aml", 1, 1, ("d",)))
    assert world.open.attempt == 2
    assert world.open.roster == ("a", "b", "c")
    assert not any(part.digest for part in world.open.parts)
    world.publish().accept()
    assert world.study.history[0].absent == {"d": "unreachable"}
    assert set(world.open.expected) == {"a", "b", "c"}


def test_a_member_that_says_that_its_own_update_is_gone_leaves_the_roster_at_once(swarm):
    world = swarm().start().commit().publish()
    world.do("d", Report("aml", 1, 1, ("d",)))
    assert (world.open.attempt, world.open.roster) == (2, ("a", "b", "c"))
    world.publish().accept()
    assert world.study.history[0].absent == {"d": "unreachable"}


def test_a_member_that_takes_itself_off_the_roster_takes_nobody_with_it(swarm):
    world = swarm().start().commit()
    world.do("d", Report("aml", 1, 1, ("a", "b", "d")))
    assert world.open.roster == ("a", "b", "c")
    assert not world.study.participants["d"].present


def test_where_too_few_are_left_who_has_lost_its_update_may_commit_another(swarm):
    world = swarm(quorum=3).start("abc").commit("abc")
    world.do("c", Report("aml", 1, 1, ("c",)))
    assert (world.open.phase, set(world.open.commits)) == ("collecting", {"a", "b"})
    world.do("c", Enter("aml"))
    world.do("c", world.update("c", digest=world.digest("another")))
    assert world.open.commits["c"].digest == world.digest("another")
    world.publish().accept()
    assert set(world.study.history[0].roster) == set("abc")


def test_until_the_roster_is_fixed_another_update_may_take_a_lost_ones_place(swarm):
    world = swarm().start().commit("ab")
    other = world.update("a", digest=world.digest("another"), examples=20)
    world.do("a", other)
    assert world.open.commits["a"].digest == other.digest
    world.commit("cd")
    assert world.open.phase == "merging"
    assert world.refused("a", world.update("a")).code == "second_commit"
    world.publish().accept()
    assert world.study.history[0].roster["a"].examples == 20


def test_in_a_roster_of_two_the_other_may_commit_again(swarm):
    world = swarm("abc", min_members=2, quorum=2).start().commit("ab")
    world.tick()
    assert world.open.roster == ("a", "b")
    world.do("a", Report("aml", 1, 1, ("b",)))
    assert world.open.phase == "collecting"
    assert world.open.attempt == 2
    assert set(world.open.commits) == {"a"}
    assert world.open.expected["b"] == world.now_s + min(world.settings.merge_s, world.settings.silence_s)
    world.do("c", Enter("aml"))
    world.do("c", world.update("c"))
    assert world.open.phase == "collecting"  # "b" is still waited for
    world.do("b", world.update("b"))
    assert world.open.roster == ("a", "b", "c")


def test_who_is_accused_of_a_wrong_merge_does_not_slip_away(swarm):
    world = swarm("abcde", quorum=2).start("abcde").commit().publish()
    leader = world.open.parts[0].leader
    first, second, third = [name for name in world.open.roster if name != leader][:3]
    world.do(first, Dispute("aml", 1, 1, 0, 0))
    refused = world.refused(leader, Report("aml", 1, 1, (leader,)))
    assert refused.code == "under_dispute"
    assert refused.fields["wait_s"] == world.open.dispute.closes_s - world.now_s
    for name in (second, third):
        world.do(name, Verdict("aml", 1, 1, 0, 0, wrong=True))
    assert world.study.participants[leader].struck


def test_with_a_quorum_of_one_a_roster_of_two_goes_on_without_the_other_in_the_end(swarm):
    world = swarm("abc", min_members=2, quorum=1).start().commit("ab")
    world.tick()
    for attempt in (1, 2):
        world.do("a", Report("aml", 1, attempt, ("b",)))
        assert world.open.phase == "collecting"
        world.do("b", world.update("b"))
        assert world.open.roster == ("a", "b")
    world.do("a", Report("aml", 1, 3, ("b",)))
    assert world.open.roster == ("a",)
    assert world.open.absent["b"] == "unreachable"


def test_in_a_roster_of_two_who_is_gone_is_waited_for_a_moment_only(swarm):
    world = swarm("abc", min_members=2, quorum=2).start().commit("ab")
    world.tick()
    world.do("a", Report("aml", 1, 1, ("b",)))
    world.do("c", Enter("aml"))
    world.do("c", world.update("c"))
    world.tick()
    assert world.open.roster == ("a", "c")
    assert world.open.absent["b"] == "silent"


def test_a_report_can_be_taken_back(swarm):
    world = swarm().start().commit()
    world.do("a", Report("aml", 1, 1, ("d",)))
    world.do("a", Report("aml", 1, 1, ()))
    world.do("b", Report("aml", 1, 1, ("d",)))
    assert world.open.roster == ("a", "b", "c", "d")


def test_reports_of_who_left_the_roster_no_longer_count(swarm):
    world = swarm().start().commit()
    world.do("d", Report("aml", 1, 1, ("a",)))
    for name in "ab":
        world.do(name, Report("aml", 1, 1, ("d",)))
    assert world.open.reports == {}
    world.do("b", Report("aml", 1, 2, ("a",)))
    assert world.open.roster == ("a", "b", "c")


def test_reports_outlast_an_attempt_that_keeps_the_roster(swarm):
    world = swarm().start().commit().publish(but="d")
    world.do("a", Report("aml", 1, 1, ("d",)))
    world.tick()
    world.do("b", Report("aml", 1, 2, ("d",)))
    assert world.open.roster == ("a", "b", "c")


def test_reports_do_not_outlast_a_round_that_collects_again(swarm):
    world = swarm().start().commit()
    world.do("a", Report("aml", 1, 1, ("d",)))
    world.tick()  # nobody has published: whoever was cut off then may be well now
    assert world.open.reports == {}
    world.do("b", Report("aml", 1, 2, ("d",)))
    assert world.open.roster == ("a", "b", "c", "d")


def test_below_the_quorum_the_round_collects_again_and_goes_on(swarm):
    world = swarm(quorum=3).start("abc").commit("abc")
    for name in "ab":
        world.do(name, Report("aml", 1, 1, ("c",)))
    assert world.open.phase == "collecting"
    assert set(world.open.commits) == {"a", "b"}
    world.do("c", Enter("aml"))
    assert missing(world.open) == ("c",)
    world.commit("c")
    assert world.open.roster == ("a", "b", "c")
    world.publish().accept()
    assert len(world.study.history) == 1


def test_parts_of_a_minority_that_mixed_otherwise_are_dealt_to_others(swarm):
    world = swarm(rule="geometric_median").start().commit()
    odd = world.open.parts[0].leader
    for index, part in enumerate(world.open.parts):
        gram = world.digest("another" if part.leader == odd else "gram")
        world.do(part.leader, world.part(index, gram=gram))
    assert world.open.attempt == 2
    assert world.open.digest == ""
    assert world.open.parts[0].leader != odd
    world.do(world.open.parts[0].leader, world.part(0, gram=world.digest("gram")))
    assert world.open.digest


def _mixed(world, gram=""):
    """All leaders publish, each with a matrix of its own unless one is given."""
    for index, part in enumerate(world.open.parts):
        world.do(part.leader, world.part(index, gram=world.digest(gram or part.leader)))


def test_leaders_who_mixed_otherwise_without_a_majority_give_way_to_others(swarm):
    world = swarm(rule="geometric_median")
    world.propose()
    world.do("a", Initialise("aml", world.digest("schema"), world.digest("round 0"), 8 << 20))
    for name in "abcd":
        world.do(name, Enter("aml"))
    world.commit()
    first = {part.leader for part in world.open.parts}
    assert len(first) == 2
    _mixed(world)
    assert {part.leader for part in world.open.parts}.isdisjoint(first)
    _mixed(world, "gram")
    assert world.open.digest


def test_where_all_leaders_mixed_otherwise_the_round_waits_and_collects_again(swarm):
    world = swarm(rule="geometric_median", min_members=2).start("ab").commit("ab")
    _mixed(world)
    assert (world.open.attempt, world.open.phase, world.open.digest) == (1, "merging", "")
    world.do("c", Enter("aml"))
    world.tick()
    assert (world.open.attempt, world.open.phase) == (2, "collecting")
    assert missing(world.open) == ("c",)
    world.commit("c")
    assert world.open.roster == ("a", "b", "c")


def test_where_all_leaders_are_silent_others_are_let_in(swarm):
    world = swarm(min_members=2).start("ab").commit("ab")
    world.do("c", Enter("aml"))
    world.tick()
    assert (world.open.attempt, world.open.phase) == (2, "collecting")
    assert missing(world.open) == ("c",)
    assert set(world.open.commits) == {"a", "b"}
    world.commit("c").publish().accept()
    assert set(world.study.history[0].roster) == set("abc")


def test_a_round_that_collects_again_and_again_takes_its_time(swarm):
    world = swarm(min_members=2).start("ab").commit("ab")
    waits = []
    for _ in range(6):
        began_s = world.now_s
        world.do("a", Report("aml", 1, world.open.attempt, ("b",)))
        world.do("b", Enter("aml"))  # it is well, and only a does not reach it
        world.commit("b")
        if world.open.phase == "collecting":
            world.tick()
        assert world.open.phase == "merging"
        waits.append(world.now_s - began_s)
    assert waits == [0, 0, 30, 60, 120, 240]


def test_a_rule_that_mixes_needs_the_digest_of_its_gram_matrix(swarm):
    world = swarm(rule="geometric_median").start().commit()
    refusal = world.refused(world.open.parts[0].leader, world.part(0))
    assert refusal.code == "bad_digest"


def test_of_a_rule_from_a_file_no_matrix_is_not_a_matrix_that_all_agree_on(swarm):
    world = swarm(rule="our-own", rule_digest="d" * 64, min_members=2).start("abc").commit("abc")
    gram = {"a": world.digest("gram"), "b": "", "c": world.digest("third")}
    for index, part in enumerate(world.open.parts):
        world.do(part.leader, world.part(index, gram=gram[part.leader]))
    assert world.open.digest == ""
    assert world.open.silent == ()  # nobody is to blame: all wait for the deadline


# --- disputes ------------------------------------------------------------------------------------


def test_a_majority_of_a_roster_that_is_none_of_the_study_strikes_nobody_for_good(swarm):
    world = swarm(quorum=3, names="abcde").start("abcde")
    world.commit("cde").tick()  # a and b are away, d and e are not honest
    world.publish()
    found = _dispute(world, by="d", leader="c")
    world.do("e", found)
    record = world.open.disputes[-1]
    assert record.outcome == "wrong"
    assert not world.study.participants["c"].struck
    assert world.open.absent["c"] == "disputed"
    world.do("c", Enter("aml"))  # it comes back, and with it a and b
    assert world.study.participants["c"].present


def _dispute(world, by="a", leader="b"):
    part = world.part_of(leader)
    chunk = part * 25 // len(world.open.parts)
    world.do(by, Dispute("aml", world.open.number, world.open.attempt, part, chunk))
    return Verdict("aml", world.open.number, world.open.attempt, part, chunk, wrong=True)


def test_a_lying_leader_is_struck_and_the_round_merges_again(swarm):
    world = swarm().start().commit().publish()
    wrong = _dispute(world)
    world.do("c", wrong)
    assert not world.study.participants["b"].struck
    world.do("d", wrong)
    assert world.study.participants["b"].struck
    assert (world.open.attempt, world.open.roster) == (2, ("a", "c", "d"))
    world.publish().accept()
    record = world.study.history[0]
    assert record.struck == ("b",)
    assert record.absent == {"b": "struck"}
    assert [(d.by, d.leader, d.outcome) for d in record.disputes] == [("a", "b", "wrong")]
    assert set(world.open.expected) == {"a", "c", "d"}


def test_a_liar_cannot_get_an_honest_leader_struck(swarm):
    world = swarm().start().commit().publish()
    wrong = _dispute(world, by="d", leader="b")
    for name in "abc":
        world.do(name, replace(wrong, wrong=False))
    assert not world.study.participants["b"].struck
    assert world.open.disputes[0].outcome == "right"
    world.accept()
    assert len(world.study.history) == 1


def test_a_round_is_not_accepted_while_a_dispute_is_open(swarm):
    world = swarm().start().commit().publish().accept("abc")
    _dispute(world)
    world.accept("d")
    assert not world.study.history
    world.tick()
    assert world.study.history[0].disputes[0].outcome == "undecided"


def test_a_dispute_that_a_majority_does_not_decide_is_closed_when_its_time_is_up(swarm):
    world = swarm().start().commit().publish()
    wrong = _dispute(world)
    world.do("c", wrong)
    world.tick()
    assert world.open.dispute is None
    assert world.open.disputes[0].outcome == "undecided"
    assert not world.study.participants["b"].struck


def test_half_of_the_roster_cannot_strike_a_leader(swarm):
    world = swarm().start().commit().publish()
    wrong = _dispute(world)
    world.do("c", wrong)
    for name in "bd":
        world.do(name, replace(wrong, wrong=False))
    assert world.open.disputes[0].outcome == "undecided"
    assert not world.study.participants["b"].struck


def test_a_struck_leader_below_the_quorum_lets_the_round_collect_again(swarm):
    world = swarm(quorum=3).start("abc").commit("abc").publish()
    wrong = _dispute(world)
    world.do("c", wrong)
    assert world.open.phase == "collecting"
    world.do("d", Enter("aml"))
    world.commit("d")
    world.publish().accept()
    assert list(world.study.history[0].roster) == ["a", "c", "d"]


# --- settings and the end ------------------------------------------------------------------------


def test_settings_that_were_voted_for_hold_from_the_next_round_on(swarm):
    world = swarm().start()
    changed = replace(world.settings, silence_s=100, rounds=2)
    world.do("a", ProposeStudySettings(changed))
    for name in "bc":
        world.do(name, Vote(1, yes=True))
    assert world.study.settings == world.settings
    world.round()
    assert world.study.settings == changed
    assert world.open.deadline_s == world.now_s + 100
    world.round()
    assert world.study.ended == "All 2 rounds are done."


def test_a_study_ends_after_its_last_round(swarm):
    world = swarm().start().round().round().round()
    assert (world.study.phase, world.study.open) == ("finished", None)
    assert len(world.study.history) == 3


def test_a_study_ends_when_its_minutes_are_over(swarm):
    world = swarm(stop_minutes=1).start().commit().publish()
    world.now_s += 60
    world.accept()
    assert world.study.ended == "Its 1 minutes are over."


def test_a_study_ends_when_all_have_finished_with_the_last_accepted_merge(swarm):
    world = swarm().start().round()
    digest = world.study.accepted
    for name in "abcd":
        world.do(name, Finish("aml", "snapshot"))
    assert world.study.phase == "finished"
    assert world.study.accepted == digest


def test_a_finished_member_contributes_what_it_chose(swarm):
    world = swarm().start().round()
    world.do("a", Finish("aml", "inactive"))
    world.do("b", Finish("aml", "active"))
    assert missing(world.open) == ("b", "c", "d")
    world.commit("bcd").publish().accept()
    assert world.study.history[1].absent == {"a": "finished"}


def test_a_study_ends_when_those_who_go_on_are_fewer_than_its_quorum(swarm):
    world = swarm(quorum=3).start("abc").commit("abc").publish().accept()
    for name in "ab":
        world.do(name, Finish("aml"))
    assert world.study.phase == "finished"
    assert "fewer than the quorum of 3" in world.study.ended


def _scored_rounds(swarm, values, **plateau):
    world = swarm(rounds=9, plateau=_plateau(**plateau)).start()
    for number, value in enumerate(values, 1):
        world.round()
        if world.study.open is None:
            break
        if value is not None:
            world.do("a", Score("aml", number, 10, value))
            world.do("b", Score("aml", number, 30, value + 0.4))
    return world


def _plateau(**changes):
    return Plateau(**({"rounds": 2, "min_delta": 0.01} | changes))


def test_a_study_stops_on_a_plateau_of_its_scores(swarm):
    world = _scored_rounds(swarm, [1.0, 0.8, 0.795, 0.793, 0.5])
    assert world.study.phase == "finished"
    assert len(world.study.history) == 5
    assert "best before 1, since then 0.993" in world.study.ended


def test_a_study_whose_scores_improve_does_not_stop(swarm):
    world = _scored_rounds(swarm, [1.0, 0.8, 0.7, 0.6, 0.5])
    assert world.study.phase == "running"


def test_a_plateau_whose_metric_never_comes_fails_loudly(swarm):
    world = _scored_rounds(swarm, [1.0, 0.9, 0.8], metric="auc", mode="max")
    assert world.study.phase == "failed"
    assert "brought no score of that name" in world.study.ended


def test_calls_of_an_earlier_attempt_are_told_the_present_one(swarm):
    world = swarm().start().commit().publish(but="c").tick()
    late = world.refused("a", Accept("aml", 1, 1, "0" * 64))
    assert late.fields == {"open_round": 1, "open_attempt": 2}


def test_the_same_part_again_changes_nothing(swarm):
    world = swarm().start().commit()
    said = Publish("aml", 1, 1, 0, world.digest("part 0"))
    world.do(world.open.parts[0].leader, said)
    before = world.study
    world.do(before.open.parts[0].leader, said)
    assert world.study == before


def test_time_never_runs_backwards(swarm):
    world = swarm().start().commit("a")
    then = world.now_s
    world.now_s -= 500
    world.commit("b")
    assert world.state.now_s == then
    world.now_s = then + 60
    world.do("c", Tick("aml"))
    assert world.open.phase == "merging"


def test_in_a_roster_of_two_a_member_may_still_say_that_its_own_update_is_gone(swarm):
    world = swarm("abc", min_members=2, quorum=2).start().commit("ab")
    world.tick()
    world.do("b", Report("aml", 1, 1, ("a", "b")))
    assert (world.open.phase, set(world.open.commits)) == ("collecting", {"a"})
    assert world.open.absent["b"] == "unreachable"
