"""What CometBFT decided is on disk before it is told so; the ledger's time; what waits in the pool."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest
from msgspec.structs import replace

from konsil.core.rules import Announce, ProposeAdmit, Tick, Vote, entry_digest
from konsil.errors import FrameError, JournalCorrupt, LedgerError
from konsil.ledger.budget import BURST_BYTES
from konsil.ledger.cometbft import keeper as keeper_module
from konsil.ledger.cometbft.abci import message
from konsil.ledger.cometbft.application import (
    MAX_BLOCK_BYTES,
    RULES_VERSION,
    SEQUENCE_WINDOW,
    chain_id,
    key_address,
)
from konsil.ledger.cometbft.home import MAX_CALL_FRAMED_BYTES, POOL_CALLS
from konsil.ledger.cometbft.keeper import FRESH_S, FRESHENED_S, Keeper
from konsil.ledger.journal import Journal
from konsil.ledger.replica import Replica

START_S = 1_700_000_000
ACCEPT, REJECT = 1, 2


class Clock:
    """In place of ``time``: both clocks go by hand."""

    def __init__(self):
        self.now_s = 1000.0
        self.wall_s = START_S + 500.0

    def monotonic(self):
        return self.now_s

    def time(self):
        return self.wall_s

    def on(self, seconds):
        self.now_s += seconds
        self.wall_s += seconds


class Node:
    """A keeper with a journal, driven as CometBFT drives it."""

    def __init__(self, world, replica, clock):
        self.world, self.replica, self.clock = world, replica, clock
        self.told, self.proofs = [], []
        self.keeper = Keeper(
            world.genesis, replica, world.verify, "lyon", self.told.append, self.proofs.append
        )
        self.height = 0

    async def ask(self, kind, **fields):
        name = {"prepare_proposal": "PrepareProposal", "process_proposal": "ProcessProposal"}.get(kind)
        name = name or "".join(part.title() for part in kind.split("_"))
        return await self.keeper.answer(
            kind, message("Empty" if kind == "commit" else f"Request{name}")(**fields)
        )

    async def show(self, calls, time_s, *, live=True, misbehavior=()):
        """A block is finalized, not yet committed."""
        self.height += 1
        if live:
            assert await self.ask("process_proposal", txs=calls, height=self.height) == {"status": ACCEPT}
        seconds, nanos = divmod(round(time_s * 1e9), 10**9)
        return await self.ask(
            "finalize_block", height=self.height, txs=calls, misbehavior=misbehavior,
            time={"seconds": seconds, "nanos": nanos},
        )  # fmt: skip

    async def block(self, calls, time_s=None, *, live=True):
        time_s = START_S + self.clock.now_s if time_s is None else time_s
        answer = await self.show(calls, time_s, live=live)
        assert await self.ask("commit") == {}
        return answer

    async def proposes(self, waiting):
        return list(
            (await self.ask("prepare_proposal", txs=waiting, max_tx_bytes=MAX_BLOCK_BYTES)).get("txs", ())
        )

    def call(self, number, name="lyon"):
        return self.world.signed(name, number, self.world.announcement(number))


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(keeper_module, "time", clock)
    return clock


@pytest.fixture
async def start(hospitals, tmp_path, clock):
    """Starts a node on the same journal, and the one before it is closed."""
    async with contextlib.AsyncExitStack() as stack:
        before = []

        async def start():
            for replica in before:
                await replica.close()
            replica = await Replica.open(tmp_path / "ledger.db", hospitals.genesis, hospitals.verify)
            stack.push_async_callback(replica.close)
            before[:] = [replica]
            return Node(hospitals, replica, clock)

        yield start


@pytest.fixture
async def node(start):
    return await start()


# --- the ledger's time -----------------------------------------------------------------------------


async def test_after_a_silence_a_block_without_calls_comes_first(node, clock):
    call = node.call(1)
    assert await node.proposes([call]) == [], "nothing was agreed on here yet"
    await node.block([])
    assert await node.proposes([call]) == [call]
    await node.block([call])
    clock.on(FRESH_S + 0.1)
    assert await node.proposes([node.call(2)]) == []
    await node.block([])
    assert await node.proposes([node.call(2)]) == [node.call(2)]


async def test_where_blocks_take_seconds_calls_wait_for_one_of_them_only(node, clock):
    await node.block([])
    await node.block([node.call(1)])
    clock.on(5)
    assert await node.proposes([node.call(2)]) == []
    await node.block([])
    clock.on(5)
    assert await node.proposes([node.call(2)]) == [node.call(2)]
    clock.on(FRESHENED_S)
    assert await node.proposes([node.call(2)]) == [], "long ago is long ago"


async def test_a_block_that_is_shown_again_at_a_start_makes_nothing_fresh(start, clock):
    node = await start()
    await node.block([])
    await node.block([node.call(1)])
    again = await start()
    again.keeper.take_up()
    again.height = 2
    clock.on(3600)
    await again.ask("info")
    await again.block([], START_S, live=False)
    clock.on(0.1)
    assert await again.proposes([node.call(2)]) == [], "its time would be of an hour ago"


async def test_the_ledgers_time_is_learnt_from_blocks_that_are_decided_now(node, clock):
    assert node.keeper.now_s() == int(clock.wall_s), "until then, this machine's"
    await node.block([])
    clock.on(1)
    await node.block([], START_S + 2000.5)  # of the block before, a second ago
    assert node.keeper.now_s() == START_S + 2001
    clock.on(10)
    assert node.keeper.now_s() == START_S + 2011


async def test_the_ledgers_time_is_not_learnt_from_blocks_that_are_caught_up_with(node, clock):
    for number in range(5):
        clock.on(0.01)
        await node.block([], START_S + number, live=False)
    assert node.keeper.now_s() == int(clock.wall_s)
    await node.block([], START_S + 5)  # the first that is decided with this node: of the one before, long ago
    assert node.keeper.now_s() == int(clock.wall_s)
    clock.on(0.1)
    await node.block([], clock.wall_s - 0.1 + 60)
    assert node.keeper.now_s() == int(clock.wall_s) + 60


async def test_the_ledgers_time_is_never_before_what_it_says_itself(node, clock):
    await node.block([node.call(1)], START_S + 9000)
    assert node.keeper.now_s() == START_S + 9000


# --- disk ------------------------------------------------------------------------------------------


async def test_what_is_acknowledged_is_on_disk_and_shown(node, tmp_path):
    answer = await node.show([node.call(1), node.call(3)], START_S + 1, live=False)
    assert [result.code for result in answer["tx_results"]] == [0, 1]
    assert [result.codespace for result in answer["tx_results"]] == ["", "sequence_gap"]
    assert node.replica.state.height == 0
    assert not node.told
    await node.ask("commit")
    assert node.replica.state.height == 1
    assert [outcome.entry is not None for outcome in node.told[0]] == [True, False]
    with Journal(tmp_path / "ledger.db", node.world.digest, read_only=True) as journal:
        assert [entry.height for entry in journal.read()] == [1]
    assert answer["app_hash"].hex() == node.replica.journal.head
    assert await node.ask("info") == {
        "data": "konsil",
        "app_version": RULES_VERSION,
        "last_block_height": 1,
        "last_block_app_hash": answer["app_hash"],
    }


async def test_a_failing_disk_is_told_and_nothing_is_acknowledged(node, monkeypatch):
    await node.block([node.call(1)])
    before = await node.ask("info")

    def full(*_arguments):
        raise LedgerError("The disk is full.")

    with monkeypatch.context() as broken:
        broken.setattr(node.replica.journal, "append", full)
        await node.show([node.call(2)], START_S + 2)
        with pytest.raises(LedgerError, match="full"):
            await node.ask("commit")
    assert "full" in node.keeper.problem
    assert await node.ask("info") == before
    assert node.replica.state.height == 1
    assert len(node.told) == 1
    with pytest.raises(FrameError):
        await node.ask("commit")
    node.height -= 1  # CometBFT starts again and shows the block once more
    await node.block([node.call(2)])
    assert (node.keeper.problem, node.replica.state.height) == ("", 2)


async def test_a_node_goes_on_where_its_journal_ends(start):
    node = await start()
    await node.block([node.call(1)])
    await node.block([])
    await node.block([node.call(2)])
    head = await node.ask("info")
    await node.block([])
    again = await start()
    again.keeper.take_up()
    assert await again.ask("info") == head, "of the last block with an entry: those after it are shown again"
    again.height = 3
    await again.block([], live=False)
    await again.block([node.call(3)])
    assert again.replica.state.height == 3


async def test_blocks_that_are_applied_again_are_compared_with_the_journal(start):
    node = await start()
    blocks = [[node.call(1)], [], [node.call(2), node.call(1, "nice")], [node.call(3)]]
    for number, calls in enumerate(blocks):
        await node.block(calls, START_S + number)
    head = node.replica.journal.head
    again = await start()
    await again.keeper.begin_anew()
    for number, calls in enumerate(blocks):
        await again.block(calls, START_S + number, live=False)
    assert (again.replica.journal.height, again.replica.journal.head) == (4, head)
    assert again.replica.journal.position == 4
    await again.block([node.call(4)])
    assert again.replica.state.height == 5


async def test_a_journal_that_differs_from_the_blocks_is_noticed_and_left(start):
    node = await start()
    await node.block([node.call(1)], START_S + 1)
    await node.block([node.call(2)], START_S + 2)
    head = node.replica.journal.head
    again = await start()
    await again.keeper.begin_anew()
    await again.block([node.call(1)], START_S + 1, live=False)
    await again.show([node.call(2)], START_S + 3, live=False)
    with pytest.raises(JournalCorrupt, match="differ at entry 2") as caught:
        await again.ask("commit")
    assert caught.value.fields["height"] == 2
    assert "konsil ledger repair" in again.keeper.problem
    assert again.replica.journal.head == head


async def test_a_start_amid_catching_up_begins_anew_as_well(start):
    """CometBFT's blocks were lost: told of the journal's position, which it has not come to, it would stop."""
    node = await start()
    blocks = [[node.call(number)] for number in (1, 2, 3)]
    for number, calls in enumerate(blocks):
        await node.block(calls, START_S + number)
    once = await start()
    await once.keeper.begin_anew()
    await once.block(blocks[0], START_S, live=False)
    twice = await start()
    twice.keeper.take_up()
    assert (await twice.ask("info"))["last_block_height"] == 0
    for number, calls in enumerate(blocks):
        await twice.block(calls, START_S + number, live=False)
    last = await start()
    last.keeper.take_up()
    assert (await last.ask("info"))["last_block_height"] == 3


async def test_a_commit_that_was_not_shown_is_refused(node):
    with pytest.raises(FrameError):
        await node.ask("commit")


async def test_another_chain_is_not_begun(node):
    with pytest.raises(FrameError, match="begins"):
        await node.ask("init_chain", chain_id="konsil-0")
    answer = await node.ask("init_chain", chain_id=chain_id(node.world.genesis))
    assert answer == {"app_hash": bytes.fromhex(node.world.digest)}


# --- the position in the journal -------------------------------------------------------------------


def test_the_position_is_written_with_the_entries_or_neither(tmp_path, hospitals):
    entries = hospitals.entries(2)

    class TornDisk:
        def __init__(self, database):
            self.database = database

        def __getattr__(self, name):
            return getattr(self.database, name)

        def commit(self):
            raise sqlite3.OperationalError("torn")

    with Journal(tmp_path / "j.db", hospitals.digest) as journal:
        journal.append(entries[:1], 5)
        journal._db = TornDisk(journal._db)
        with pytest.raises(LedgerError):
            journal.append(entries[1:], 9)
        assert (journal.height, journal.position) == (1, 5)
    with Journal(tmp_path / "j.db", hospitals.digest) as journal:
        assert (journal.height, journal.position) == (1, 5)
        journal.append(entries[1:], 9)
    with Journal(tmp_path / "j.db", hospitals.digest) as journal:
        assert (journal.height, journal.position) == (2, 9)
        journal.append([], 12)
        journal.append([])
        assert journal.position == 12


def test_a_torn_write_loses_the_entries_and_their_position_together(tmp_path, hospitals):
    entries = hospitals.entries(2)
    path, wal = tmp_path / "j.db", tmp_path / "j.db-wal"
    with Journal(path, hospitals.digest) as journal:
        journal.append(entries[:1], 5)
        kept_bytes = wal.stat().st_size
        journal.append(entries[1:], 9)
        whole = wal.read_bytes()
        for number, size in enumerate([*range(kept_bytes, len(whole), 900), len(whole)]):
            torn = tmp_path / f"torn-{number}.db"
            torn.write_bytes(path.read_bytes())
            (tmp_path / f"torn-{number}.db-wal").write_bytes(whole[:size])
            with Journal(torn, hospitals.digest) as again:
                assert (again.height, again.position) == ((2, 9) if size == len(whole) else (1, 5))


def test_a_journal_from_before_engines_with_blocks_opens(tmp_path, hospitals):
    entries = hospitals.entries(2)
    with Journal(tmp_path / "j.db", hospitals.digest) as journal:
        journal.append(entries[:1])
    with sqlite3.connect(tmp_path / "j.db") as database:
        database.execute("DROP TABLE engine")
    database.close()
    with Journal(tmp_path / "j.db", hospitals.digest, read_only=True) as journal:
        assert list(journal.read()) == entries[:1]
    with Journal(tmp_path / "j.db", hospitals.digest) as journal:
        assert journal.position == 0
        journal.append(entries[1:], 3)
    with Journal(tmp_path / "j.db", hospitals.digest) as journal:
        assert (journal.height, journal.position) == (2, 3)
        journal.forget_position()
    with Journal(tmp_path / "j.db", hospitals.digest) as journal:
        assert (journal.height, journal.position, journal.head) == (2, 0, entry_digest(entries[1]))


# --- the pool, and who is let in -------------------------------------------------------------------


async def test_a_call_is_let_into_the_pool_or_refused_with_a_reason(node):
    assert await node.ask("check_tx", tx=node.call(1)) == {}
    refused = await node.ask("check_tx", tx=node.call(0))
    assert (refused["code"], refused["codespace"]) == (1, "replayed")
    assert "does not follow" in refused["log"]
    assert (await node.ask("check_tx", tx=b'{"caller":"\\ud800"}'))["code"] == 1
    await node.block([node.call(1)])
    assert (await node.ask("check_tx", tx=node.call(1), type=1))["codespace"] == "replayed"
    assert await node.ask("check_tx", tx=node.call(2), type=1) == {}


async def test_one_member_cannot_fill_the_pool_with_calls_that_never_follow(node):
    """Were each of them let in, the pool would be full for everybody, for as long as the member likes."""
    taken = 0
    for mark in range(20):
        for number in range(2, 40):
            signed = node.world.signed("nice", number, Announce((f"h{mark}.example:1",)))
            taken += await node.ask("check_tx", tx=signed) == {}
    assert taken == 38, "one a number"
    assert await node.ask("check_tx", tx=node.call(1)) == {}
    members = POOL_CALLS // SEQUENCE_WINDOW
    assert members > 70, "so many members at once have room for all that they may have waiting"
    assert SEQUENCE_WINDOW * 200 < BURST_BYTES < POOL_CALLS * MAX_CALL_FRAMED_BYTES


async def test_a_number_is_free_again_once_a_block_has_decided_or_the_engine_was_started(node):
    one, other = node.world.signed("nice", 1, Tick("aml")), node.call(1, "nice")
    assert await node.ask("check_tx", tx=one) == {}
    assert (await node.ask("check_tx", tx=other))["codespace"] == "number_taken"
    assert await node.ask("check_tx", tx=one) == {}, "the same again is the same"
    await node.block([one])  # refused
    assert await node.ask("check_tx", tx=other) == {}
    third = node.world.signed("nice", 1, Announce(("h.example:1",)))
    assert (await node.ask("check_tx", tx=third))["codespace"] == "number_taken"
    await node.ask("info")
    assert await node.ask("check_tx", tx=third) == {}
    await node.block([other])
    assert await node.ask("check_tx", tx=node.call(2, "nice")) == {}


async def test_what_a_member_may_have_waiting_is_bounded_by_its_budget_and_own_calls_are_not(node, clock):
    def long_call(name, number):
        return node.world.signed(name, number, Announce(tuple(f"{'h' * 250}.{n}:1" for n in range(200))))

    one_bytes = len(long_call("nice", 1))
    answers = [await node.ask("check_tx", tx=long_call("nice", number)) for number in range(1, 60)]
    spaces = [answer.get("codespace", "") for answer in answers]
    assert spaces.index("too_fast") == BURST_BYTES // one_bytes
    own = [await node.ask("check_tx", tx=long_call("lyon", number)) for number in range(1, 60)]
    assert own == [{}] * 59
    clock.on(60)
    assert await node.ask("check_tx", tx=long_call("nice", 59)) == {}


async def test_only_members_nodes_are_let_in(node):
    member = key_address(node.world.keys["nice"].public).hex()
    assert await node.ask("query", path=f"/p2p/filter/id/{member}") == {}
    assert await node.ask("query", path="/p2p/filter/addr/127.0.0.1:1") == {}
    for path in (f"/p2p/filter/id/{'0' * 40}", "/p2p/filter/id/", "/store", "", f"/p2p/filter/id/{member}0"):
        assert (await node.ask("query", path=path))["code"] == 1


async def test_proof_of_misbehaviour_is_told_with_the_members_name(node):
    address = key_address(node.world.keys["metz"].public)
    proof = [{"type": 1, "validator": {"address": address, "power": 1}, "height": 7}]
    await node.show([], START_S + 1, misbehavior=proof)
    assert node.proofs == [[("metz", "signed two different votes", 7)]]


async def test_a_block_that_no_honest_node_proposes_is_rejected(node):
    assert await node.ask("process_proposal", txs=[b"junk"]) == {"status": REJECT}
    assert await node.ask("process_proposal", txs=[node.call(2)]) == {"status": REJECT}


async def test_what_this_application_does_not_have_is_answered_with_nothing(node):
    for kind in ("list_snapshots", "flush", "extend_vote", "offer_snapshot"):
        assert await node.keeper.answer(kind, message("Empty")()) == {}
    assert await node.ask("echo", message="hello") == {"message": "hello"}


async def test_a_member_that_came_later_is_let_in_while_blocks_are_applied_from_the_first(node):
    world = node.world
    newcomer = replace(
        world.genesis.members[0], name="zug", spiffe_id="spiffe://zug.example/node", ledger_key="ab" * 32
    )
    await node.block([])
    await node.block([world.signed("lyon", 1, ProposeAdmit(newcomer))])
    votes = [world.signed(name, 1, Vote(1, yes=True)) for name in world.keys if name != "lyon"]
    await node.block(votes)
    assert node.replica.state.members["zug"].active
    path = f"/p2p/filter/id/{key_address('ab' * 32).hex()}"
    assert await node.ask("query", path=path) == {}
    await node.keeper.begin_anew()
    assert "zug" not in node.keeper.app.state.members
    assert await node.ask("query", path=path) == {}
