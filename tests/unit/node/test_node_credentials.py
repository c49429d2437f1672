"""A node's identity towards its peers: one context for all that connect, made anew when something changed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from konsil.identity.authority import Authority
from konsil.node.credentials import Credentials
from konsil.transport.base import PeerAddress


@pytest.fixture
def authorities(tmp_path):
    return {name: Authority.create(tmp_path / name, f"{name}.example") for name in ("lyon", "metz", "nancy")}


@pytest.fixture
def source(authorities):
    return SimpleNamespace(svid=authorities["lyon"].issue())


def peers(authorities, *names):
    return [
        PeerAddress(name, f"spiffe://{name}.example/node", (), authorities[name].bundle) for name in names
    ]


def authorities_in(context):
    return len(context.get_ca_certs(binary_form=True))


def test_all_that_connect_are_met_with_one_context(authorities, source):
    credentials = Credentials(source)
    first = credentials.server_context(peers(authorities, "metz", "nancy"))
    assert authorities_in(first) == 2
    assert credentials.server_context(peers(authorities, "metz", "nancy")) is first


def test_another_svid_or_another_peer_makes_another_context(authorities, source):
    credentials = Credentials(source)
    first = credentials.server_context(peers(authorities, "metz"))
    second = credentials.server_context(peers(authorities, "metz", "nancy"))
    assert second is not first
    assert authorities_in(second) == 2
    without = credentials.server_context(peers(authorities, "nancy"))
    assert authorities_in(without) == 1, "who was removed is trusted no longer"
    source.svid = authorities["lyon"].issue()
    assert credentials.server_context(peers(authorities, "nancy")) is not without
