# pragma version 0.4.3
# pragma evm-version paris
"""
@title One member, one vote: who is admitted, who is removed, which settings hold
@notice As src/konsil/core/rules/members.py says.
"""

import state
import blake3
import mechanics
import beginning
import agreement

initializes: state
initializes: mechanics[state := state]
initializes: beginning[state := state, mechanics := mechanics]
initializes: agreement[state := state]

ADMIT: constant(uint256) = 1
REMOVE: constant(uint256) = 2
SWARM: constant(uint256) = 3
STUDY: constant(uint256) = 4

OPEN: constant(uint256) = 0
PASSED: constant(uint256) = 1
LOST: constant(uint256) = 2
EXPIRED: constant(uint256) = 3

MAX_OPEN_PROPOSALS: constant(uint256) = 16
MAX_RECENT_PROPOSALS: constant(uint256) = 64
MAX_OPEN: constant(uint256) = 4080  # 255 members, 16 each
MAX_TURNS: constant(uint256) = 64
MAX_TEXT: constant(uint256) = 2_000
MIN_PROPOSAL_S: constant(uint256) = 60
MAX_RENEWALS: constant(uint256) = 16
RENEWAL_S: constant(uint256) = 600
SETTINGS_BYTES: constant(uint256) = 16384


# --- calls -----------------------------------------------------------------------------------------


@external
def propose_admit(
    sequence: uint256,
    name_high: uint256,
    name_low: uint256,
    account: address,
    key: bytes32,
    bundle: bytes32,
    card: bytes32,
    witness: bool,
    spiffe: String[agreement.SPIFFE_BYTES],
    addresses: String[agreement.ADDRESSES_BYTES],
):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    self._close_votes(now_s)
    assert agreement.is_slug(name_high, name_low), "bad_member"
    assert agreement.is_spiffe(spiffe), "bad_member"
    assert key != empty(bytes32) and bundle != empty(bytes32) and card != empty(bytes32), "bad_member"
    assert agreement.are_addresses(addresses), "bad_member"
    member: state.Member = state.Member(
        name_high=name_high,
        name_low=name_low,
        account=account,
        sequence=0,
        spiffe=keccak256(spiffe),
        key=key,
        bundle=bundle,
        card=card,
        addresses=keccak256(addresses),
        witness=witness,
    )
    self._demand(self._why_not_admit(member))
    self._keep_account(member)
    assert state.n_members + state.n_admitting < state.MAX_MEMBERS, "too_many_members"
    number: uint256 = self._propose(caller, ADMIT, 0, now_s)
    state.admissions[number] = member
    state.n_admitting += 1
    self._close_votes(now_s)


@external
def propose_remove(sequence: uint256, name: uint256, reason: String[MAX_TEXT]):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    self._close_votes(now_s)
    self._demand(self._why_not_remove(name))
    self._propose(caller, REMOVE, name, now_s)
    self._close_votes(now_s)


@external
def propose_swarm_settings(sequence: uint256, proposal_s: uint256):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    self._close_votes(now_s)
    assert MIN_PROPOSAL_S <= proposal_s and proposal_s <= agreement.MAX_SECONDS, "bad_settings"
    self._propose(caller, SWARM, proposal_s, now_s)
    self._close_votes(now_s)


@external
def propose_study_settings(
    sequence: uint256,
    s: uint256,
    numbers: uint256[14],
    fixed: String[SETTINGS_BYTES],
    free: String[SETTINGS_BYTES],
):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    self._close_votes(now_s)
    changed: state.Settings = agreement.settings_of(numbers, keccak256(fixed), keccak256(free))
    self._demand(self._why_not_change(s, caller, changed))
    number: uint256 = self._propose(caller, STUDY, s, now_s)
    state.changes[number] = changed
    self._close_votes(now_s)


@external
def vote(sequence: uint256, number: uint256, yes: bool):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    self._close_votes(now_s)
    assert number != 0 and number <= state.n_proposals, "unknown_proposal"
    assert state.proposals[number].outcome == OPEN, "proposal_closed"
    bit: uint256 = 1 << caller
    assert self._voters(number) & bit != 0, "no_vote"
    assert (state.proposals[number].yes | state.proposals[number].no) & bit == 0, "second_vote"
    if yes:
        state.proposals[number].yes |= bit
    else:
        state.proposals[number].no |= bit
    self._close_votes(now_s)


@external
def announce(sequence: uint256, addresses: String[agreement.ADDRESSES_BYTES]):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    assert agreement.are_addresses(addresses), "bad_addresses"
    state.members[caller].addresses = keccak256(addresses)


@external
def renew(sequence: uint256, bundle: bytes32, card: bytes32):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    assert bundle != empty(bytes32) and card != empty(bytes32), "bad_digest"
    if card == state.members[caller].card:
        assert bundle == state.members[caller].bundle, "same_card"
        return
    for name: uint256 in range(state.n_members, bound=state.MAX_NAMES):
        assert state.members[name].card != card, "card_taken"
    over: uint256 = (now_s - state.renewed_s[caller]) // RENEWAL_S
    counted: uint256 = state.renewals[caller]
    counted = counted - min(counted, over)
    assert counted < MAX_RENEWALS, "too_many_renewals"
    state.members[caller].bundle = bundle
    state.members[caller].card = card
    state.renewed_s[caller] = now_s
    state.renewals[caller] = counted + 1


@external
def validate(sequence: uint256, on: bool):
    """
    @notice On an Ethereum the chain's own nodes decide on blocks, whoever runs them.
    """
    state.begin(sequence)
    raise "no_validators"


@external
def close_votes(now_s: uint256):
    """
    @notice For the contract that keeps deadlines. The swarm's address does not lead here.
    """
    self._close_votes(now_s)


# --- votes -----------------------------------------------------------------------------------------


@internal
def _propose(caller: uint256, kind: uint256, subject: uint256, now_s: uint256) -> uint256:
    assert state.open_by[caller] < MAX_OPEN_PROPOSALS, "too_many_proposals"
    slot: uint256 = MAX_RECENT_PROPOSALS
    for i: uint256 in range(MAX_RECENT_PROPOSALS):
        if state.closes_by[caller][i] <= now_s:
            slot = i
            break
    assert slot < MAX_RECENT_PROPOSALS, "too_many_proposals"
    closes_s: uint256 = now_s + state.proposal_s
    state.closes_by[caller][slot] = closes_s
    number: uint256 = state.n_proposals + 1
    state.n_proposals = number
    state.open_by[caller] += 1
    state.open_at[state.n_open] = number
    state.n_open += 1
    state.proposals[number] = state.Proposal(
        kind=kind, proposer=caller, closes_s=closes_s, yes=0, no=0, outcome=OPEN, subject=subject
    )
    state.proposals[number].yes = self._voters(number) & (1 << caller)
    return number


@internal
def _voters(number: uint256) -> uint256:
    kind: uint256 = state.proposals[number].kind
    subject: uint256 = state.proposals[number].subject
    if kind == REMOVE:
        return state.active & ~(1 << subject)
    if kind == STUDY:
        beginning.sync(subject)
        return state.active & state.people[subject].who & ~state.people[subject].struck
    return state.active


@internal
def _close_votes(now_s: uint256):
    """
    @notice Close every vote that is decided or whose time is up, and do what was decided. A change of members
        changes who has a vote: all are looked at again from the first on.
    """
    for turn: uint256 in range(MAX_TURNS):
        kept: uint256 = 0
        changed: bool = False
        n_open: uint256 = state.n_open
        for i: uint256 in range(n_open, bound=MAX_OPEN):
            number: uint256 = state.open_at[i]
            decided: bool = False
            if not changed:
                decided, changed = self._decide(number, now_s)
            if decided:
                state.open_by[state.proposals[number].proposer] -= 1
                if state.proposals[number].kind == ADMIT:
                    state.n_admitting -= 1
            else:
                if kept != i:
                    state.open_at[kept] = number
                kept += 1
        if kept != n_open:
            state.n_open = kept
        if not changed:
            break


@internal
def _decide(number: uint256, now_s: uint256) -> (bool, bool):
    """
    @return Whether the vote is closed, and whether that changed the members.
    """
    if now_s >= state.proposals[number].closes_s:
        state.proposals[number].outcome = EXPIRED
        return True, False
    allowed: uint256 = self._voters(number)
    n: uint256 = state.count(allowed)
    if 2 * state.count(state.proposals[number].yes & allowed) > n:
        return True, self._carry_out(number, now_s)
    if 2 * state.count(state.proposals[number].no & allowed) >= n:
        state.proposals[number].outcome = LOST
        return True, False
    return False, False


@internal
def _carry_out(number: uint256, now_s: uint256) -> bool:
    proposal: state.Proposal = state.proposals[number]
    why: String[16] = ""
    # An earlier decision may have taken the ground from under this one.
    if proposal.kind == ADMIT:
        why = self._why_not_admit(state.admissions[number])
    elif proposal.kind == REMOVE:
        why = self._why_not_remove(proposal.subject)
    elif proposal.kind == STUDY:
        why = self._why_not_change(proposal.subject, proposal.proposer, state.changes[number])
    if len(why) != 0:
        state.proposals[number].outcome = LOST
        return False
    state.proposals[number].outcome = PASSED
    if proposal.kind == ADMIT:
        state.enrol(state.admissions[number])
        return True
    if proposal.kind == REMOVE:
        self._remove(proposal.subject, now_s)
        return True
    if proposal.kind == SWARM:
        state.proposal_s = proposal.subject
        return False
    state.pending[proposal.subject] = state.changes[number]
    state.studies[proposal.subject].pending = 1
    if state.studies[proposal.subject].phase == state.PROPOSED:
        mechanics.take_settings(proposal.subject)
    return False


@internal
def _remove(name: uint256, now_s: uint256):
    state.active &= ~(1 << name)
    state.spiffe_taken[state.members[name].spiffe] = False
    state.key_taken[state.members[name].key] = False
    state.removals[state.n_removals] = state.Removal(name=name, at_s=now_s)
    state.n_removals += 1


# --- what may be proposed --------------------------------------------------------------------------


@pure
@internal
def _demand(why: String[16]):
    assert len(why) == 0, why


@view
@internal
def _why_not_admit(member: state.Member) -> String[16]:
    before: uint256 = state.named[keccak256(abi_encode(member.name_high, member.name_low))]
    if before != 0 and state.has(state.active, before - 1):
        return "name_taken"
    if state.spiffe_taken[member.spiffe] or state.key_taken[member.key]:
        return "identity_taken"
    return ""


@internal
def _keep_account(member: state.Member):
    """
    @notice An account is one name's for ever, from the first proposal on: so no decision can meet it taken.
    """
    name: bytes32 = keccak256(abi_encode(member.name_high, member.name_low))
    held: bytes32 = state.account_of[member.account]
    assert member.account != empty(address), "bad_account"
    assert held == empty(bytes32) or held == name, "account_taken"
    state.account_of[member.account] = name


@view
@internal
def _why_not_remove(name: uint256) -> String[16]:
    if name >= state.n_members or not state.has(state.active, name):
        return "unknown_member"
    if state.count(state.active) == 1:
        return "last_member"
    return ""


@internal
def _why_not_change(s: uint256, proposer: uint256, changed: state.Settings) -> String[16]:
    if s == 0 or s > state.n_studies:
        return "unknown_study"
    beginning.sync(s)
    if state.studies[s].phase > state.RUNNING:
        return "study_over"
    if not state.has(state.people[s].who, proposer):
        return "not_participant"
    if state.has(state.people[s].struck, proposer):
        return "struck"
    held: state.Settings = state.settings[s]
    if (
        changed.invited != held.invited
        or changed.min_members != held.min_members
        or changed.outer != held.outer
        or changed.fixed != held.fixed
    ):
        return "fixed_setting"
    if not agreement.are_settings(changed):
        return "bad_settings"
    return ""
