"""A history in one file: whatever is changed in it is found, and it needs nothing else to be verified."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from konsil.core.digest import bytes_digest
from konsil.core.rules import Member, MemberRecord, State, SwarmSettings, genesis_digest, state_digest
from konsil.errors import ConfigError, JournalCorrupt
from konsil.identity.card import check_record, read_card
from konsil.identity.ledger_key import verify
from konsil.ledger.bundle import LocalProof, check_bundle, write_bundle
from konsil.ledger.bundle.lines import MAX_LINE_BYTES, Bundle, EntryLine, GenesisLine, Lines, encode_line
from konsil.ledger.bundle.proof import Keepers
from konsil.ledger.bundle.summary import summary
from konsil.ledger.history import put_on

KINDS = ("bundle", "genesis", "entry", "card", "state", "study", "round", "proof", "end")
PAGE = Path(__file__).parents[3] / "docs" / "audit-bundle.md"


def check(path: Path):
    return check_bundle(path, verify, lambda data, record: check_record(read_card(data), record))


@pytest.fixture(scope="session")
def verified(tmp_path_factory):
    """A function from a bundle's bytes to what is found in them."""
    path = tmp_path_factory.mktemp("verified") / "b"

    def found(data: bytes):
        path.write_bytes(data)
        return check(path)

    return found


def sealed(lines: list[bytes]) -> bytes:
    """Lines with an end that fits them again, as whoever changes a bundle on purpose makes it."""
    end = json.loads(lines[-1])
    end["digest"] = bytes_digest(b"".join(lines[:-1]), "audit bundle")
    return b"".join(lines[:-1]) + json.dumps(end, separators=(",", ":")).encode() + b"\n"


def where(lines: list[bytes], kind: str) -> int:
    """A line of this kind, the last but one where there are several."""
    found = [at for at, line in enumerate(lines) if line.startswith(f'{{"kind":"{kind}"'.encode())]
    return found[-2] if len(found) > 1 else found[0]


def test_a_bundle_gives_the_state_that_the_members_have(history, bundle, verified):
    found = verified(bundle)
    assert found.state == history.state
    assert (found.head, found.genesis, found.genesis_digest) == (
        history.head,
        history.genesis,
        history.digest,
    )
    assert (found.cards, found.lacking) == (4, ())
    assert found.proof == LocalProof("lyon")
    assert (found.calls["score"], found.calls["propose_admit"]) == (9, 1)
    assert sum(found.calls.values()) == len(history.entries) == found.state.height
    assert (found.begun_s, found.ended_s) == (history.entries[0].time_s, history.now_s)
    study = found.state.studies["heart"]
    absent = [{}, {"rennes": "struck"}, {"lille": "left", "rennes": "struck"}]
    assert [record.absent for record in study.history] == absent
    assert study.history[1].disputes[0].outcome == "wrong"


def test_the_same_history_gives_the_same_bytes_at_every_member(history, bundle, tmp_path):
    for name in ("one", "two"):
        journal = history.journal(tmp_path / f"{name}.db")
        write_bundle(tmp_path / name, history.genesis, journal, verify, history.cards.get)
        assert (tmp_path / name).read_bytes() == bundle


def test_a_member_without_a_card_here_is_named(history, tmp_path):
    journal = history.journal(tmp_path / "l.db")
    lacking = history.newcomer.card
    cards = {digest: data for digest, data in history.cards.items() if digest != lacking}
    damaged = cards | {lacking: history.cards[lacking] + b" "}
    for here in (cards, damaged):
        made = write_bundle(tmp_path / "b", history.genesis, journal, verify, here.get)
        assert (made.cards, made.lacking) == (3, ("rennes",))
        assert check(tmp_path / "b").lacking == ("rennes",)


def test_a_history_without_a_call_is_a_bundle_too(history, tmp_path):
    journal = history.journal(tmp_path / "l.db", 0)
    write_bundle(tmp_path / "b", history.genesis, journal, verify, history.cards.get)
    found = check(tmp_path / "b")
    assert (found.state.height, found.head, found.cards) == (0, history.digest, 3)


def test_the_summary_is_what_each_states_digest_is_made_from(history):
    for state in history.states:
        texts, studies = "", []
        for line, _ in summary(state):
            match line.__struct_config__.tag:
                case "state":
                    texts = line.text
                case "study":
                    studies.append((line.name, line.text, []))
                case "round":
                    studies[-1][2].append(bytes_digest(line.text.encode(), "round"))
        told = ",".join(
            f'"{name}":[{text},{json.dumps(rounds, separators=(",", ":"))}]' for name, text, rounds in studies
        )
        assert bytes_digest(f"[{texts},{{{told}}}]".encode(), "state") == state_digest(state)


# --- what was changed ----------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_byte_in_any_line_is_found(bundle, verified, kind, place):
    lines = bundle.splitlines(keepends=True)
    at = where(lines, kind)
    line = bytearray(lines[at])
    line[int(place * len(line))] ^= 1
    lines[at] = bytes(line)
    with pytest.raises(JournalCorrupt, match="does not hold at line"):
        verified(b"".join(lines))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_passes(bundle, verified, data):
    at = data.draw(st.integers(0, len(bundle) - 1))
    changed = bytearray(bundle)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(JournalCorrupt):
        verified(bytes(changed))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_done_to_its_lines_it_passes_only_with_the_same_facts(history, bundle, verified, data):
    lines = bundle.splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 2))
        match data.draw(st.sampled_from(["drop", "twice", "swap", "change"])):
            case "drop":
                del lines[at]
            case "twice":
                lines.insert(at, lines[at])
            case "swap":
                to = data.draw(st.integers(0, len(lines) - 2))
                lines[at], lines[to] = lines[to], lines[at]
            case "change":
                line = bytearray(lines[at])
                line[data.draw(st.integers(0, len(line) - 2))] = data.draw(
                    st.sampled_from(b'0123abc"\\{}[],: ')
                )
                lines[at] = bytes(line)
    try:
        found = verified(sealed(lines))
    except JournalCorrupt:
        return
    # What may be left out without a contradiction is what the bundle then says that it lacks.
    assert (found.state, found.head, found.genesis) == (history.state, history.head, history.genesis)
    assert found.cards + len(found.lacking) >= 4
    assert found.proof in (None, LocalProof("lyon"))


def _with_other_signature(text: str) -> str:
    beginning, _, signature = text.partition('"signature":"')
    return beginning + '"signature":"' + signature[40:80] + signature[:40] + signature[80:]


def _changed(bundle: bytes, kind: str, field: str, value: object) -> bytes:
    lines = bundle.splitlines(keepends=True)
    at = where(lines, kind)
    line = json.loads(lines[at])
    known = line[field]
    line[field] = value(known) if callable(value) else value
    assert line[field] != known
    lines[at] = json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    return sealed(lines)


@pytest.mark.parametrize(
    ("kind", "field", "value", "why"),
    [
        ("bundle", "version", 2, "version 1"),
        ("bundle", "format", "konsil-audit-bundl", "cannot be read"),
        ("genesis", "text", lambda text: text.replace('"aml"', '"aix"'), "another entry as the one before"),
        ("genesis", "text", lambda text: text.replace('"lyon"', '"nobody"'), "cannot found a swarm"),
        ("genesis", "text", lambda text: text + " ", "canonical form"),
        ("genesis", "text", "[", "no genesis"),
        ("entry", "height", 7, "comes after height"),
        ("entry", "time_s", lambda time_s: time_s + 1, "state is not what its calls give"),
        ("entry", "time_s", 0, "time is before"),
        ("entry", "time_s", 2**64 - 1, "state is not what its calls give"),
        ("entry", "previous", "0" * 64, "another entry as the one before"),
        ("entry", "state", "0" * 64, "state is not what its calls give"),
        ("entry", "signed", lambda text: text.replace("a wrong merge", "a wrong word"), "state is not"),
        ("entry", "signed", _with_other_signature, "its signature is not that of 'lille'"),
        ("entry", "signed", lambda text: text.replace('"sequence":', '"sequence":1'), "comes before call|signature"),
        ("entry", "signed", "{}", "cannot be read"),
        ("card", "text", lambda text: text.replace("konsil/node", "konsil/nodf"), "not what its digest says"),
        ("card", "digest", "f" * 64, "never had this card"),
        ("state", "text", lambda text: text.replace('"active":true', '"active":false'), "without its studies"),
        ("study", "text", lambda text: text.replace('"struck":true', '"struck":false'), "study 'heart'"),
        ("round", "text", lambda text: text.replace('"examples":100', '"examples":999'), "round 2 of study"),
        ("round", "number", 9, "round 2 of study"),
        ("proof", "proof", {"engine": "local", "operator": "nice"}, "another operator"),
        ("proof", "proof", {"engine": "another"}, "cannot be read"),
        ("end", "height", 3, "does not end what comes before"),
        ("end", "head", "0" * 64, "does not end what comes before"),
    ],
)  # fmt: skip
def test_a_change_that_was_sealed_again_is_found_and_named(bundle, verified, kind, field, value, why):
    with pytest.raises(JournalCorrupt, match=why):
        verified(_changed(bundle, kind, field, value))


@pytest.mark.parametrize("how", ["swapped", "twice"])
def test_cards_stand_in_their_order_and_once(bundle, verified, how):
    lines = bundle.splitlines(keepends=True)
    at = where(lines, "card")
    lines[at], lines[at + 1] = lines[at + 1], lines[at + 1 if how == "twice" else at]
    with pytest.raises(JournalCorrupt, match="does not stand in its place"):
        verified(sealed(lines))


def test_a_line_has_one_form_only(bundle, verified):
    lines = bundle.splitlines(keepends=True)
    at = where(lines, "entry")
    lines[at] = lines[at].replace(b',"time_s"', b', "time_s"')
    with pytest.raises(JournalCorrupt, match="not in its one form"):
        verified(sealed(lines))


def test_a_time_beyond_all_numbers_is_refused_where_everything_else_fits(history, bundle, verified):
    """Times are not signed: whoever makes a bundle may stamp the last call as it likes."""
    last = history.entries[-1]
    entry, state = put_on(history.states[-2], last.previous, last.signed, 2**70, verify)
    lines = bundle.splitlines(keepends=True)
    at = where(lines, "entry") + 1
    made = [encode_line(EntryLine.of(entry)), *(encode_line(line) for line, _ in summary(state))]
    cards = [line for line in lines if line.startswith(b'{"kind":"card"')]
    with pytest.raises(JournalCorrupt, match="a number that no ledger can hold"):
        verified(sealed([*lines[:at], made[0], *cards, *made[1:], *lines[-2:]]))


def test_a_card_of_another_key_is_not_taken_for_the_members(bundle, history, tmp_path):
    """Its digest fits: only the check of the card itself can tell."""
    (tmp_path / "b").write_bytes(bundle)
    with pytest.raises(JournalCorrupt, match="cannot be trusted"):
        check_bundle(
            tmp_path / "b",
            verify,
            lambda data, _record: check_record(read_card(data), history.newcomer),
        )


@pytest.mark.parametrize("left", [0, 1, 40, 4000, -1, -30])
def test_a_bundle_that_was_cut_off_does_not_hold(bundle, verified, left):
    with pytest.raises(JournalCorrupt):
        verified(bundle[:left])


@pytest.mark.parametrize("more", [b"\n", b"x", b'{"kind":"bundle"}\n'])
def test_nothing_may_follow(bundle, verified, more):
    with pytest.raises(JournalCorrupt, match="nothing may follow"):
        verified(bundle + more)


HEAD = b'{"kind":"bundle","format":"konsil-audit-bundle","version":1}\n'


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 100,
        b"\x1f\x8b\x08\x00" + b"\x00" * 50,
        HEAD.replace(b"1}", b"1" * 400 + b"}"),
        HEAD + b'{"kind":"genesis","text":"\\ud800"}\n',
        HEAD + b'{"kind":"genesis","text":' + b"[" * 100_000 + b"}\n",
        HEAD + b'{"kind":"genesis","text":"' + b"[" * 100_000 + b'"}\n',
        HEAD + b'{"kind":"genesis"\n' + HEAD,
        HEAD.rstrip(b"\n") + b"\r\n",
        HEAD.replace(b'"kind":', b'"kind" :'),
    ],
)
def test_what_is_no_bundle_is_refused_in_words(verified, data):
    with pytest.raises(JournalCorrupt, match=r"does not hold at line [12]: "):
        verified(data)


def test_a_line_without_end_is_not_read_to_its_end(verified):
    with pytest.raises(JournalCorrupt, match=f"line 2: it is over the limit of {MAX_LINE_BYTES} bytes"):
        verified(HEAD + b'{"kind":"genesis","text":"' + b"x" * (MAX_LINE_BYTES + 1000))


def test_no_line_is_read_without_a_limit(bundle):
    class Stream(io.BytesIO):
        def readline(self, size=-1):
            assert 0 < size <= MAX_LINE_BYTES
            return super().readline(size)

    lines = Lines(Stream(bundle), "b")
    lines.take(Bundle)
    lines.take(GenesisLine)
    while lines.take_if(EntryLine):
        pass


def test_files_that_cannot_be_read_or_written_are_named(history, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        check(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        check(tmp_path / "none")
    journal = history.journal(tmp_path / "l.db")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_bundle(tmp_path / "none" / "b", history.genesis, journal, verify, history.cards.get)
    assert all(path.name.startswith("l.db") for path in tmp_path.iterdir())


def test_a_journal_that_does_not_hold_gives_no_bundle(history, tmp_path):
    journal = history.journal(tmp_path / "l.db")
    with pytest.raises(JournalCorrupt, match="signature"):
        write_bundle(tmp_path / "b", history.genesis, journal, lambda *_: False, history.cards.get)
    assert not (tmp_path / "b").exists()


# --- the page ------------------------------------------------------------------------------------


def _by_the_page(tmp_path: Path, data: bytes) -> subprocess.CompletedProcess[str]:
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert "konsil." not in program.replace("konsil v1", "").replace("konsil 2026", "")
    (tmp_path / "verifier.py").write_text(program)
    (tmp_path / "b").write_bytes(data)
    return subprocess.run(
        [sys.executable, "-I", str(tmp_path / "verifier.py"), str(tmp_path / "b")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_page_is_enough_to_write_a_verifier(history, bundle, tmp_path):
    done = _by_the_page(tmp_path, bundle)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"genesis {genesis_digest(history.genesis)}\nhead    {history.head}\n"
        f"{len(history.entries)} calls, all signed and linked\n"
    )


@pytest.mark.parametrize(
    ("kind", "field", "value", "why"),
    [
        ("entry", "signed", lambda text: text.replace("a wrong merge", "a wrong word"), "its signature is not"),
        ("entry", "time_s", lambda time_s: time_s + 1, "does not follow the entry before it"),
        ("round", "text", lambda text: text.replace('"examples":100', '"examples":999'), "summary is not"),
    ],
)  # fmt: skip
def test_the_pages_verifier_finds_a_change(bundle, tmp_path, kind, field, value, why):
    done = _by_the_page(tmp_path, _changed(bundle, kind, field, value))
    assert (done.returncode, why in done.stderr) == (1, True), done.stderr


# --- who kept the ledger -------------------------------------------------------------------------


def test_who_may_have_voted_on_the_last_entry_are_those_of_its_time_and_just_before():
    record = MemberRecord("a", "spiffe://a.example/node", "1" * 64, "2" * 64, "3" * 64)
    members = {
        name: Member(replace(record, name=name, ledger_key=key * 64), validates=True)
        for name, key in (("a", "a"), ("b", "b"), ("c", "c"))
    }

    def state(now_s: int, *names: str) -> State:
        changed = {name: replace(member, validates=name in names) for name, member in members.items()}
        return State("", "cometbft", "", SwarmSettings(), changed, now_s=now_s)

    def keys(names: str) -> frozenset[str]:
        return frozenset(name * 64 for name in names)

    keepers = Keepers(state(0, "a"))
    assert keepers.sets == (keys("a"),)
    keepers.note(state(5, "a", "b"))
    keepers.note(state(5, "b", "c"))
    assert keepers.sets == (keys("a"), keys("ab"), keys("bc"))
    keepers.note(state(6, "b", "c"))
    assert keepers.sets == (keys("bc"),)
    keepers.note(state(7, "c"))
    assert keepers.sets == (keys("bc"), keys("c"))


def test_an_engine_that_can_prove_nothing_leaves_the_line_out(history, tmp_path):
    journal = history.journal(tmp_path / "l.db")
    asked = []
    write_bundle(tmp_path / "b", history.genesis, journal, verify, history.cards.get, asked.append)
    assert asked == [history.head]
    assert check(tmp_path / "b").proof is None
