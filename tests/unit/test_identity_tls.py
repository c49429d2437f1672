from __future__ import annotations

import os
import ssl
import time
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from konsil.errors import IdentityError
from konsil.identity.authority import Authority
from konsil.identity.tls import ALPN, check_peer, client_context, peer_chain, refresh, server_context, trust


@pytest.fixture
def lyon(tmp_path):
    return Authority.create(tmp_path / "lyon", "lyon.example")


@pytest.fixture
def metz(tmp_path):
    return Authority.create(tmp_path / "metz", "metz.example")


def _has(svid):
    return SimpleNamespace(svid=svid)


def _issued(authority, **changes):
    return _has(authority.issue(**changes))


def _as(trust_domain, authority):
    """The authority of one trust domain, made to sign in another's name."""
    return Authority(trust_domain, authority.bundle, authority._certificate, authority._key)


def _connect(accepting, dialling):
    """Shake hands in memory; both ends, or the error of the first that refuses."""
    ends = []
    pipes = [ssl.MemoryBIO(), ssl.MemoryBIO()]
    for context, is_server in ((accepting, True), (dialling, False)):
        ends.append(context.wrap_bio(pipes[is_server], pipes[not is_server], server_side=is_server))
    for _ in range(6):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    ends[1].write(b"?")
    assert ends[0].read(1) == b"?"
    return ends


def test_two_members_know_each_other_after_the_handshake(lyon, metz):
    at_lyon, at_metz = _issued(lyon, ttl_s=60), _issued(metz, ttl_s=90)
    accepted, dialled = _connect(server_context(at_lyon, [metz.bundle]), client_context(at_metz, lyon.bundle))
    assert check_peer(accepted, {at_metz.svid.spiffe_id: metz.bundle}) == (
        "spiffe://metz.example/node",
        at_metz.svid.not_after_s,
    )
    assert check_peer(dialled, {at_lyon.svid.spiffe_id: lyon.bundle}) == (
        "spiffe://lyon.example/node",
        at_lyon.svid.not_after_s,
    )
    assert peer_chain(accepted) == list(at_metz.svid.chain_der)
    assert peer_chain(dialled) == list(at_lyon.svid.chain_der)
    assert (dialled.version(), dialled.selected_alpn_protocol()) == ("TLSv1.3", ALPN)


def test_a_stranger_does_not_pass_the_handshake(lyon, metz, tmp_path):
    stranger = Authority.create(tmp_path / "stranger", "nantes.example")
    with pytest.raises(ssl.SSLError):
        _connect(server_context(_issued(lyon), [metz.bundle]), client_context(_issued(stranger), lyon.bundle))
    with pytest.raises(ssl.SSLCertVerificationError):
        _connect(server_context(_issued(stranger), [metz.bundle]), client_context(_issued(metz), lyon.bundle))


def test_an_expired_certificate_does_not_pass_the_handshake(lyon, metz):
    old = _issued(metz, ttl_s=60, now_s=time.time() - 120)
    with pytest.raises(ssl.SSLError, match="expired"):
        _connect(server_context(_issued(lyon), [metz.bundle]), client_context(old, lyon.bundle))


def test_a_certificate_that_is_not_yet_valid_does_not_pass_the_handshake(lyon, metz):
    early = _issued(metz, now_s=time.time() + 7200)
    with pytest.raises(ssl.SSLError, match="not yet valid"):
        _connect(server_context(_issued(lyon), [metz.bundle]), client_context(early, lyon.bundle))


def test_a_member_that_signs_in_anothers_trust_domain_is_refused_right_after_the_handshake(lyon, metz):
    at_lyon = _issued(lyon)
    impostor = _issued(_as("nancy.example", metz))
    accepted, _ = _connect(
        server_context(at_lyon, [metz.bundle, lyon.bundle]), client_context(impostor, lyon.bundle)
    )
    nancy = impostor.svid.spiffe_id
    with pytest.raises(IdentityError, match="own trust bundle"):
        check_peer(accepted, {nancy: lyon.bundle, "spiffe://metz.example/node": metz.bundle})
    with pytest.raises(IdentityError, match="stranger"):
        check_peer(accepted, {"spiffe://metz.example/node": metz.bundle})


def test_a_removed_member_is_a_stranger_even_to_an_old_context(lyon, metz):
    context = server_context(_issued(lyon), [metz.bundle])
    accepted, _ = _connect(context, client_context(_issued(metz), lyon.bundle))
    with pytest.raises(IdentityError, match="stranger"):
        check_peer(accepted, {})


def test_a_certificate_that_ends_while_connected_is_refused_when_looked_at_again(lyon, metz):
    at_metz = _issued(metz, ttl_s=60)
    accepted, _ = _connect(server_context(_issued(lyon), [metz.bundle]), client_context(at_metz, lyon.bundle))
    with pytest.raises(IdentityError, match="expired"):
        check_peer(accepted, {at_metz.svid.spiffe_id: metz.bundle}, now_s=time.time() + 120)


def test_nobody_without_a_certificate_gets_in(lyon, metz):
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.verify_mode = ssl.CERT_NONE
    with pytest.raises(ssl.SSLError, match="did not return a certificate"):
        _connect(server_context(_issued(lyon), [metz.bundle]), bare)


def test_nothing_older_than_tls_1_3_is_spoken(lyon, metz):
    contexts = (server_context(_issued(lyon), [metz.bundle]), client_context(_issued(metz), lyon.bundle))
    for context in contexts:
        assert context.minimum_version == context.maximum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
    old = client_context(_issued(metz), lyon.bundle)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)version|protocol"):
        _connect(contexts[0], old)


def test_a_peer_that_speaks_another_protocol_is_refused(lyon, metz):
    other = client_context(_issued(metz), lyon.bundle)
    other.set_alpn_protocols(["h2"])
    accepted, _ = _connect(server_context(_issued(lyon), [metz.bundle]), other)
    with pytest.raises(IdentityError, match="konsil/1"):
        check_peer(accepted, {"spiffe://metz.example/node": metz.bundle})


def test_no_session_can_be_resumed(lyon, metz):
    context = server_context(_issued(lyon), [metz.bundle])
    assert context.num_tickets == 0
    _, dialled = _connect(context, client_context(_issued(metz), lyon.bundle))
    assert dialled.session is None or not dialled.session.has_ticket


def test_a_context_takes_a_new_svid_and_a_new_peer_without_a_restart(lyon, metz):
    at_lyon = _issued(lyon)
    context = server_context(at_lyon, [])
    with pytest.raises(ssl.SSLError):
        _connect(context, client_context(_issued(metz), lyon.bundle))
    at_lyon.svid = lyon.issue()
    refresh(context, at_lyon)
    trust(context, [metz.bundle])
    _, dialled = _connect(context, client_context(_issued(metz), lyon.bundle))
    assert peer_chain(dialled) == list(at_lyon.svid.chain_der)


def test_making_a_context_leaves_no_descriptor_open(lyon, metz):
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the folder of descriptors itself
    for _ in range(3):
        server_context(_issued(lyon), [metz.bundle])
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above


def test_an_authority_that_another_one_signed_is_an_anchor_all_the_same(lyon, metz):
    signed = _signed_by(lyon, metz)
    accepted, _ = _connect(
        server_context(_issued(lyon), [signed.bundle]), client_context(_issued(signed), lyon.bundle)
    )
    assert check_peer(accepted, {"spiffe://metz.example/node": signed.bundle})


def _signed_by(above, below):
    """The same authority, with a certificate that another one made for it, as under a hospital's own root."""
    own = below._certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(own.subject)
        .issuer_name(above._certificate.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(own.not_valid_before_utc)
        .not_valid_after(own.not_valid_after_utc)
    )
    for kind in (
        x509.BasicConstraints,
        x509.KeyUsage,
        x509.SubjectAlternativeName,
        x509.SubjectKeyIdentifier,
    ):
        extension = own.extensions.get_extension_for_class(kind)
        builder = builder.add_extension(extension.value, extension.critical)
    certificate = builder.sign(above._key, hashes.SHA256())
    return Authority(
        below.trust_domain, certificate.public_bytes(serialization.Encoding.PEM), certificate, below._key
    )


def test_an_unreadable_bundle_makes_no_context(lyon):
    with pytest.raises(IdentityError, match="cannot be read"):
        client_context(_issued(lyon), b"no bundle")
