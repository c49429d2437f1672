"""One node's part in a study, told as stories: what it wants once it knows this and the ledger says that."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from konsil.core.digest import bytes_digest
from konsil.core.round import (
    Attached,
    Cancel,
    Deliver,
    Detached,
    Done,
    Failed,
    Fetch,
    FinishWanted,
    Found,
    Held,
    Lead,
    Looked,
    NodeRound,
    Offered,
    PartMerged,
    Probe,
    ProgressMade,
    Recompute,
    ScoreReady,
    Submit,
    Suspected,
    UpdateReady,
    failed,
    farewell_of,
    stage,
    step,
    to_keep,
)
from konsil.core.rules import (
    Accept,
    Agree,
    Alive,
    Commit,
    Dispute,
    Enter,
    Finish,
    Genesis,
    Initialise,
    Leave,
    MemberRecord,
    ProposeStudy,
    Publish,
    Report,
    Score,
    StudySettings,
    Tick,
    Verdict,
    apply,
    initial_state,
    settings_digest,
)
from konsil.errors import LedgerUnreachable, Refused

NAMES = "abcd"
BEGIN_S = 1_000_000
MIB = 1024 * 1024
SETTINGS = StudySettings(
    name="aml",
    min_members=3,
    quorum=2,
    rounds=3,
    every_steps=1,
    silence_s=60,
    patience_s=600,
    merge_s=30,
    give_up_s=1000,
)


def digest(text: object) -> str:
    return bytes_digest(str(text).encode(), "test")


def record(name: str) -> MemberRecord:
    return MemberRecord(
        name=name,
        spiffe_id=f"spiffe://{name}.example/node",
        ledger_key=digest(f"key {name}"),
        bundle=digest(f"bundle {name}"),
        card=digest(f"card {name}"),
        addresses=(f"{name}.example:7400",),
    )


class Ledger:
    """The contract's real state, and short words for what the members say."""

    def __init__(self, **settings) -> None:
        self.settings = replace(SETTINGS, **settings)
        self.now_s = BEGIN_S
        self.state = initial_state(
            Genesis("lungs", "local", "a", BEGIN_S, tuple(record(name) for name in NAMES))
        )
        self.say("a", ProposeStudy(self.settings))
        for name in "bcd":
            self.say(name, Agree("aml", settings_digest(self.settings)))

    @property
    def study(self):
        return self.state.studies["aml"]

    @property
    def open(self):
        return self.study.open

    def say(self, name, call) -> None:
        sequence = self.state.members[name].sequence + 1
        self.state = apply(self.state, name, sequence, call, self.now_s)

    def initialise(self):
        self.say("a", Initialise("aml", digest("schema"), digest("model 0"), 100 * MIB))
        return self

    def enter(self, names=NAMES):
        for name in names:
            self.say(name, Enter("aml"))
        return self

    def running(self):
        return self.initialise().enter()

    def commit(self, names=NAMES):
        for name in names:
            update = digest(f"{name} {self.open.number}")
            self.say(name, Commit("aml", self.open.number, self.study.accepted, update, 10))
        return self

    def publish(self, names=NAMES):
        opened = self.open
        for number, part in enumerate(opened.parts):
            if part.leader in names and not part.digest:
                self.say(part.leader, Publish("aml", opened.number, opened.attempt, number, digest(number)))
        return self

    def accept(self, names=NAMES):
        call = Accept("aml", self.open.number, self.open.attempt, self.open.digest)
        for name in names:
            self.say(name, call)
        return self

    def part_of(self, name) -> int:
        return next(number for number, part in enumerate(self.open.parts) if part.leader == name)


class Node:
    """The machine of member 'b' before this ledger. ``started``: every effect, in order."""

    def __init__(self, ledger, me="b", **knows) -> None:
        self.ledger = ledger
        self.state = replace(NodeRound(me=me, study="aml"), **knows)
        self.wake_s = 0.0
        self.started: list = []

    def sees(self, event=None):
        now_s = self.ledger.now_s
        self.state, effects, self.wake_s = step(self.state, event or Looked(), self.ledger.study, now_s)
        self.started += effects
        return effects

    def at(self, now_s, event=None):
        self.ledger.now_s = now_s
        return self.sees(event)


def trains(ledger, me="b", **knows):
    """A node whose training process has the accepted model and trains."""
    accepted = ledger.study.accepted
    known = {"attached": True, "greeted": True, "delivered": accepted, "held": frozenset({accepted})}
    return Node(ledger, me, **(known | knows))


def ready(ledger, me="b", number=None):
    number = number or ledger.open.number
    return UpdateReady(number, ledger.study.accepted, digest(f"{me} {number}"), 10)


def commit_of(update):
    return Submit(Commit("aml", update.round, update.base, update.digest, update.examples))


@pytest.fixture
def ledger():
    return Ledger().running()


# --- the first model -----------------------------------------------------------------------------


def test_the_proposer_offers_its_model_once_and_nobody_else_does():
    ledger = Ledger()
    offer = Offered(digest("schema"), digest("model 0"), 100 * MIB)
    call = Submit(Initialise("aml", offer.schema, offer.digest, offer.data_bytes))
    proposer, other = Node(ledger, "a"), Node(ledger, "b")
    assert proposer.sees(offer) == (call,)
    assert proposer.sees() == ()
    assert other.sees(offer) == ()
    ledger.initialise()
    assert proposer.sees(Done(call)) == ()


def test_a_late_training_process_is_given_the_model_that_is_held_at_once_and_then_enters():
    ledger = Ledger().initialise().enter("acd")
    node = Node(ledger)
    fetch = Fetch(0, digest("model 0"))
    assert node.sees(Attached()) == (fetch,)
    deliver = Deliver(0, digest("model 0"))
    assert node.sees(Held(digest("model 0"))) == (Cancel(fetch), deliver)
    assert node.sees(Done(deliver)) == (Submit(Enter("aml")),)


def test_a_training_process_that_holds_the_model_already_is_greeted_all_the_same(ledger):
    node = Node(ledger, held=frozenset({digest("model 0")}))
    deliver = Deliver(0, digest("model 0"))
    assert node.sees(Attached(holds=digest("model 0"))) == (deliver,)
    assert node.sees(Done(deliver)) == ()


def test_a_node_that_takes_no_part_wants_nothing(ledger):
    assert Node(ledger, "stranger").sees() == ()


# --- committing ----------------------------------------------------------------------------------


def test_an_update_is_committed_once_and_not_again_once_it_is_on_record(ledger):
    node = trains(ledger)
    update = ready(ledger)
    assert node.sees(update) == (commit_of(update),)
    assert node.sees() == ()
    ledger.commit("b")
    assert node.sees(Done(commit_of(update))) == ()
    assert node.sees() == ()
    assert stage(node.state, ledger.study) == "committed"


def test_a_lost_answer_to_a_commit_does_not_commit_again(ledger):
    node = trains(ledger)
    update = ready(ledger)
    node.sees(update)
    ledger.commit("b")  # it was taken, but the answer was lost
    assert node.sees(Failed(commit_of(update))) == ()
    assert node.at(ledger.now_s + 20) == ()


def another(ledger, me="b"):
    return replace(ready(ledger, me), digest=digest(f"{me} trained again"))


def test_of_two_updates_the_one_that_the_ledger_may_have_heard_of_stands(ledger):
    node = trains(ledger)
    first = ready(ledger)
    node.sees(first)  # its commit is on its way
    assert node.sees(another(ledger)) == ()
    assert node.at(ledger.now_s + 1, Failed(commit_of(first))) == ()  # and it may have got there
    node.sees(another(ledger))
    assert node.at(ledger.now_s + 1) == (commit_of(first),)
    ledger.commit("b")
    node.sees(Done(commit_of(first)))
    assert node.sees(another(ledger)) == ()
    assert node.state.update == first


def test_an_update_that_stands_since_before_a_restart_stays_once_it_was_handed_over_again(ledger):
    ledger.commit("b")
    node = trains(ledger)
    assert node.sees(ready(ledger)) == ()
    assert node.sees(another(ledger)) == ()
    assert node.state.update == ready(ledger)


def test_another_update_takes_the_place_of_one_that_the_contract_refused(ledger):
    node = trains(ledger)
    first, other = ready(ledger), another(ledger)
    node.sees(first)
    node.sees(Failed(commit_of(first), refused=True))
    assert node.sees(other) == (commit_of(other),)


def test_only_what_the_contract_refused_is_surely_not_on_the_ledger(ledger):
    commit = commit_of(ready(ledger))
    assert failed(commit, Refused("other_base", "No.")) == Failed(commit, refused=True)
    assert failed(commit, Refused("too_fast", "No.", wait_s=3)) == Failed(commit, 3.0, refused=True)
    assert failed(commit, LedgerUnreachable("No answer.")) == Failed(commit)
    score = Submit(Score("aml", 1, 10, loss=0.5))
    assert failed(score, Refused("too_fast", "No.", wait_s=3)) == Failed(score, 3.0, refused=True)
    assert failed(score, Refused("too_late", "No.")) == Done(score)


def test_a_node_that_has_lost_what_it_committed_commits_another_while_the_round_collects(ledger):
    ledger.commit("b")
    node = trains(ledger)  # it has died meanwhile, and training too
    assert node.sees() == ()
    other = another(ledger)
    assert node.sees(other) == (commit_of(other),)
    ledger.say("b", commit_of(other).call)
    assert node.sees(Done(commit_of(other))) == ()


def test_a_finished_member_that_has_lost_its_last_update_commits_the_merge_in_its_place(ledger):
    ledger.commit("b")
    ledger.say("b", Finish("aml", "active"))
    accepted = ledger.study.accepted
    node = Node(ledger, held=frozenset({accepted}))
    commit = Submit(Commit("aml", 1, accepted, accepted, 1))
    assert node.sees() == (commit,)
    ledger.say("b", commit.call)
    assert node.sees(Done(commit)) == ()


def test_an_update_of_a_round_that_is_over_is_answered_with_the_newest_merge(ledger):
    node = trains(ledger)
    stale = ready(ledger)
    ledger.commit().publish().accept()
    node.sees(Held(ledger.study.accepted))
    assert node.sees(stale) == (Deliver(1, ledger.study.accepted),)


def test_an_update_from_another_base_is_not_committed(ledger):
    node = trains(ledger)
    assert node.sees(UpdateReady(1, digest("another"), digest("b 1"), 10)) == ()


# --- merging -------------------------------------------------------------------------------------


def test_a_leader_merges_its_part_publishes_it_and_does_not_merge_it_again(ledger):
    node = trains(ledger)
    ledger.commit()
    part = ledger.part_of("b")
    lead = Lead(1, 1, part)
    assert node.sees() == (lead,)
    merged = PartMerged(1, 1, part, digest(part), "")
    publish = Submit(Publish("aml", 1, 1, part, digest(part), ""))
    assert node.sees(merged) == (Cancel(lead), publish)
    assert node.sees(Failed(publish)) == ()
    assert node.at(ledger.now_s + 1) == (publish,)
    ledger.publish("b")
    assert node.sees(Done(publish)) == ()


def test_another_attempt_leads_again_and_stops_the_old_one(ledger):
    node = trains(ledger)
    ledger.commit().publish("acd")
    (lead,) = node.sees()
    ledger.now_s = ledger.open.deadline_s
    ledger.say("a", Tick("aml"))
    ledger.publish("acd")  # the part of the silent one is another's now, and published
    assert node.sees()[0] == Cancel(lead)
    other = next(name for name in "acd" if Node(ledger, name).sees())
    assert other != "b"


def test_the_leader_of_a_new_attempt_leads_again_what_failed_before(ledger):
    node = trains(ledger)
    ledger.commit()
    (lead,) = node.sees()
    ledger.now_s = ledger.open.deadline_s
    ledger.say("a", Tick("aml"))  # nobody published: all are silent, so all lead again
    starts = node.sees()
    assert starts[0] == Cancel(lead)
    assert starts[1].attempt == 2
    # What the old attempt still brings is not taken for the new one's.
    assert node.sees(PartMerged(1, 1, lead.part, digest(lead.part), "")) == ()


def test_the_merge_is_fetched_before_it_is_accepted_and_accepted_once(ledger):
    node = trains(ledger)
    ledger.commit().publish()
    candidate = ledger.open.digest
    fetch = Fetch(1, candidate, attempt=1)
    assert node.sees() == (fetch,)
    accept = Submit(Accept("aml", 1, 1, candidate))
    assert node.sees(Held(candidate)) == ()
    assert node.sees(Done(fetch)) == (accept,)
    ledger.accept("b")
    assert node.sees(Done(accept)) == ()


def test_a_merge_that_a_node_holds_already_is_completed_and_audited_all_the_same(ledger):
    node = trains(ledger)
    ledger.commit().publish()
    fetch = Fetch(1, ledger.open.digest, attempt=1)
    # As where a leader publishes the model that the round started from, which everybody holds.
    assert node.sees(Held(ledger.open.digest)) == (fetch,)
    assert node.sees(Failed(fetch)) == ()


def test_an_accepted_merge_is_delivered_to_the_training_process_that_waits(ledger):
    node = trains(ledger)
    update = ready(ledger)
    node.sees(update)
    ledger.commit().publish()
    candidate = ledger.open.digest
    node.sees(Done(commit_of(update)))
    assert not any(isinstance(effect, Deliver) for effect in node.sees(Held(candidate)))
    ledger.accept()
    assert Deliver(1, candidate) in node.sees()
    assert node.sees(Done(Deliver(1, candidate))) == ()
    assert node.state.delivered == candidate


def test_a_merge_with_the_digest_of_the_one_before_is_delivered_all_the_same(ledger):
    ledger.commit().publish().accept()
    node = trains(ledger)
    update, before = ready(ledger), ledger.study.accepted
    assert node.sees(update) == (commit_of(update),)
    node.sees(Done(commit_of(update)))
    ledger.commit().publish().accept()
    assert ledger.study.accepted == before
    assert Deliver(2, before) in node.sees()
    assert node.sees(Done(Deliver(2, before))) == ()


def test_unreachable_members_are_reported_once_and_only_those_on_the_roster(ledger):
    node = trains(ledger)
    ledger.commit("abc")
    ledger.now_s = ledger.open.deadline_s
    ledger.say("a", Tick("aml"))
    (lead,) = node.sees()
    report = Submit(Report("aml", 1, 1, ("c",)))
    assert node.sees(Failed(lead, unreachable=("c", "d"))) == (report,)
    ledger.say("b", report.call)
    assert node.sees(Done(report)) == ()


def test_who_could_not_be_reached_and_has_come_back_is_looked_at_anew():
    ledger = Ledger(quorum=3).running()
    node = trains(ledger)
    ledger.commit("abc")
    ledger.say("d", Leave("aml"))
    (lead,) = node.sees()
    (report,) = node.sees(Failed(lead, unreachable=("c",)))
    ledger.say("a", report.call)
    ledger.say("b", report.call)
    node.sees(Done(report))
    assert ledger.open.phase == "collecting"
    ledger.say("c", Enter("aml"))
    ledger.commit("c")
    assert ledger.open.phase == "merging"
    assert node.sees() == (Lead(1, 2, ledger.part_of("b")),)


def test_a_node_whose_training_made_another_update_says_at_once_that_the_one_on_the_roster_is_gone(ledger):
    ledger.commit()
    node = trains(ledger)
    gone = Submit(Report("aml", 1, 1, ("b",)))
    assert gone not in node.sees()  # training may still come with it
    assert node.sees(another(ledger)) == (gone,)
    ledger.say("b", gone.call)
    assert ledger.open.roster == ("a", "c", "d")


def test_a_node_that_waited_for_its_own_update_in_vain_says_so(ledger):
    ledger.commit()
    node = trains(ledger)
    (lead,) = node.sees()
    gone = Submit(Report("aml", 1, 1, ("b", "c")))
    assert node.sees(Failed(lead, unreachable=("b", "c"))) == (gone,)


def test_a_node_that_has_its_update_by_now_does_not_report_itself(ledger):
    ledger.commit()
    node = trains(ledger)
    (lead,) = node.sees()
    node.sees(ready(ledger))
    assert node.sees(Failed(lead, unreachable=("b",))) == ()


def test_a_node_that_others_report_looks_for_its_own_update_if_it_lacks_it(ledger):
    ledger.commit()
    ledger.say("a", Report("aml", 1, 1, ("b",)))
    assert Probe(1, 1, "b") in trains(ledger).sees()
    assert Probe(1, 1, "b") not in trains(ledger, update=ready(ledger)).sees()


# --- disputes ------------------------------------------------------------------------------------


def suspecting(ledger):
    node = trains(ledger)
    ledger.commit().publish()
    node.sees()
    part = ledger.part_of("c")
    chunk = part * 25 // 4
    return node, Suspected(1, 1, part, chunk)


def test_a_suspect_chunk_is_disputed_and_the_others_recompute_it(ledger):
    node, suspect = suspecting(ledger)
    dispute = Submit(Dispute("aml", 1, 1, suspect.part, suspect.chunk))
    assert node.sees(suspect) == (dispute,)
    ledger.say("b", dispute.call)
    assert node.sees(Done(dispute)) == ()
    other = trains(ledger, "a")
    at = Recompute(1, 1, suspect.part, suspect.chunk)
    assert at in other.sees()
    verdict = Submit(Verdict("aml", 1, 1, suspect.part, suspect.chunk, wrong=True))
    assert verdict in other.sees(Found(at, wrong=True))
    ledger.say("a", verdict.call)
    assert other.sees(Done(verdict)) == ()


def test_a_dispute_that_was_closed_is_not_raised_again(ledger):
    node, suspect = suspecting(ledger)
    (dispute,) = node.sees(suspect)
    ledger.say("b", dispute.call)
    for name in "acd":
        ledger.say(name, Verdict("aml", 1, 1, suspect.part, suspect.chunk, wrong=False))
    assert ledger.open.disputes[0].outcome == "right"
    assert node.sees(Done(dispute)) == ()
    assert node.at(ledger.now_s + 20) == ()


def test_only_one_dispute_of_a_member_is_raised_in_an_attempt(ledger):
    node, suspect = suspecting(ledger)
    other = replace(suspect, chunk=suspect.chunk + 1)
    (dispute,) = node.sees(suspect)
    ledger.say("b", dispute.call)
    for name in "acd":
        ledger.say(name, Verdict("aml", 1, 1, suspect.part, suspect.chunk, wrong=False))
    node.sees(Done(dispute))
    assert node.sees(other) == ()


def test_a_struck_members_update_is_left_alone_and_its_training_gets_the_merges(ledger):
    ledger.commit().publish()
    part = ledger.part_of("b")
    ledger.say("a", Dispute("aml", 1, 1, part, part * 25 // 4))
    for name in "cd":
        ledger.say(name, Verdict("aml", 1, 1, part, part * 25 // 4, wrong=True))
    assert ledger.study.participants["b"].struck
    ledger.publish().accept("acd")
    node = trains(ledger, held=frozenset({ledger.study.accepted}))
    update = UpdateReady(2, ledger.study.accepted, digest("b 2"), 10)
    assert node.sees(update) == ()
    assert node.at(ledger.now_s + 20) == ()


# --- being there ---------------------------------------------------------------------------------


def test_a_member_that_fell_silent_enters_again_while_its_training_goes_on(ledger):
    node = trains(ledger)
    ledger.commit("acd")
    ledger.now_s = ledger.open.deadline_s
    ledger.say("a", Tick("aml"))
    assert not ledger.study.participants["b"].present
    assert node.sees() == (Submit(Enter("aml")),)


def test_a_member_that_fell_silent_and_trains_an_old_model_gets_the_new_one_before_it_enters(ledger):
    node = trains(ledger)
    stale = ready(ledger)
    ledger.commit("acd")
    ledger.now_s = ledger.open.deadline_s
    ledger.say("a", Tick("aml"))
    ledger.publish().accept("acd")
    assert Submit(Enter("aml")) not in node.sees(Held(ledger.study.accepted))
    deliver = Deliver(1, ledger.study.accepted)
    assert node.sees(stale) == (deliver,)
    assert node.sees(Done(deliver)) == (Submit(Enter("aml")),)


def test_a_goodbye_leaves_and_a_crash_does_not(ledger):
    leave = Submit(Leave("aml"))
    assert trains(ledger).sees(Detached(goodbye=False)) == ()
    node = trains(ledger)
    assert node.sees(Detached(goodbye=True)) == (leave,)
    ledger.say("b", Leave("aml"))
    assert node.sees(Done(leave)) == ()


def test_training_that_comes_back_before_the_goodbye_is_on_record_stays(ledger):
    node = trains(ledger)
    leave = Submit(Leave("aml"))
    node.sees(Detached(goodbye=True))
    node.sees(Failed(leave))
    node.sees(Attached(holds=ledger.study.accepted))
    assert leave not in node.at(ledger.now_s + 5)


# --- staying alive, ticking ----------------------------------------------------------------------


def test_alive_is_said_before_the_silence_ends(ledger):
    node = trains(ledger)
    node.sees(ProgressMade(0.25))
    assert node.started == []
    assert node.wake_s == BEGIN_S + 30
    alive = Submit(Alive("aml", 1, 0.25))
    assert node.at(BEGIN_S + 30) == (alive,)
    ledger.say("b", alive.call)
    assert node.sees(Done(alive)) == ()
    assert node.wake_s == BEGIN_S + 60


def test_alive_is_said_one_at_a_time_while_the_ledger_is_slow(ledger):
    node = trains(ledger)
    (alive,) = node.at(BEGIN_S + 31, ProgressMade(0.5))
    assert node.sees(ProgressMade(0.6)) == ()
    assert node.sees(Failed(alive)) == ()
    assert node.sees(ProgressMade(0.7)) == ()
    assert len(node.at(ledger.now_s + 1)) == 1


def test_alive_is_said_as_long_as_a_later_attempt_has_patience():
    ledger = Ledger(quorum=3).running()
    ledger.say("d", Leave("aml"))
    ledger.commit("abc")
    ledger.now_s += 590
    ledger.say("b", Report("aml", 1, 1, ("b",)))
    ledger.say("b", Enter("aml"))
    node = trains(ledger)
    assert node.at(ledger.now_s + 30) == (Submit(Alive("aml", 1, 0.0)),)
    ledger.say("b", Alive("aml", 1, 0.0))
    assert ledger.open.expected["b"] == ledger.now_s + 60


def test_alive_is_never_said_beyond_the_studys_patience(ledger):
    node = trains(ledger)
    while node.wake_s < BEGIN_S + 2000 and ledger.open.expected["b"] < BEGIN_S + 600:
        for effect in node.at(ledger.open.expected["b"] - 30):
            if isinstance(effect, Submit) and isinstance(effect.call, Alive):
                ledger.say("b", effect.call)
                node.sees(Done(effect))
    calls = [effect for effect in node.at(BEGIN_S + 599) if isinstance(effect.call, Alive)]
    assert calls == []
    assert ledger.open.expected["b"] == BEGIN_S + 600


def test_who_still_fetches_the_last_merge_over_a_slow_line_says_that_it_is_alive(ledger):
    node = trains(ledger, "c")
    alive = Submit(Alive("aml", 1, 0.0))
    node.state = replace(node.state, waiting=True, progress=1.0, held=frozenset())
    (fetch,) = node.sees()
    assert isinstance(fetch, Fetch)
    assert node.wake_s == BEGIN_S + 30
    assert node.at(BEGIN_S + 30) == (alive,)
    ledger.say("c", alive.call)
    node.sees(Done(alive))
    assert node.wake_s == BEGIN_S + 60

    # One that cannot be had is no reason to let the others wait.
    for _ in range(3):
        node.sees(Failed(fetch))
        ledger.now_s = node.wake_s
        node.sees()
    assert fetch in node.state.doing
    ledger.now_s = ledger.open.expected["c"] - 1
    assert not [e for e in node.sees() if isinstance(e, Submit) and isinstance(e.call, Alive)]


def test_a_training_process_that_is_gone_is_not_called_alive(ledger):
    node = trains(ledger)
    node.sees(Detached(goodbye=False))
    assert not [e for e in node.at(BEGIN_S + 59) if isinstance(e.call, Alive)]


def test_members_tick_one_after_the_other(ledger):
    first, second = trains(ledger, "a", attached=False), trains(ledger, "b", attached=False)
    first.sees()
    second.sees()
    assert first.wake_s == ledger.open.deadline_s
    assert second.wake_s == pytest.approx(ledger.open.deadline_s + 0.4)
    assert first.at(first.wake_s) == (Submit(Tick("aml")),)
    assert second.sees() == ()
    assert second.at(second.wake_s) == (Submit(Tick("aml")),)


def test_a_tick_that_came_too_early_for_the_ledger_waits_as_long_as_it_says(ledger):
    node = trains(ledger, "a", attached=False)
    tick = Submit(Tick("aml"))
    assert node.at(ledger.open.deadline_s) == (tick,)
    assert node.sees(Failed(tick, wait_s=7.0)) == ()
    assert node.wake_s == ledger.now_s + 7
    assert node.at(ledger.now_s + 7) == (tick,)


# --- finishing -----------------------------------------------------------------------------------


def test_scores_go_on_record_before_the_finish(ledger):
    ledger.commit().publish().accept()
    node = trains(ledger)
    score = Score("aml", 1, 10, loss=0.5)
    assert node.sees(ScoreReady(score)) == (Submit(score),)
    assert node.sees(FinishWanted("inactive")) == ()
    finish = Submit(Finish("aml", "inactive"))
    assert node.sees(Done(Submit(score))) == (finish,)
    ledger.say("b", finish.call)
    assert node.sees(Done(finish)) == ()
    assert Submit(Enter("aml")) not in node.sees()


@pytest.mark.parametrize("contribution", ["snapshot", "active"])
def test_a_finished_member_goes_on_contributing_what_it_chose(ledger, contribution):
    node = trains(ledger)
    update = ready(ledger)
    node.sees(update)
    ledger.commit().publish().accept()
    node.sees(Done(commit_of(update)))
    node.sees(Held(ledger.study.accepted))
    node.sees(Done(Deliver(1, ledger.study.accepted)))
    (finish,) = node.sees(FinishWanted(contribution))
    ledger.say("b", finish.call)
    node.sees(Done(finish))
    wanted = node.sees(Detached(goodbye=True))
    contributed = update.digest if contribution == "snapshot" else ledger.study.accepted
    commit = Submit(Commit("aml", 2, ledger.study.accepted, contributed, 10))
    assert commit in (*wanted, *node.started)
    assert Submit(Leave("aml")) not in node.started
    ledger.say("b", commit.call)
    ledger.commit("acd")
    assert ledger.open.roster == tuple(NAMES)


def test_a_restarted_node_contributes_the_snapshot_that_its_member_left(ledger):
    node = trains(ledger)
    update = ready(ledger)
    node.sees(update)
    left = farewell_of(node.state, "snapshot")
    assert left.update == update
    assert farewell_of(node.state, "active").update is None
    ledger.commit().publish().accept()
    assert update.digest not in to_keep(node.state, ledger.study)
    ledger.say("b", Finish("aml", "snapshot"))
    assert update.digest in to_keep(node.state, ledger.study)
    node = Node(ledger, held=frozenset({ledger.study.accepted}))
    assert node.sees(left.update) == (Submit(Commit("aml", 2, ledger.study.accepted, update.digest, 10)),)


def test_a_restarted_node_contributes_the_merge_of_its_finished_member(ledger):
    ledger.commit().publish().accept()
    ledger.say("b", Finish("aml", "active"))
    node = Node(ledger, held=frozenset({ledger.study.accepted}))
    accepted = ledger.study.accepted
    assert node.sees() == (Submit(Commit("aml", 2, accepted, accepted, 10)),)


def test_a_member_that_stays_active_without_ever_having_had_an_update_is_there_and_moves_nothing(ledger):
    ledger.commit("acd")
    ledger.now_s = ledger.open.deadline_s
    ledger.say("a", Tick("aml"))
    ledger.publish().accept("acd")
    node = trains(ledger)
    (finish,) = node.sees(FinishWanted("active"))
    ledger.say("b", finish.call)
    enter = Submit(Enter("aml"))
    assert node.sees(Done(finish)) == (enter,)  # it had been silent
    node.sees(Detached(goodbye=True))
    ledger.say("b", enter.call)
    accepted = ledger.study.accepted
    assert node.sees(Done(enter)) == (Submit(Commit("aml", 2, accepted, accepted, 1)),)


def test_who_has_no_last_update_to_go_on_contributing_contributes_the_merge(ledger):
    node = trains(ledger)
    (finish,) = node.sees(FinishWanted("snapshot"))
    assert finish == Submit(Finish("aml", "snapshot"))
    ledger.say("b", finish.call)
    accepted = ledger.study.accepted
    assert Submit(Commit("aml", 1, accepted, accepted, 1)) in (*node.sees(Done(finish)), *node.started)


def test_an_inactive_member_contributes_nothing_more(ledger):
    node = trains(ledger, update=ready(ledger))
    ledger.commit().publish().accept()
    ledger.say("b", Finish("aml", "inactive"))
    node.sees(Held(ledger.study.accepted))
    node.sees(Detached(goodbye=True))
    assert not [e for e in node.started if isinstance(e, Submit) and isinstance(e.call, Commit)]


def test_a_study_that_failed_answers_the_training_process_that_waits(ledger):
    node = trains(ledger)
    update = ready(ledger)
    node.sees(update)
    ledger.now_s += 10_000
    ledger.say("a", Tick("aml"))
    assert ledger.study.phase == "failed"
    assert Deliver(0, ledger.study.accepted) in node.sees()


# --- failures ------------------------------------------------------------------------------------


def test_a_failed_effect_is_tried_again_ever_more_slowly_and_dropped_when_no_longer_wanted():
    ledger = Ledger(silence_s=600).running()
    node = trains(ledger)
    update = ready(ledger)
    commit = commit_of(update)
    node.sees(update)
    waits = []
    for _ in range(8):
        assert node.sees(Failed(commit)) == ()
        waits.append(node.wake_s - ledger.now_s)
        assert node.at(node.wake_s) == (commit,)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    ledger.commit("b")
    assert node.sees(Failed(commit)) == ()
    assert node.state.retries == {}


def test_success_forgets_the_failures_before_it(ledger):
    node = trains(ledger, "a", attached=False)
    tick = Submit(Tick("aml"))
    node.at(ledger.open.deadline_s)
    node.sees(Failed(tick))
    assert node.at(ledger.now_s + 0.5) == (tick,)
    assert node.sees(Done(tick)) == (tick,)  # the deadline stands still in this test, so it is wanted again
    node.sees(Failed(tick))
    assert node.wake_s == ledger.now_s + 0.5


def test_a_fetch_that_is_no_longer_wanted_is_cancelled(ledger):
    node = trains(ledger)
    ledger.commit().publish()
    (fetch,) = node.sees()
    ledger.accept("acd")
    ledger.now_s = ledger.open.deadline_s
    ledger.say("a", Tick("aml"))
    whole = Fetch(1, ledger.study.accepted)
    starts = node.sees()
    assert starts[0] == Cancel(fetch)  # the parts went with the open round
    assert whole in starts
    assert whole not in [effect.effect for effect in node.sees() if isinstance(effect, Cancel)]
    ledger.commit("acd")
    ledger.now_s = ledger.open.deadline_s
    ledger.say("a", Tick("aml"))
    ledger.publish().accept("acd")
    starts = node.sees()
    assert starts[0] == Cancel(whole)
    assert Fetch(2, ledger.study.accepted) in starts


def test_a_restarted_node_wants_what_one_that_saw_everything_wants(ledger):
    old = trains(ledger)
    update = ready(ledger)
    old.sees(update)
    ledger.commit()
    old.sees(Done(commit_of(update)))
    (lead,) = [e for e in old.started if isinstance(e, Lead)]
    assert Node(ledger).sees() == (Fetch(0, digest("model 0")), lead)
    ledger.publish()
    assert Fetch(1, ledger.open.digest, attempt=1) in Node(ledger).sees()
    ledger.accept()
    assert Node(ledger).sees() == (Fetch(1, ledger.study.accepted),)
