from __future__ import annotations

import pytest

from konsil.errors import ConfigError
from konsil.node.config import Config, MemberTable, NodeTable, check_config, read_config, write_config
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
        {"HTTPS_PROXY": "http://env:1", "NO_PROXY": "192.168.*"},
    ],
)
def test_what_cannot_be_used_of_the_environment_stops_the_node_and_says_how_to_go_on(tmp_path, environment):
    with pytest.raises(ConfigError, match=r'in the environment .*"none"') as caught:
        way_out(config(tmp_path), environment)
    assert "secret" not in str(caught.value)


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
    with pytest.raises(ConfigError, match="there is no password"):
        way_out(made, {})


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
        ({"proxy": "none", "proxy_password_file": "password"}, "node.proxy_password_file"),
        ({"no_proxy": "a.example"}, "node.no_proxy"),
        ({"proxy": SETTING, "no_proxy": "192.168.*"}, "node.no_proxy"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_key_and_without_a_password(tmp_path, node, key):
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **node)
    assert f"'{key}'" in str(caught.value)
    assert not {"secret", "sec@ret"} & set(str(caught.value).split())
    assert "konsil:" not in str(caught.value)


def test_what_is_written_reads_back(tmp_path):
    made = config(
        tmp_path,
        proxy="http://konsil@proxy:3128",
        proxy_password_file=str(tmp_path / "password"),
        no_proxy="10.0.0.0/8, .hospital",
    )
    write_config(made)
    assert read_config(tmp_path) == made
