from __future__ import annotations

import pytest

from konsil.errors import ConfigError
from konsil.node.config import Config, check_config, read_config, write_config
from konsil.node.tables import MemberTable, NodeTable
from konsil.node.way_out import way_out

SETTING = "http://proxy.hospital:3128"
ENVIRONMENT = {"HTTPS_PROXY": "http://env.hospital:8080", "NO_PROXY": "near.example"}


def config(tmp_path, **node):
    made = Config(tmp_path, MemberTable("lyon", "lyon.example"), node=NodeTable(**node))
    check_config(made)
    return made


def test_a_node_dials_directly_where_nobody_says_otherwise(tmp_path):
    way = way_out(config(tmp_path), {})
    assert way.proxy is None
    assert str(way) == ""


def test_node_toml_says_it_before_the_environment(tmp_path):
    way = way_out(config(tmp_path, proxy=SETTING, no_proxy="here.example"), ENVIRONMENT)
    assert str(way) == "http://proxy.hospital:3128 (`proxy` in node.toml)"
    assert way.proxy is not None
    assert way.proxy.direct.has("here.example", 1)
    assert not way.proxy.direct.has("near.example", 1), "a list of another proxy's"


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_the_environment_says_it_where_node_toml_does_not_and_is_named(tmp_path, variable):
    way = way_out(config(tmp_path), {variable: "http://env.hospital:8080", "no_proxy": "near.example"})
    assert str(way) == f"http://env.hospital:8080 ({variable} in the environment)"
    assert way.proxy is not None
    assert way.proxy.direct.has("near.example", 1)


def test_none_in_node_toml_means_no_proxy_whatever_the_environment_says(tmp_path):
    way = way_out(config(tmp_path, proxy="none"), ENVIRONMENT)
    assert way.proxy is None
    assert str(way) == "no proxy (`proxy` in node.toml)"


@pytest.mark.parametrize(
    "environment",
    [
        {"HTTPS_PROXY": "socks5://env:1"},
        {"HTTPS_PROXY": "https://konsil:secret@env:1"},
    ],
)
def test_what_cannot_be_used_of_the_environment_stops_the_node_and_says_how_to_go_on(tmp_path, environment):
    with pytest.raises(ConfigError, match=r'in the environment .*"none"') as caught:
        way_out(config(tmp_path), environment)
    assert "secret" not in str(caught.value)


def test_what_nobody_understands_of_no_proxy_stops_no_node_and_is_told(tmp_path):
    way = way_out(
        config(tmp_path), ENVIRONMENT | {"NO_PROXY": "192.168.*,<local>,near.example;far.example,10.1.1.1"}
    )
    assert way.proxy.direct.has("192.168.1.1", 7400)
    assert way.proxy.direct.has("10.1.1.1", 7400)
    assert not way.proxy.direct.has("far.example", 7400)
    assert way.unclear == (
        "NO_PROXY in the environment has '<local>' and 1 more, which is no name, IP address or network: what it "
        "stands for is reached through the proxy."
    )
    assert str(way) == "http://env.hospital:8080 (HTTPS_PROXY in the environment)"
    assert way_out(config(tmp_path), ENVIRONMENT).unclear == ""


def test_a_password_comes_from_its_file_and_is_read_anew_each_time(tmp_path):
    file = tmp_path / "password"
    file.write_text("pa:ss wörd\n")
    file.chmod(0o600)
    made = config(tmp_path, proxy="http://konsil@proxy:3128", proxy_password_file=file.name)
    way = way_out(made, {"KONSIL_PROXY_PASSWORD": "another"})
    assert way.proxy is not None
    assert way.proxy.password() == "pa:ss wörd"
    file.write_text("newer")
    assert way.proxy.password() == "newer"
    assert "newer" not in f"{way} {way!r}"


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        (b"secret", 0o644, "Others may use"),
        (None, 0, "cannot be read"),
        (b"", 0o600, "does not hold a password on one line"),
        (b"sec\nret", 0o600, "does not hold a password on one line"),
        (b"\xff\xfe", 0o600, "is not UTF-8"),
        (b"s" * 2000, 0o600, "longer than 1024 bytes"),
    ],
)
def test_a_password_file_that_cannot_be_used_stops_the_node(tmp_path, content, mode, why):
    if content is not None:
        (tmp_path / "password").write_bytes(content)
        (tmp_path / "password").chmod(mode)
    made = config(tmp_path, proxy="http://konsil@proxy:3128", proxy_password_file=str(tmp_path / "password"))
    with pytest.raises(ConfigError, match=why) as caught:
        way_out(made, {})
    assert "secret" not in str(caught.value)


def test_a_password_may_come_from_the_environment_and_must_come_from_somewhere(tmp_path):
    made = config(tmp_path, proxy="http://konsil@proxy:3128")
    way = way_out(made, {"KONSIL_PROXY_PASSWORD": "secret"})
    assert way.proxy is not None
    assert way.proxy.password() == "secret"
    for environment in ({}, {"KONSIL_PROXY_PASSWORD": ""}):
        with pytest.raises(ConfigError, match="`proxy` names a user, but there is no password") as caught:
            way_out(made, environment)
        assert caught.value.fields["way"] == "http://konsil@proxy:3128 (`proxy` in node.toml)"


def test_a_user_of_the_environments_proxy_needs_a_password_and_hears_where_to_put_it(tmp_path):
    named = {"HTTPS_PROXY": "http://konsil@env:1"}
    for environment in (named, named | {"KONSIL_PROXY_PASSWORD": ""}):
        with pytest.raises(ConfigError) as caught:
            way_out(config(tmp_path), environment)
        assert str(caught.value) == (
            "HTTPS_PROXY in the environment names a user, but there is no password. "
            "Nothing was sent to the proxy. Put it into KONSIL_PROXY_PASSWORD, or set `proxy` and "
            "`proxy_password_file` in node.toml."
        )
    way = way_out(config(tmp_path), named | {"KONSIL_PROXY_PASSWORD": "secret"})
    assert way.proxy is not None
    assert way.proxy.password() == "secret"
    way = way_out(config(tmp_path), {"HTTPS_PROXY": "http://konsil:@env:1"})
    assert way.proxy is not None
    assert way.proxy.password() == "", "said so in so many letters"


def test_a_proxy_knows_who_named_its_user_or_could(tmp_path):
    by_file = {"proxy": "http://konsil@proxy:3128", "proxy_password_file": "password"}
    (tmp_path / "password").write_text("secret")
    (tmp_path / "password").chmod(0o600)
    kept = {"KONSIL_PROXY_PASSWORD": "secret"}
    for node, environment, known_from in (
        (by_file, {}, "`proxy` and `proxy_password_file` in node.toml"),
        (
            {"proxy": "http://konsil@proxy:3128"},
            kept,
            "`proxy` in node.toml and KONSIL_PROXY_PASSWORD in the environment",
        ),
        (
            {},
            kept | {"https_proxy": "http://konsil@env:1"},
            "https_proxy and KONSIL_PROXY_PASSWORD in the environment",
        ),
        ({}, {"HTTPS_PROXY": "http://konsil:secret@env:1"}, "HTTPS_PROXY in the environment (in a URL's"),
    ):
        way = way_out(config(tmp_path, **node), environment)
        assert way.proxy is not None
        assert way.proxy.known_from.startswith(known_from)
    for node, environment, make_known in (
        ({"proxy": SETTING}, {}, "In node.toml write the user into `proxy`, as http://USER@HOST:PORT, and"),
        ({}, ENVIRONMENT, "Write HTTPS_PROXY as http://USER@HOST:PORT, and the password into KONSIL_PROXY"),
    ):
        way = way_out(config(tmp_path, **node), environment)
        assert way.proxy is not None
        assert way.proxy.make_known.startswith(make_known)
        assert "`proxy_password_file`" in way.proxy.make_known


def test_a_slash_in_the_environments_password_is_not_shown_and_its_spelling_is(tmp_path):
    with pytest.raises(ConfigError) as caught:
        way_out(config(tmp_path), {"HTTPS_PROXY": "http://konsil:sec/ret@env:1"})
    assert "in a URL's user and password / is written %2F" in caught.value.do
    assert "sec/ret" not in str(caught.value)


def test_a_proxy_of_the_environment_without_a_port_is_at_80_as_for_other_programs(tmp_path):
    way = way_out(config(tmp_path), {"HTTPS_PROXY": "http://env.hospital"})
    assert str(way) == "http://env.hospital:80 (HTTPS_PROXY in the environment)"


def test_user_and_password_of_the_environments_url_are_used_and_not_shown(tmp_path):
    way = way_out(config(tmp_path), {"HTTPS_PROXY": "http://konsil:s%40cret@env:1"})
    assert way.proxy is not None
    assert (way.proxy.user, way.proxy.password()) == ("konsil", "s@cret")
    assert str(way) == "http://konsil@env:1 (HTTPS_PROXY in the environment)"
    assert "cret" not in repr(way)


@pytest.mark.parametrize(
    ("node", "key"),
    [
        ({"proxy": "https://proxy:3128"}, "node.proxy"),
        ({"proxy": "http://konsil:secret@proxy:3128"}, "node.proxy"),
        ({"proxy": "http://konsil:sec@ret@proxy:3128"}, "node.proxy"),
        ({"proxy": SETTING, "proxy_password_file": "password"}, "node.proxy_password_file"),
        ({"proxy": "http://proxy"}, "node.proxy"),
        ({"proxy_password_file": "password"}, "node.proxy_password_file"),
        ({"no_proxy": "a.example"}, "node.no_proxy"),
        ({"proxy": "none", "no_proxy": "<local>"}, "node.no_proxy"),
        ({"proxy": SETTING, "no_proxy": "<local>"}, "node.no_proxy"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_key_and_without_a_password(tmp_path, node, key):
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **node)
    assert f"'{key}'" in str(caught.value)
    assert not {"secret", "sec@ret"} & set(str(caught.value).split())
    assert "konsil:" not in str(caught.value)


@pytest.mark.parametrize(
    ("node", "do"),
    [
        (
            {"proxy": "http://konsil:secret@proxy:3128"},
            "Write http://USER@HOST:PORT, and the password's file into `proxy_password_file` in node.toml.",
        ),
        (
            {"proxy": "http://konsil:sec/ret@proxy:3128"},
            (
                "Write http://USER@HOST:PORT, and the password's file into `proxy_password_file` in node.toml, "
                'or "none" for none.'
            ),
        ),
        ({"proxy": "http://proxy"}, 'Write http://HOST:PORT, or "none" for none.'),
        (
            {"proxy": SETTING, "proxy_password_file": "password"},
            "Write `proxy` as http://USER@HOST:PORT, or leave this empty.",
        ),
        (
            {"no_proxy": "a.example"},
            "Leave it empty, or name the proxy in `proxy`; with HTTPS_PROXY use NO_PROXY and KONSIL_PROXY_PASSWORD.",
        ),
        (
            {"proxy": SETTING, "no_proxy": "<local>"},
            'Write names, IP addresses, networks or "*", with commas between them.',
        ),
    ],
)
def test_a_wrong_setting_says_what_to_write(tmp_path, node, do):
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **node)
    assert caught.value.do == do


@pytest.mark.parametrize("word", ["none", "None", " NONE"])
def test_none_lets_what_else_is_set_for_a_proxy_stay(tmp_path, word):
    kept = {"proxy_password_file": "password", "no_proxy": "a.example"}
    made = config(tmp_path, proxy=word, **kept)
    assert way_out(made, ENVIRONMENT).proxy is None


def test_what_is_written_reads_back(tmp_path):
    made = config(
        tmp_path,
        proxy="http://konsil@proxy:3128",
        proxy_password_file=str(tmp_path / "password"),
        no_proxy="10.0.0.0/8, .hospital",
    )
    write_config(made)
    assert read_config(tmp_path) == made
