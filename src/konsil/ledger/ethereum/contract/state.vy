# pragma version 0.4.3
# pragma evm-version paris
"""
@title Everything that the contract remembers, and how a call begins
@notice Several contracts keep this storage together by delegatecall: each holds this module and nothing else
    that is stored, so all see one layout. Sets of members are bitmaps over their numbers, which are never
    given twice. What the rules keep as texts stands here as digests: see docs/adr/0027.
"""

MAX_MEMBERS: constant(uint256) = 255  # ever enrolled; bit 255 of a bitmap is nobody's
MAX_NAMES: constant(uint256) = 255
ORDER_WORDS: constant(uint256) = 8

PROPOSED: constant(uint256) = 1
RUNNING: constant(uint256) = 2
FINISHED: constant(uint256) = 3
FAILED: constant(uint256) = 4

struct Member:
    name_high: uint256  # the name's bytes from the left, 0 behind them
    name_low: uint256
    account: address
    sequence: uint256
    spiffe: bytes32  # keccak of the SPIFFE ID
    key: bytes32  # Ed25519, 32 bytes
    bundle: bytes32
    card: bytes32
    addresses: bytes32  # keccak of the addresses, each ended by a line feed
    witness: bool  # it has a vote, and takes part in no study

struct Settings:
    invited: uint256  # bitmap; 0 for every member of the swarm
    min_members: uint256
    quorum: uint256  # as set: 0 for a majority of min_members
    rounds: uint256
    weighs_equal: uint256
    one_leader: uint256
    mixes: uint256  # 0: no, 1: yes, 2: a rule of the members' own
    outer: uint256
    silence_s: uint256
    patience_s: uint256
    merge_s: uint256
    give_up_s: uint256
    stop_s: uint256
    needs: uint256  # members that the merge rule needs; 0 where nobody here knows
    fixed: bytes32  # keccak of the settings that never change and decide nothing here
    free: bytes32  # keccak of the others that decide nothing here

struct Proposal:
    kind: uint256  # 1: admit, 2: remove, 3: swarm settings, 4: study settings
    proposer: uint256
    closes_s: uint256
    yes: uint256
    no: uint256
    outcome: uint256  # 0: open, 1: passed, 2: failed, 3: expired
    subject: uint256  # the member to remove, proposal_s, or the study's number

struct Study:
    name_high: uint256
    name_low: uint256
    proposer: uint256
    proposed_s: uint256
    phase: uint256
    started_s: uint256
    ended_s: uint256
    why: uint256  # 1: all rounds, 2: time, 3: all finished, 4: too few left, 5: given up, 6: proposer removed
    schema: bytes32
    initial: bytes32
    data_bytes: uint256
    accepted: bytes32
    rounds: uint256  # accepted
    took: uint256  # the last five merges: 48 bits each, 0 for one that not all accepted
    pending: uint256  # whether settings voted for wait for the next round
    settings: bytes32  # what members agree to
    seen: uint256  # the removals that have had their effect here

struct People:
    who: uint256
    present: uint256
    struck: uint256
    snapshot: uint256
    active: uint256
    inactive: uint256

struct Round:
    phase: uint256  # 0: none is open, 1: collecting, 2: merging
    number: uint256
    attempt: uint256
    opened_s: uint256
    since_s: uint256
    deadline_s: uint256
    expected: uint256
    commits: uint256
    absent: uint256
    roster: uint256
    n_parts: uint256
    published: uint256  # bitmap of parts
    reported: uint256  # who has reported
    digest: bytes32
    accepts: uint256
    silent: uint256
    struck: uint256

struct Dispute:
    is_open: uint256
    by: uint256
    leader: uint256
    attempt: uint256
    part: uint256
    chunk: uint256
    closes_s: uint256
    wrong: uint256
    right: uint256
    made: uint256  # who has had a dispute closed in attempt `made_in`
    made_in: uint256
    closed: uint256  # how many are closed in this round
    trail: bytes32  # chained over them

struct Commitment:
    digest: bytes32
    examples: uint256
    at_s: uint256
    start: bytes32

struct Record:
    digest: bytes32
    attempt: uint256
    roster: uint256
    accepts: uint256
    merging_s: uint256
    accepted_s: uint256
    scored: uint256
    late: uint256

struct Removal:
    name: uint256
    at_s: uint256

height: public(uint256)
now_s: public(uint256)
genesis: public(bytes32)
proposal_s: public(uint256)

n_members: public(uint256)
active: public(uint256)
witnesses: uint256
order: uint256[8]  # member numbers in name order, one byte each
members: HashMap[uint256, Member]
number_of: HashMap[address, uint256]  # 1 + the member's number
named: HashMap[bytes32, uint256]  # keccak of a name -> 1 + the member's number
spiffe_taken: HashMap[bytes32, bool]  # by an active member
key_taken: HashMap[bytes32, bool]
account_of: HashMap[address, bytes32]  # whom an account is kept for, since somebody proposed it
renewals: HashMap[uint256, uint256]  # member -> how many count, at the last one
renewed_s: HashMap[uint256, uint256]
n_removals: public(uint256)
removals: HashMap[uint256, Removal]

n_proposals: public(uint256)
proposals: HashMap[uint256, Proposal]
admissions: HashMap[uint256, Member]
changes: HashMap[uint256, Settings]
n_open: uint256
n_admitting: uint256  # open proposals to admit
open_at: HashMap[uint256, uint256]  # the open proposals in order
open_by: HashMap[uint256, uint256]
closes_by: HashMap[uint256, HashMap[uint256, uint256]]  # member -> slot -> when a vote's time is up

n_studies: public(uint256)
study_named: HashMap[bytes32, uint256]
studies: HashMap[uint256, Study]
settings: HashMap[uint256, Settings]
pending: HashMap[uint256, Settings]
people: HashMap[uint256, People]
from_round: HashMap[uint256, HashMap[uint256, uint256]]
studies_by: HashMap[uint256, HashMap[uint256, uint256]]  # member -> slot -> a study that it proposed

rounds: HashMap[uint256, Round]
until_s: HashMap[uint256, HashMap[uint256, uint256]]
commits: HashMap[uint256, HashMap[uint256, Commitment]]
reasons: HashMap[uint256, HashMap[uint256, uint256]]
leaders: HashMap[uint256, HashMap[uint256, uint256]]
parts: HashMap[uint256, HashMap[uint256, bytes32]]
grams: HashMap[uint256, HashMap[uint256, bytes32]]
reports: HashMap[uint256, HashMap[uint256, uint256]]
disputes: HashMap[uint256, Dispute]
records: HashMap[uint256, HashMap[uint256, Record]]

routes: HashMap[bytes4, address]
membership: address


@internal
def begin(sequence: uint256) -> (uint256, uint256):
    """
    @notice See that this is the next call of an active member.
    @return The member's number, and the ledger's time.
    """
    # Nodes replay the calls from the blocks' transactions: each must stand there as itself.
    assert msg.sender == tx.origin, "not_direct"
    caller: uint256 = self.number_of[msg.sender]
    assert caller != 0, "not_a_member"
    caller -= 1
    assert self.has(self.active, caller), "not_a_member"
    last: uint256 = self.members[caller].sequence
    if sequence != last + 1:
        assert sequence > last, "replayed"
        raise "sequence_gap"
    self.members[caller].sequence = sequence
    self.height += 1
    now_s: uint256 = max(block.timestamp, self.now_s)
    self.now_s = now_s
    return caller, now_s


@internal
def enrol(member: Member):
    """
    @notice Make somebody a member: a new one, or one of the same name that was removed.
    """
    name: bytes32 = keccak256(abi_encode(member.name_high, member.name_low))
    number: uint256 = self.named[name]
    sequence: uint256 = 0
    if number == 0:
        number = self.n_members
        assert number < MAX_MEMBERS, "too_many_members"
        self.n_members = number + 1
        self.named[name] = number + 1
        self._insert(number, member)
    else:
        number -= 1
        # It goes on where it was, so that calls of before a removal cannot be replayed.
        sequence = self.members[number].sequence
        self.number_of[self.members[number].account] = 0
    taken: Member = member
    taken.sequence = sequence
    self.members[number] = taken
    self.renewals[number] = 0
    self.renewed_s[number] = 0
    self.number_of[member.account] = number + 1
    self.spiffe_taken[member.spiffe] = True
    self.key_taken[member.key] = True
    self.active |= 1 << number
    if member.witness:
        self.witnesses |= 1 << number
    else:
        self.witnesses &= ~(1 << number)


@internal
def _insert(number: uint256, member: Member):
    """
    @notice Put a new member in its place in the order of names.
    """
    moved: uint256 = number
    looking: bool = True
    for at: uint256 in range(number + 1, bound=256):
        word: uint256 = self.order[at // 32]
        place: uint256 = 8 * (at % 32)
        here: uint256 = (word >> place) & 255
        if looking and at < number:
            other_high: uint256 = self.members[here].name_high
            if other_high < member.name_high:
                continue
            if other_high == member.name_high and self.members[here].name_low < member.name_low:
                continue
        looking = False
        self.order[at // 32] = (word & ~(255 << place)) | (moved << place)
        moved = here


@view
@internal
def trainers() -> uint256:
    """
    @return The active members that may take part in studies: all but the witnesses.
    """
    return self.active & ~self.witnesses


@view
@internal
def in_order() -> uint256[8]:
    return self.order


@pure
@internal
def has(mask: uint256, at: uint256) -> bool:
    return (mask >> at) & 1 == 1


@pure
@internal
def count(mask: uint256) -> uint256:
    """
    @notice How many bits are set.
    """
    if mask == 0:
        return 0
    x: uint256 = mask
    m1: uint256 = convert(0x5555555555555555555555555555555555555555555555555555555555555555, uint256)
    m2: uint256 = convert(0x3333333333333333333333333333333333333333333333333333333333333333, uint256)
    m4: uint256 = convert(0x0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f, uint256)
    x = unsafe_sub(x, (x >> 1) & m1)
    x = unsafe_add(x & m2, (x >> 2) & m2)
    x = unsafe_add(x, x >> 4) & m4
    # 32 bytes of at most 8 each: fold once more, since 256 does not fit in a byte
    x = unsafe_add(x, x >> 8) & convert(0x00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff, uint256)
    return unsafe_mul(x, convert(0x0001000100010001000100010001000100010001000100010001000100010001, uint256)) >> 240
