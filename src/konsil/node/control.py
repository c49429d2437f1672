"""The command line's door: hospital IT asks, votes and proposes through the running node."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from konsil import __version__
from konsil.core import round as machine
from konsil.core.rules import (
    Agree,
    Call,
    ProposeAdmit,
    ProposeStudy,
    ProposeStudySettings,
    State,
    StudySettings,
    Vote,
    encode_state,
    state_digest,
)
from konsil.core.wall import (
    AskAdmit,
    AskCall,
    AskMend,
    AskModel,
    AskNode,
    AskPeers,
    AskPropose,
    AskRoot,
    AskState,
    AskTrust,
    FromNode,
    Noted,
    PeerStatus,
    ToldMended,
    ToldModel,
    ToldNode,
    ToldPeers,
    ToldState,
    ToNode,
)
from konsil.errors import FrameError, KonsilError, ParametersError, StudyError
from konsil.identity.card import member_record
from konsil.node.checks import ask_peers
from konsil.node.shelf import card_for
from konsil.node.site import require_room
from konsil.node.store import Model, model_of
from konsil.node.study import StudyRunner
from konsil.wall.door import Visitor
from konsil.wall.frames import failure
from konsil.wall.layout import read_arrays
from konsil.wall.memory import open_sealed
from konsil.wall.told_state import told_state

if TYPE_CHECKING:
    from konsil.node.daemon import Node

MAX_WAIT_S = 60.0
RUNNER_S = 10.0
"""How long a study that was just proposed may take to appear at this node."""


class Control:
    """Answers the command line."""

    def __init__(self, node: Node, clock: Callable[[], float] = time.time) -> None:
        """Answer for this node."""
        self.node = node
        self.clock = clock

    async def serve(self, visitor: Visitor) -> None:
        """One command: the handler of the door."""
        while True:
            word, fd = await visitor.receive()
            with ExitStack() as lent:
                try:
                    answer, answer_fd = await self._answer(word, fd, lent)
                except FrameError:
                    raise
                except KonsilError as error:
                    await visitor.send(failure(error))
                else:
                    await visitor.send(answer, answer_fd)

    async def _answer(self, word: ToNode, fd: int | None, lent: ExitStack) -> tuple[FromNode, int | None]:
        """The answer, and a descriptor to go with it; ``lent`` closes what was made for it alone."""
        if fd is not None and not isinstance(word, AskPropose):
            os.close(fd)
        match word:
            case AskState():
                return await self._state(word, lent)
            case AskCall():
                await self._require_known_rule(word.call)
                return Noted(await self.node.ledger.submit(word.call)), None
            case AskNode():
                return self._about_the_node(), None
            case AskPeers():
                height = self.node.ledger.state.height
                return ToldPeers(height, await ask_peers(self.node.peers, self.clock)), None
            case AskModel():
                return await self._model(word)
            case AskPropose():
                return Noted(await self._propose(word, fd)), None
            case AskAdmit() | AskTrust() | AskRoot():
                return Noted(await self._about_identities(word)), None
            case AskMend():
                mended = await self._runner(word.study).mend()
                return ToldMended(word.study, mended.kept, str(mended.aside or ""), mended.unknown), None
            case _:
                raise FrameError(f"{type(word).__name__} is not for this socket.", do="Compare versions.")

    async def _about_identities(self, word: AskAdmit | AskTrust | AskRoot) -> int:
        if isinstance(word, AskTrust):
            return await self.node.trust(word.card)
        if isinstance(word, AskRoot):
            await self.node.roots.step(word.step)
            return self.node.ledger.state.height
        card = await asyncio.to_thread(self.node.directory.cards.put, word.card)
        return await self.node.ledger.submit(ProposeAdmit(member_record(card)))

    def _runner(self, study: str) -> StudyRunner:
        runner = self.node.runners.get(study)
        if runner is None:
            raise StudyError(
                f"This node knows no study {study!r}.",
                safe="Nothing was changed.",
                do="`konsil study list` shows all.",
            )
        return runner

    async def _state(self, word: AskState, lent: ExitStack) -> tuple[ToldState, int | None]:
        ledger = self.node.ledger
        if ledger.state.height <= word.after:
            await ledger.changed(word.after, min(MAX_WAIT_S, max(0.0, word.wait_s)))
        state = ledger.state
        told, memory = told_state(state.height, state_digest(state), encode_state(state))
        return told, None if memory is None else lent.enter_context(memory).fd

    async def _model(self, word: AskModel) -> tuple[FromNode, int | None]:
        runner = self._runner(word.study)
        if not word.round:
            await runner.shelf.settle(word.wait_s)
        chosen = runner.shelf.chosen(word.round)
        model = await runner.shelf.model_of(chosen)
        card = card_for(self.node.ledger.state, word.study, chosen, model)
        return ToldModel(word.study, chosen.round, model.digest, card), model.memory.fd

    async def _require_known_rule(self, call: Call) -> None:
        """Refuse what this node could not merge: the contract knows only the rules that come with Konsil.

        Raises:
            ConfigError: the study's merge rule is not here, or is not what the settings say.
        """
        settings = _settings_of(call, self.node.ledger.state)
        if settings is not None:
            await asyncio.to_thread(self.node.rules.require, settings)

    async def _propose(self, word: AskPropose, fd: int | None) -> int:
        try:
            await self._require_known_rule(ProposeStudy(word.settings))
        except KonsilError:
            if fd is not None:
                os.close(fd)
            raise
        if fd is None:
            return await self.node.ledger.submit(ProposeStudy(word.settings))
        model = await _model_in(fd, self.node.site.max_model_bytes)
        try:
            height = await self.node.ledger.submit(ProposeStudy(word.settings))
            runner = await self.node.runner(word.settings.name, RUNNER_S)
        except BaseException:
            model.memory.close()
            raise
        runner.serve(model)
        runner.post(machine.Offered(model.schema.digest, model.digest, model.schema.data_bytes))
        return height

    def _about_the_node(self) -> ToldNode:
        node = self.node
        transport = node.transport
        links = tuple(
            PeerStatus(link.name, link.connected, link.via, link.rtt_ms, link.problem)
            for link in sorted(transport.links())
        )
        return ToldNode(
            member=node.config.name,
            version=__version__,
            swarm=node.genesis.swarm,
            genesis=node.genesis_digest,
            height=node.ledger.state.height,
            clock_s=node.site.ledger_s(),
            svid_expires_s=node.svid_expires_s(),
            peers=links,
            studies=tuple(runner.status() for _, runner in sorted(node.runners.items())),
            bytes_out=transport.bytes_out,
            bytes_in=transport.bytes_in,
            ledger=node.ledger.description,
            problems=node.problems(),
            way_out=str(node.way_out),
        )


def _settings_of(call: Call, state: State) -> StudySettings | None:
    """The study settings that a call would bind this member to; None for other calls."""
    match call:
        case ProposeStudy(settings=settings) | ProposeStudySettings(settings=settings):
            return settings
        case Agree(study=name) if name in state.studies:
            return state.studies[name].settings
        case Vote(proposal=number, yes=True):
            subjects = [each.subject for each in state.proposals if each.number == number]
            return next((each.settings for each in subjects if isinstance(each, ProposeStudySettings)), None)
        case _:
            return None


async def _model_in(fd: int, most_bytes: int) -> Model:
    """The model in a descriptor that came from the command line; it takes the descriptor over.

    Args:
        fd: the descriptor.
        most_bytes: the largest model that this node takes.

    Raises:
        NodeError: it is larger.
        FrameError, ParametersError, SchemaMismatch: it holds no model as Konsil writes it.
    """
    memory = open_sealed(fd)
    try:
        schema = await asyncio.to_thread(lambda: read_arrays(memory)[0])
        require_room(schema.data_bytes, most_bytes)
        return await asyncio.to_thread(model_of, memory, schema)
    except BaseException as error:
        memory.close()
        if isinstance(error, ParametersError):
            raise ParametersError(
                f"The model file cannot be used. {error.what}",
                safe="Nothing was proposed.",
                do="Write it as `konsil study model` does: safetensors, in Konsil's one form.",
            ) from error
        raise
