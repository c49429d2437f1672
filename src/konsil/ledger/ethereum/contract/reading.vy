# pragma version 0.4.3
# pragma evm-version paris
"""
@title What can be read: the state as it stands, never events
@notice To be asked by eth_call. `study` lets removals have their effect first, and nothing of it stays.
"""

import state
import blake3
import mechanics
import beginning

initializes: state
initializes: mechanics[state := state]
initializes: beginning[state := state, mechanics := mechanics]

struct Whole:
    study: state.Study
    settings: state.Settings
    people: state.People
    round: state.Round
    dispute: state.Dispute


@view
@external
def swarm() -> (uint256, uint256, uint256, uint256, uint256, uint256, uint256):
    """
    @return Height, time, `proposal_s`, how many members, proposals and studies there are, and who is active.
    """
    return (
        state.height,
        state.now_s,
        state.proposal_s,
        state.n_members,
        state.n_proposals,
        state.n_studies,
        state.active,
    )


@view
@external
def member(number: uint256) -> state.Member:
    return state.members[number]


@view
@external
def proposal(number: uint256) -> state.Proposal:
    return state.proposals[number]


@view
@external
def admission(number: uint256) -> state.Member:
    """
    @return Whom a proposal would admit.
    """
    return state.admissions[number]


@external
def study(s: uint256) -> Whole:
    beginning.known(s)
    return Whole(
        study=state.studies[s],
        settings=state.settings[s],
        people=state.people[s],
        round=state.rounds[s],
        dispute=state.disputes[s],
    )


@external
def standing(s: uint256, name: uint256) -> (uint256, uint256, uint256, uint256, state.Commitment):
    """
    @return A participant's first round, until when the open round waits for it, why it is absent from it, whom
        it reported, and its commit: each says something only where the round's bitmaps name the participant.
    """
    beginning.known(s)
    return (
        state.from_round[s][name],
        state.until_s[s][name],
        state.reasons[s][name],
        state.reports[s][name],
        state.commits[s][name],
    )


@external
def part(s: uint256, number: uint256) -> (uint256, bytes32, bytes32):
    beginning.known(s)
    return state.leaders[s][number], state.parts[s][number], state.grams[s][number]


@external
def record(s: uint256, number: uint256) -> state.Record:
    beginning.known(s)
    return state.records[s][number]
