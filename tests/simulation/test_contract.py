"""The contract keeps the rules: a machine drives both, planted bugs are found, and it is fit for a chain."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
from blake3 import blake3
from contract_machine import drive
from contract_planted import BUGS, IN_CONTRACT, IN_RULES
from contract_story import (
    GENESIS,
)
from contract_twin import CODE_BYTES, FOLDER, Chain, compiled, sources

from konsil.core.digest import root_from
from konsil.core.rules import HANDLERS
from konsil.ledger.ethereum.calldata import SIGNATURES
from konsil.ledger.ethereum.founding import BEHIND
from konsil.ledger.ethereum.words import Words, encode, selector

# --- machines and planted bugs ---------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_rules_and_contract_say_the_same_whatever_members_do():
    drive(150, 50)


def test_there_are_ten_planted_bugs_on_either_side():
    assert len(IN_CONTRACT) >= 10
    assert len(IN_RULES) >= 10


@pytest.mark.parametrize("name", BUGS)
@pytest.mark.timeout(600)
def test_a_planted_bug_is_found(name):
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("contract_planted.py"), name],
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout, f"not found: {name}"


# --- the contract as it stands on a chain ----------------------------------------------------------


def test_each_contract_fits_and_all_have_one_layout():
    from vyper.compiler import compile_from_file_input  # noqa: PLC0415 - slow to load
    from vyper.compiler.input_bundle import FilesystemInputBundle  # noqa: PLC0415 - slow to load

    assert all(0 < size <= CODE_BYTES for size in Chain(GENESIS).sizes.values())
    bundle = FilesystemInputBundle([FOLDER])
    layouts = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("swarm", *BEHIND):
            file = bundle.load_file(Path(f"{name}.vy"))
            made = compile_from_file_input(file, input_bundle=bundle, output_formats=("layout",))
            layouts.append(made["layout"]["storage_layout"])
    assert "studies" in layouts[0]["state"]
    assert all(layout == layouts[0] for layout in layouts)


def test_the_compiler_is_the_one_that_the_files_name():
    assert all(f"# pragma version {version('vyper')}\n" in text for _, text in sources())
    assert all("# pragma evm-version paris\n" in text for _, text in sources())


def test_every_call_has_a_function_of_its_own():
    assert len({selector(signature) for signature in SIGNATURES.values()}) == len(SIGNATURES)
    assert {kind for kinds in BEHIND.values() for kind in kinds} == set(SIGNATURES) == set(HANDLERS)


@pytest.mark.parametrize("n", [1, 2, 3, 31, 32, 33, 64, 65, 97, 129, 225, 255, 256])
def test_a_merges_digest_is_blake3(n):
    ask = _blake3()
    digests = [blake3(bytes([i % 256, i // 256])).digest() for i in range(n)]
    said = ask(selector("root(bytes32[])") + encode([digests]))
    assert said.hex() == root_from(digests[0].hex(), [each.hex() for each in digests[1:]])


@pytest.mark.parametrize(
    ("n", "number", "attempt"), [(2, 1, 1), (8, 999_999, 10), (9, 10, 99), (255, 7, 123_456)]
)
def test_draws_are_blake3s_stream(n, number, attempt):
    base = blake3(bytes([n])).digest()
    said = _blake3()(selector("draws(bytes32,uint256,uint256,uint256)") + encode([base, number, attempt, n]))
    seed = f"{base.hex()}/{number}/{attempt}".encode()
    stream = blake3(seed, derive_key_context="konsil 2026 deal of parts").digest(length=8 * n)
    drawn = Words(said).numbers(0)
    assert [int.from_bytes(stream[8 * i : 8 * i + 8], "big") for i in range(n)] == list(drawn[:n])


def _blake3():
    import pyrevm  # noqa: PLC0415 - slow to load

    asked = """
import blake3

@external
@pure
def root(digests: DynArray[bytes32, 256]) -> bytes32:
    return blake3.root(digests)

@external
@pure
def draws(base: bytes32, number: uint256, attempt: uint256, n: uint256) -> DynArray[uint256, 256]:
    return blake3.draws(base, number, attempt, n)
"""
    texts = tuple((name, text) for name, text in sources() if name == "blake3")
    code = compiled((*texts, ("asked", asked)), ("asked",))["asked"]
    evm = pyrevm.EVM(gas_limit=2**63, spec_id="MERGE")
    me = "0x" + "11" * 20
    at = evm.deploy(me, code)
    return lambda data: bytes(evm.message_call(me, at, calldata=data))
