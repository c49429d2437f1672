# pragma version 0.4.3
# pragma evm-version paris
"""
@title A swarm's contract: one address, behind which several contracts keep one storage
@notice A contract may have 24,576 bytes of code; the rules need more. So each call goes by delegatecall to the
    contract that has it. The members and the addresses of these contracts are given once, here.
"""

import state

initializes: state

MAX_ANSWER: constant(uint256) = 4096
MAX_ROUTES: constant(uint256) = 64

struct Founder:
    name_high: uint256
    name_low: uint256
    account: address
    spiffe: bytes32
    key: bytes32
    bundle: bytes32
    card: bytes32
    addresses: bytes32
    witness: bool


@deploy
def __init__(
    genesis: bytes32,
    created_s: uint256,
    proposal_s: uint256,
    membership: address,
    selectors: DynArray[bytes4, MAX_ROUTES],
    targets: DynArray[address, MAX_ROUTES],
    founders: DynArray[Founder, 255],
):
    state.genesis = genesis
    state.now_s = created_s
    state.proposal_s = proposal_s
    state.membership = membership
    for i: uint256 in range(len(selectors), bound=MAX_ROUTES):
        state.routes[selectors[i]] = targets[i]
    for founder: Founder in founders:
        name: bytes32 = keccak256(abi_encode(founder.name_high, founder.name_low))
        assert state.named[name] == 0 and state.number_of[founder.account] == 0, "bad_member"
        state.account_of[founder.account] = name
        state.enrol(
            state.Member(
                name_high=founder.name_high,
                name_low=founder.name_low,
                account=founder.account,
                sequence=0,
                spiffe=founder.spiffe,
                key=founder.key,
                bundle=founder.bundle,
                card=founder.card,
                addresses=founder.addresses,
                witness=founder.witness,
            )
        )


@external
@raw_return
def __default__() -> Bytes[MAX_ANSWER]:
    target: address = state.routes[convert(slice(msg.data, 0, 4), bytes4)]
    assert target != empty(address), "bad_call"
    return raw_call(target, msg.data, max_outsize=MAX_ANSWER, is_delegate_call=True)
