from __future__ import annotations

import pytest

from konsil.errors import FrameError
from konsil.transport.connect_answer import MAX_HEAD_BYTES, MAX_INTERIM, AnswerReader
from konsil.transport.proxy import Direct, Proxy, ProxyUrl, parse_url

# --- the proxy's URL -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://proxy.hospital:3128", ProxyUrl("proxy.hospital", 3128)),
        ("proxy.hospital:3128/", ProxyUrl("proxy.hospital", 3128)),
        ("HTTP://Proxy.Hospital:80", ProxyUrl("proxy.hospital", 80)),
        ("http://konsil@10.0.0.1:8080", ProxyUrl("10.0.0.1", 8080, "konsil")),
        ("http://DOM%5Ckonsil:p%40s%3As@[fd00::1]:8080", ProxyUrl("fd00::1", 8080, "DOM\\konsil", "p@s:s")),
        ("http://konsil:@proxy:3128", ProxyUrl("proxy", 3128, "konsil", "")),
    ],
)
def test_a_proxys_url_is_read_as_other_programs_read_it(text, url):
    assert parse_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "https://proxy:3128",
        "socks5://proxy:1080",
        "http://",
        "http://proxy:0",
        "http://proxy:65536",
        "http://proxy:3128/path",
        "http://pro xy:3128",
        "http://proxy\r\nX-Evil: 1:3128",
        "http://konsil:sec:ret@proxy:3128@",
        "http://:secret@proxy:3128",
        "http://konsil:sec%0d%0aret@proxy:3128",
        "http://kon%3Asil:secret@proxy:3128",
    ],
)
def test_what_is_no_proxys_url_is_refused_without_showing_a_password(text):
    with pytest.raises(ValueError, match=r"^(is not such as|begins with|has |names )") as caught:
        parse_url(text)
    assert "ret" not in str(caught.value)


def test_a_port_may_be_left_out_only_where_there_is_one_to_take():
    assert parse_url("HTTP://Proxy.Hospital", 80) == ProxyUrl("proxy.hospital", 80)
    with pytest.raises(ValueError, match=r"^names no port$"):
        parse_url("http://proxy.hospital")


def test_a_proxy_shows_its_user_and_never_its_password():
    proxy = Proxy("fd00::1", 3128, "konsil", lambda: "secret")
    assert str(proxy) == "http://konsil@[fd00::1]:3128"
    assert "secret" not in repr(proxy)


# --- who is reached directly ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("hospital.de", ["hospital.de", "konsil.hospital.de", "HOSPITAL.de."], ["nothospital.de", "de"]),
        (".hospital.de", ["hospital.de", "a.b.hospital.de"], ["hospital.dex"]),
        ("*.hospital.de,  lyon.example", ["a.hospital.de", "lyon.example"], ["berlin.example"]),
        ("10.0.0.0/8", ["10.1.2.3", "::ffff:10.1.2.3"], ["11.0.0.1", "10.example"]),
        ("fd00::/8,192.0.2.7", ["fd12::1", "[fd12::1]", "192.0.2.7"], ["fe80::1", "192.0.2.8"]),
        ("*", ["anything.example", "192.0.2.1"], []),
        ("192.168.*", ["192.168.0.1", "::ffff:192.168.255.255"], ["192.169.0.1", "192.example"]),
        ("10.*", ["10.0.0.1", "10.255.1.2"], ["100.0.0.1", "11.0.0.1"]),
        ("172.16.5.*,10.1.*.*", ["172.16.5.9", "10.1.2.3"], ["172.16.6.9", "10.2.2.3"]),
        ("*.local", ["printer.local", "a.b.local"], ["printer.locals", "a.example"]),
        (
            "localhost a.example\tb.example ,, 10.0.0.0/8",
            ["a.example", "b.example", "10.9.9.9"],
            ["c.example"],
        ),
        ("hospital.de.", ["a.hospital.de"], ["hospital.example"]),
        ("10.0.0.1/8", ["10.3.3.3"], ["11.0.0.1"]),
        ("", [], ["anything.example", "192.0.2.1"]),
    ],
)
def test_names_addresses_and_networks_are_reached_without_the_proxy(text, inside, outside):
    direct = Direct.parse(text)
    assert [host for host in inside if not direct.has(host, 7400)] == []
    assert [host for host in outside if direct.has(host, 7400)] == []


def test_an_entry_with_a_port_is_about_that_port_alone():
    direct = Direct.parse("a.example:7400, 192.0.2.1:7400, [fd00::1]:7400")
    for host in ("a.example", "192.0.2.1", "fd00::1"):
        assert direct.has(host, 7400)
        assert not direct.has(host, 7401)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine_itself_is_always_reached_directly(host):
    assert Direct().has(host, 7400)


@pytest.mark.parametrize(
    "entry",
    [
        *("192.168.", "10.0", "<local>", "http://a", "a:65536", "a;b", "a|b", "*a.example", "a.*", "300.*"),
        *("192.*.1", "1.2.3.4.*", "1.2.3.*.*", "fd00:*", "[fd00::1", "1.2.3.4/33", "*.*"),
    ],
)
def test_an_entry_that_means_nothing_here_is_passed_over_and_kept_to_be_told(entry):
    direct = Direct.parse(f"good.example,{entry},10.0.0.0/8")
    assert direct.unknown == (entry,)
    assert direct.has("good.example", 7400)
    assert direct.has("10.1.1.1", 7400)
    assert not direct.has("a.example", 7400)
    assert not direct.has("192.168.0.1", 7400)


def test_of_a_very_long_entry_the_beginning_is_told():
    assert Direct.parse("<" * 10_000).unknown == ("<" * 80,)


# --- the proxy's answer ----------------------------------------------------------------------------

OPEN = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 squid\r\nContent-Length: 7\r\n\r\n"


@pytest.mark.parametrize("step", [1, 2, 3, 17, 1000])
def test_an_answer_is_read_from_pieces_of_any_size(step):
    reader = AnswerReader()
    answers = [reader.feed(OPEN[at : at + step]) for at in range(0, len(OPEN), step)]
    assert answers[:-1] == [None] * (len(answers) - 1)
    assert answers[-1] is not None
    assert answers[-1].opens
    assert (answers[-1].status, answers[-1].reason) == (200, "Connection established")
    assert answers[-1].surplus_bytes == 0


def test_what_comes_behind_the_head_is_counted_and_not_taken():
    answer = AnswerReader().feed(OPEN + b"\x4b\x01more")
    assert answer is not None
    assert answer.surplus_bytes == 6


WAIT = b"HTTP/1.1 100 Continue\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nContent-Length: 3\r\n\r\n"


@pytest.mark.parametrize("step", [1, 2, 3, 17, 1000])
@pytest.mark.parametrize("before", [WAIT, EARLY, WAIT * 4 + EARLY * 4])
def test_answers_that_are_not_the_final_one_are_passed_over(step, before):
    reader, data = AnswerReader(), before + OPEN + b"late"
    for at in range(0, len(data), step):
        assert not reader.begun or at
        answer = reader.feed(data[at : at + step])
        if answer is not None:
            break
    assert reader.begun
    assert (answer.status, answer.opens) == (200, True)
    assert answer.surplus_bytes == min(len(data), at + step) - len(before) - len(OPEN)


def test_a_refusal_behind_such_an_answer_is_a_refusal():
    assert AnswerReader().feed(WAIT + b"HTTP/1.1 403 Forbidden\r\n\r\n").status == 403


def test_endless_answers_to_wait_are_refused():
    reader = AnswerReader()
    for _ in range(MAX_INTERIM):
        assert reader.feed(WAIT) is None
    with pytest.raises(FrameError, match="has not come after 8"):
        reader.feed(WAIT)


def test_what_follows_such_an_answer_must_be_http_too():
    with pytest.raises(FrameError, match="does not begin like"):
        AnswerReader().feed(WAIT + b"\x16\x03\x01")
    with pytest.raises(FrameError, match="has a head of more than"):
        AnswerReader().feed(WAIT + b"HTTP/1.1 200 OK\r\nA: " + b"a" * MAX_HEAD_BYTES)


def test_another_protocol_is_no_tunnel_and_the_last_word():
    answer = AnswerReader().feed(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nmore")
    assert (answer.status, answer.opens, answer.surplus_bytes) == (101, False, 4)


def test_the_ways_to_log_in_are_told_and_its_words_are_fit_for_a_terminal():
    answer = AnswerReader().feed(
        b"HTTP/1.0 407 \x1b[31mwho?\xff\r\n"
        b"Proxy-Authenticate: Negotiate\r\nproxy-authenticate: NTLM\r\n"
        b'Proxy-Authenticate: Basic realm="a, b", Negotiate\r\n\r\n<html>'
    )
    assert answer is not None
    assert not answer.opens
    assert answer.schemes[:3] == ("Negotiate", "NTLM", "Basic")
    assert answer.reason == "[31mwho?"


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\nVia: a\n\nmore\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno field\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n",
    ],
)
def test_what_is_no_http_answer_is_refused(data):
    with pytest.raises(FrameError, match="The answer"):
        AnswerReader().feed(data)


def test_what_does_not_begin_as_http_is_refused_at_its_first_byte():
    with pytest.raises(FrameError, match="does not begin like"):
        AnswerReader().feed(b"S")


@pytest.mark.parametrize("step", [1000, MAX_HEAD_BYTES * 2])
def test_a_head_without_an_end_is_refused_at_its_limit(step):
    reader = AnswerReader()
    head = b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * MAX_HEAD_BYTES
    pieces = [head[at : at + step] for at in range(0, MAX_HEAD_BYTES, step)]
    assert [reader.feed(piece) for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    with pytest.raises(FrameError, match="more than 16384 bytes"):
        reader.feed(pieces[-1])


def test_a_head_of_just_the_limit_is_read():
    start, end = b"HTTP/1.1 200 OK\r\nA: ", b"\r\n\r\n"
    room = MAX_HEAD_BYTES - len(start) - len(end)
    answer = AnswerReader().feed(start + b"b" * room + end)
    assert answer is not None
    assert answer.opens
    with pytest.raises(FrameError, match="more than"):
        AnswerReader().feed(start + b"b" * (room + 1) + end)
