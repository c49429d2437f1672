from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from konsil.errors import IdentityError
from konsil.identity.spiffe_id import SpiffeId, trust_domain


def test_an_id_is_read_into_trust_domain_and_path():
    assert SpiffeId.parse("spiffe://lyon.example/node") == SpiffeId("lyon.example", "/node")
    assert SpiffeId.parse("spiffe://lyon.example") == SpiffeId("lyon.example", "")
    assert trust_domain("spiffe://lyon.example/ward/3") == "lyon.example"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe:///node",
        "SPIFFE://lyon.example/node",
        "https://lyon.example/node",
        "spiffe://Lyon.example/node",
        "spiffe://lyon.example/",
        "spiffe://lyon.example//node",
        "spiffe://lyon.example/node/",
        "spiffe://lyon.example/./node",
        "spiffe://lyon.example/../node",
        "spiffe://lyon.example:443/node",
        "spiffe://me@lyon.example/node",
        "spiffe://lyon.example/node?x=1",
        "spiffe://lyon.example/node#x",
        "spiffe://lyon.example/n%6fde",
        "spiffe://lyon.example/node\n",
        "spiffe://lyon.example\n/node",
        "spiffe://lyön.example/node",
        "spiffe://lyon.example/nöde",
        "spiffe://" + "a" * 256 + "/node",
        "spiffe://lyon.example/" + "a" * 2048,
    ],
)
def test_anything_but_the_one_form_is_refused(text):
    with pytest.raises(IdentityError, match=r"SPIFFE ID|trust domain"):
        SpiffeId.parse(text)


_segment = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}", fullmatch=True)


@given(domain=st.from_regex(r"[a-z0-9._-]{1,40}", fullmatch=True), segments=st.lists(_segment, max_size=4))
def test_what_is_read_is_written_back_alike(domain, segments):
    text = "/".join([f"spiffe://{domain}", *segments])
    assert str(SpiffeId.parse(text)) == text
