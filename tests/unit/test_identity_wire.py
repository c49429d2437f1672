from __future__ import annotations

import asyncio
import time

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from spiffe._proto import workload_pb2 as standard

from konsil.errors import ConfigError, IdentityError
from konsil.identity.authority import Authority
from konsil.identity.source import SvidSource, socket_path
from konsil.identity.spiffe_id import SpiffeId
from konsil.identity.svid import is_signature, load_certificate, make_svid
from konsil.identity.verify import verify_chain
from konsil.identity.workload_api import WorkloadApi
from konsil.identity.workload_wire import (
    MAX_ANSWER_BYTES,
    WireSvid,
    decode_svids,
    encode_bundles,
    encode_svids,
)

_svids = st.lists(
    st.builds(
        WireSvid,
        spiffe_id=st.text(min_size=1, max_size=300),
        chain=st.binary(min_size=1, max_size=300),
        key=st.binary(min_size=1, max_size=20),
        bundle=st.binary(min_size=1, max_size=20),
        hint=st.text(max_size=5),
    ),
    max_size=3,
).map(tuple)


def _standard(svids):
    return standard.X509SVIDResponse(
        svids=[
            standard.X509SVID(
                spiffe_id=one.spiffe_id,
                x509_svid=one.chain,
                x509_svid_key=one.key,
                bundle=one.bundle,
                hint=one.hint,
            )
            for one in svids
        ],
        crl=[b"revocations"],
        federated_bundles={"spiffe://metz.example": b"foreign"},
    )


@given(_svids)
def test_the_standards_own_library_reads_what_we_write(svids):
    parsed = standard.X509SVIDResponse.FromString(encode_svids(svids))
    assert [(s.spiffe_id, s.x509_svid, s.x509_svid_key, s.bundle, s.hint) for s in parsed.svids] == list(
        svids
    )


@given(_svids)
def test_we_read_what_the_standards_own_library_writes_and_step_over_the_rest(svids):
    assert decode_svids(_standard(svids).SerializeToString()) == svids


@given(st.dictionaries(st.text(min_size=1, max_size=20), st.binary(min_size=1, max_size=200), max_size=3))
def test_bundles_are_read_by_the_standards_own_library(bundles):
    assert dict(standard.X509BundlesResponse.FromString(encode_bundles(bundles)).bundles) == bundles


def test_fields_of_kinds_to_come_are_stepped_over():
    svid = WireSvid("spiffe://lyon.example/node", b"c", b"k", b"b")
    later = b"\x78\x96\x01" + b"\x79" + bytes(8) + b"\x7d" + bytes(4)  # field 15 as varint, 64 and 32 bits
    assert decode_svids(later + encode_svids((svid,)) + later) == (svid,)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_and_nothing_else(data):
    try:
        decode_svids(data)
    except IdentityError as error:
        assert "cannot be read" in str(error)  # noqa: PT017 - most bytes are refused, some are a message


def test_a_torn_answer_is_refused():
    whole = encode_svids((WireSvid("spiffe://lyon.example/node", b"c" * 300, b"k", b"b" * 9),))
    for length in range(1, len(whole)):
        with pytest.raises(IdentityError, match="cannot be read"):
            decode_svids(whole[:length])


def test_an_svid_without_one_of_its_parts_is_refused():
    for missing in range(4):
        parts = ["id", b"c", b"k", b"b"]
        parts[missing] = type(parts[missing])()
        with pytest.raises(IdentityError, match="lacks"):
            decode_svids(encode_svids((WireSvid(*parts),)))


def test_an_oversized_answer_is_refused():
    with pytest.raises(IdentityError, match=str(MAX_ANSWER_BYTES + 1)):
        decode_svids(bytes(MAX_ANSWER_BYTES + 1))


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/run/agent.sock",
        "unix://run/agent.sock",
        "tcp://127.0.0.1:8081",
        "unix://",
        "unix:///a?b",
        "unix:///a\0b",
    ],
)
def test_an_address_that_is_no_unix_socket_is_refused(address, monkeypatch):
    monkeypatch.delenv("SPIFFE_ENDPOINT_SOCKET", raising=False)
    with pytest.raises(IdentityError, match="not the address"):
        SvidSource.open(address)


def test_the_standards_environment_variable_gives_the_address(monkeypatch):
    assert socket_path("unix:///run/spire/agent.sock") == "/run/spire/agent.sock"
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", "unix:///run/spire/agent.sock")
    assert SvidSource.open()._path == "/run/spire/agent.sock"


def _wire(authority, svid):
    return WireSvid(svid.spiffe_id, b"".join(svid.chain_der), svid.key_der, authority.bundle_der)


def _without_its_point(svid):
    """The chain, with a key that is not on its curve."""
    leaf = svid.chain_der[0]
    point = svid.private_key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    return leaf.replace(point, point[:1] + bytes(64)) + b"".join(svid.chain_der[1:])


@pytest.fixture
def lyon(tmp_path):
    return Authority.create(tmp_path / "lyon", "lyon.example")


def test_the_first_svid_is_taken_unless_another_was_asked_for(lyon):
    answer = encode_svids(tuple(_wire(lyon, lyon.issue(path)) for path in ("/node", "/other")))
    first, other, none = (
        SvidSource("unix:///s", name)
        for name in ("", "spiffe://lyon.example/other", "spiffe://lyon.example/x")
    )
    first._take(answer)
    other._take(answer)
    assert (first.svid.spiffe_id, other.svid.spiffe_id) == (
        "spiffe://lyon.example/node",
        "spiffe://lyon.example/other",
    )
    with pytest.raises(IdentityError, match="issues"):
        none._take(answer)


def test_a_bad_answer_never_replaces_a_good_svid(lyon, tmp_path):
    metz = Authority.create(tmp_path / "metz", "metz.example")
    good, bad = lyon.issue(), lyon.issue()
    source = SvidSource("unix:///s")
    source._take(encode_svids((_wire(lyon, good),)))
    for wire in (
        _wire(metz, bad),
        _wire(lyon, bad)._replace(key=good.key_der),
        _wire(lyon, bad)._replace(chain=b"none"),
        _wire(lyon, bad)._replace(chain=_without_its_point(bad)),
        _wire(lyon, bad)._replace(bundle=bad.chain_der[0]),
        _wire(lyon, lyon.issue(ttl_s=10, now_s=time.time() - 60)),
        _wire(lyon, lyon.issue(now_s=time.time() + 7200)),
    ):
        with pytest.raises(IdentityError):
            source._take(encode_svids((wire,)))
    with pytest.raises(IdentityError):
        source._take(b"")
    assert source.svid == good
    assert source.generation == 1


def test_an_expired_svid_is_not_handed_out(lyon):
    now_s = [time.time()]
    source = SvidSource("unix:///s", clock=lambda: now_s[0])
    source._take(encode_svids((_wire(lyon, lyon.issue(ttl_s=60)),)))
    assert source.svid
    now_s[0] += 120
    with pytest.raises(IdentityError, match="has expired, and /s issued no other"):
        _ = source.svid


async def test_a_listener_hears_every_new_svid_until_it_stops(lyon):
    source = SvidSource("unix:///s")
    heard = []
    stop = source.on_change(lambda: heard.append(source.svid))
    waiting = asyncio.create_task(source.changed(0, 5))
    await asyncio.sleep(0)
    source._take(encode_svids((_wire(lyon, lyon.issue()),)))
    assert await waiting == 1
    stop()
    source._take(encode_svids((_wire(lyon, lyon.issue()),)))
    assert len(heard) == 1
    assert await source.changed(2, 0.01) == 2


async def test_without_a_socket_the_wait_ends_and_says_why(tmp_path):
    async with SvidSource.open(f"unix://{tmp_path}/none.sock") as source:
        with pytest.raises(IdentityError, match="there is no such socket"):
            await source.wait_ready(0.3)
        with pytest.raises(IdentityError, match="there is no such socket"):
            _ = source.svid
        with pytest.raises(IdentityError, match="there is no such socket"):
            _ = source.bundle
        assert "there is no such socket" in source.problem


async def test_a_socket_path_that_cannot_be_served_is_refused(lyon, tmp_path):
    (tmp_path / "file").write_text("not a socket")
    for path, why in (
        (tmp_path / ("x" * 100), "longer than"),
        (tmp_path / "file", "something else than a socket"),
        (tmp_path / "file" / "s", "cannot be used"),
    ):
        with pytest.raises(ConfigError, match=why):
            async with WorkloadApi(lyon, path):
                pass
    assert (tmp_path / "file").read_text() == "not a socket"


def test_svids_with_rsa_keys_are_used_alike(lyon):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    ends = lyon.issue()
    leaf = load_certificate(ends.chain_der[0])
    built = lyon._sign_leaf(
        key.public_key(),
        SpiffeId.parse("spiffe://lyon.example/node"),
        leaf.not_valid_before_utc,
        leaf.not_valid_after_utc,
    )
    der = built.public_bytes(serialization.Encoding.DER)
    svid = make_svid(
        [der],
        key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
    assert verify_chain([der], lyon.bundle, svid.spiffe_id, time.time())
    signature = svid.sign(b"card")
    assert is_signature(built, b"card", signature)
    assert not is_signature(built, b"card!", signature)
    assert not is_signature(leaf, b"card", signature)
    assert built.signature_hash_algorithm.name == hashes.SHA256().name


async def test_a_listener_that_fails_does_not_end_the_following(lyon):
    source = SvidSource("unix:///s")
    heard = []

    def fail():
        raise RuntimeError("a fault of the listener's own")

    source.on_change(fail)
    source.on_change(lambda: heard.append(1))
    source._take(encode_svids((_wire(lyon, lyon.issue()),)))
    assert heard == [1]
