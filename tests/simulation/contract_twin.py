"""The rules in Python and in Vyper side by side: every call goes to both, and both must say the same.

The contract runs in a machine of this process (revm). It is compiled once a source; `source` may be changed to
plant a bug, which then must be found.
"""

from __future__ import annotations

import functools
import json
import re
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import pyrevm
from msgspec.structs import replace

from konsil.core.digest import bytes_digest
from konsil.core.rules import (
    Call,
    Genesis,
    StudySettings,
    apply,
    canonical,
    initial_state,
)
from konsil.errors import Refused
from konsil.ledger.ethereum.calldata import decode_call, encode_call
from konsil.ledger.ethereum.directory import Directory
from konsil.ledger.ethereum.founding import BEHIND, founding_data
from konsil.ledger.ethereum.seen_in_state import seen_in_state
from konsil.ledger.ethereum.seen_on_chain import refresh, seen_on_chain

FOLDER = Path(__file__).parents[2] / "src" / "konsil" / "ledger" / "ethereum" / "contract"
CACHE = Path(__file__).parents[2] / ".pytest_cache" / "contract"
CODE_BYTES = 24_576
"""The most that a contract may have on any Ethereum since 2016."""

GAS = 30_000_000
"""What a block of a public chain holds; a call must take far less."""

Sources = tuple[tuple[str, str], ...]


@functools.cache
def sources() -> Sources:
    """The contract's files: name, text."""
    return tuple((path.stem, path.read_text()) for path in sorted(FOLDER.glob("*.vy")))


@functools.cache
def compiled(texts: Sources, names: tuple[str, ...] = ("swarm", *BEHIND)) -> dict[str, bytes]:
    """What puts each contract on a chain. Compiling takes seconds: the cache remembers it between processes."""
    place = CACHE / f"{bytes_digest(repr((texts, version('vyper'))).encode(), 'contract')}.json"
    if place.exists():
        return {name: bytes.fromhex(code) for name, code in json.loads(place.read_text()).items()}
    found = _compile(texts, names)
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=CACHE, delete=False) as file:
        json.dump({name: code.hex() for name, code in found.items()}, file)
    Path(file.name).rename(place)  # whole, or not at all: several processes may do so at once
    return found


def _compile(texts: Sources, names: tuple[str, ...]) -> dict[str, bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vyper.compiler import compile_from_file_input  # noqa: PLC0415 - slow to load
        from vyper.compiler.input_bundle import FilesystemInputBundle  # noqa: PLC0415 - slow to load

        found = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, text in texts:
                Path(folder, f"{name}.vy").write_text(text)
            bundle = FilesystemInputBundle([Path(folder)])
            for name in names:
                file = bundle.load_file(Path(f"{name}.vy"))
                made = compile_from_file_input(file, input_bundle=bundle, output_formats=("bytecode",))
                found[name] = bytes.fromhex(made["bytecode"][2:])
    return found


def account(name: str) -> bytes:
    """A member's Ethereum account."""
    return name.encode()[:20].rjust(20, b"\1")


def _hex(address: bytes) -> str:
    return "0x" + address.hex()


class Chain:
    """A swarm's contract in a machine of its own."""

    def __init__(self, genesis: Genesis, texts: Sources | None = None) -> None:
        """Put the contract on a new chain."""
        self.evm = pyrevm.EVM(gas_limit=2**63, spec_id="MERGE")
        self.founder = _hex(account("founder"))
        self.gas: dict[str, list[int]] = {}
        self.sizes: dict[str, int] = {}
        codes = compiled(texts or sources())
        addresses = {name: self._deploy(name, codes[name]) for name in BEHIND}
        accounts = {record.name: account(record.name) for record in genesis.members}
        self.swarm = _hex(self._deploy("swarm", codes["swarm"] + founding_data(genesis, accounts, addresses)))
        self.directory = refresh(Directory(), self.ask)

    def _deploy(self, name: str, code: bytes) -> bytes:
        address = self.evm.deploy(self.founder, code)
        self.sizes[name] = len(self.evm.get_code(address).rstrip(b"\0"))
        self.gas[f"put {name}"] = [self.evm.result.gas_used]
        return bytes.fromhex(address[2:])

    def at(self, now_s: int) -> None:
        """Let the next block have this time."""
        self.evm.set_block_env(pyrevm.BlockEnv(timestamp=now_s, gas_limit=2**63))

    def ask(self, data: bytes) -> bytes:
        """As eth_call: nothing of it stays."""
        before = self.evm.snapshot()
        try:
            return bytes(self.evm.message_call(self.founder, self.swarm, calldata=data))
        finally:
            self.evm.revert(before)

    def send(self, sender: bytes, data: bytes, to: bytes | None = None) -> str:
        """A transaction; the code with which it was refused, or ""."""
        before = self.evm.snapshot()
        try:
            self.evm.message_call(_hex(sender), self.swarm if to is None else _hex(to), calldata=data)
        except RuntimeError as error:
            self.evm.revert(before)
            return _reason(str(error))
        self.evm.commit()  # what is not committed counts as one call within another, and those are at most 1,024
        return ""


def _reason(text: str) -> str:
    found = re.search(r"0x08c379a0([0-9a-f]+)", text)
    if found is None:
        raise AssertionError(f"The contract stopped without a code: {text[:400]}")
    raw = bytes.fromhex(found[1])
    return raw[64 : 64 + int.from_bytes(raw[32:64], "big")].decode()


class Twin:
    """Both, kept in step."""

    def __init__(self, genesis: Genesis, texts: Sources | None = None) -> None:
        """Found the swarm in both."""
        self.chain = Chain(genesis, texts)
        self.state = initial_state(genesis)
        self.accounts = {record.name: account(record.name) for record in genesis.members}
        self.now_s = genesis.created_s
        self.settings: dict[str, StudySettings] = {}
        self.refused: dict[str, int] = {}
        self.compare()

    @property
    def directory(self) -> Directory:
        """What the contract's numbers stand for now."""
        return replace(self.chain.directory, accounts=self.accounts)

    def settings_digest(self, study: str) -> str:
        """Of the settings that a study has in the rules."""
        found = self.state.studies.get(study)
        return "" if found is None else found.settings_digest

    def do(self, caller: str, call: Call, sequence: int | None = None) -> str:
        """Make a call on both; the code with which both refused it, or ""."""
        if sequence is None:
            member = self.state.members.get(caller)
            sequence = member.sequence + 1 if member is not None else 1
        code, after = "", self.state
        try:
            after = apply(self.state, caller, sequence, call, self.now_s)
        except Refused as refused:
            code = refused.code
        said = self._on_chain(caller, sequence, call)
        assert said == code, f"{call} of {caller}: the rules say {code!r}, the contract says {said!r}"
        self.state = after
        if code:
            self.refused[code] = self.refused.get(code, 0) + 1
        else:
            self.chain.directory = refresh(self.chain.directory, self.chain.ask)
        self.compare()
        return code

    def _on_chain(self, caller: str, sequence: int, call: Call) -> str:
        study = getattr(call, "study", "")
        try:
            call = canonical(call)
            data = encode_call(call, sequence, self.directory, self.settings_digest(study))
        except Refused as refused:
            return refused.code
        self.chain.at(self.now_s)
        directory = self.directory
        code = self.chain.send(self.accounts.get(caller, account(caller)), data)
        if not code:
            name = type(call).__name__
            self.chain.gas.setdefault(name, []).append(self.chain.evm.result.gas_used)
            read = decode_call(data, directory, self.settings_digest)
            assert read == (sequence, _as_read(call)), "the call's data stand for another call"
        return code

    def compare(self) -> None:
        """See that the contract shows what the rules' state holds."""
        rules = seen_in_state(self.state, self.chain.directory)
        contract = seen_on_chain(self.chain.ask, self.chain.directory)
        if rules != contract:
            raise AssertionError("\n".join(_differences("", rules, contract)))


def _as_read(call: Call) -> Call:
    named = getattr(call, "unreachable", None)
    return call if named is None else replace(call, unreachable=tuple(sorted(set(named))))


def _differences(where: str, one: object, other: object) -> list[str]:
    if one == other:
        return []
    if hasattr(one, "__struct_fields__") and type(one) is type(other):
        pairs = [(name, getattr(one, name), getattr(other, name)) for name in one.__struct_fields__]
    elif isinstance(one, dict) and isinstance(other, dict):
        pairs = [(str(key), one.get(key), other.get(key)) for key in sorted({*one, *other})]
    elif isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        pairs = [(str(at), a, b) for at, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        return [f"{where}: the rules have {one!r}, the contract has {other!r}"]
    return [line for name, a, b in pairs for line in _differences(f"{where}.{name}", a, b)]
