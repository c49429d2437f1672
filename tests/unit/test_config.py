from __future__ import annotations

from pathlib import Path

import pytest

from konsil.core.rules.settings import Plateau
from konsil.errors import ConfigError
from konsil.node.config import Config, read_config, read_study_file, write_config
from konsil.node.tables import IdentityTable, MemberTable, NodeTable


def _write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "node.toml").write_text(text)
    return tmp_path


def test_a_written_config_reads_back_the_same(tmp_path):
    config = Config(
        tmp_path,
        MemberTable("lyon", "lyon.example"),
        IdentityTable("unix:///run/spire.sock", 600),
        NodeTable("0.0.0.0:7400", ("konsil.lyon.example:7400", "[2001:db8::1]:7400"), "debug", "json"),
    )
    write_config(config)
    assert read_config(tmp_path) == config
    assert config.addresses == ("konsil.lyon.example:7400", "[2001:db8::1]:7400")
    assert config.workload_api == "unix:///run/spire.sock"


def test_a_name_alone_is_a_config(tmp_path):
    config = read_config(_write(tmp_path, '[member]\nname = "lyon"\n'))
    assert config.trust_domain == "lyon.konsil"
    assert config.addresses == ()
    assert config.workload_api == f"unix://{tmp_path}/workload.sock"
    assert config.card_file == tmp_path / "lyon.card.json"


def test_an_unknown_key_is_refused_with_its_nearest_known_key(tmp_path):
    _write(tmp_path, '[member]\nname = "lyon"\n[node]\nlissten = "a:1"\n')
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path)
    assert "unknown key 'node.lissten'" in str(caught.value)
    assert "Did you mean 'node.listen'?" in str(caught.value)
    assert str(tmp_path / "node.toml") in str(caught.value)


def test_an_unknown_table_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown key 'nodes'. Did you mean 'node'\?"):
        read_config(_write(tmp_path, '[member]\nname = "lyon"\n[nodes]\n'))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[node]\n", "member"),
        ('[member]\nname = "Lyon!"\n', "member.name"),
        ("[member]\nname = 3\n", "member.name"),
        ('[member]\nname = "lyon"\ntrust_domain = "a b"\n', "member.trust_domain"),
        ('[member]\nname = "lyon"\n[node]\nlisten = "nowhere"\n', "node.listen"),
        ('[member]\nname = "lyon"\n[node]\nlisten = "h:70000"\n', "node.listen"),
        ('[member]\nname = "lyon"\n[node]\nadvertise = ["a:1", "b"]\n', "node.advertise"),
        ('[member]\nname = "lyon"\n[node]\nlog_level = "loud"\n', "node.log_level"),
        ('[member]\nname = "lyon"\n[identity]\nsvid_ttl_s = 1\n', "identity.svid_ttl_s"),
        ('[member]\nname = "lyon"\n[identity]\nworkload_api = "spire"\n', "identity.workload_api"),
        ("[member\n", "is not TOML"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(tmp_path, text, names):
    with pytest.raises(ConfigError) as caught:
        read_config(_write(tmp_path, text))
    assert names in str(caught.value)
    assert "node.toml" in str(caught.value)


def test_a_directory_without_a_config_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="konsil node init"):
        read_config(tmp_path)


def test_a_path_too_long_for_a_socket_is_refused(tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with pytest.raises(ConfigError, match="a Unix socket's may have 100"):
        read_config(_write(deep, '[member]\nname = "lyon"\n'))


def test_a_study_file_becomes_settings(tmp_path):
    file = tmp_path / "aml.toml"
    file.write_text(
        'name = "aml"\nrounds = 20\nevery_steps = 5\nmembers = ["lyon", "nice"]\nevery_minutes = 0\n'
        '[plateau]\nmetric = "auc"\nmode = "max"\n[rule_options]\ntrim = 1\n[given]\nlyon = 3\n'
    )
    settings = read_study_file(file)
    assert settings.members == ("lyon", "nice")
    assert settings.plateau == Plateau(metric="auc", mode="max")
    assert settings.rule_options == {"trim": 1.0}
    assert settings.given == {"lyon": 3}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name = "aml"\nevery_step = 5\n', "Did you mean 'every_steps'?"),
        ('name = "aml"\n[plateau]\nmetrics = "auc"\n', "Did you mean 'plateau.metric'?"),
        ('name = "aml"\nweighting = "size"\n', "'weighting'"),
        ('name = "aml"\nrounds = "many"\n', "'rounds'"),
        pytest.param("rounds = " + "[" * 50_000, "is not TOML", id="boxes in boxes"),
        pytest.param("rounds = " + "9" * 5_000, "is not TOML", id="a number without an end"),
        pytest.param("#" * 130 * 1024, "bytes", id="another file by mistake"),
    ],
)
def test_a_study_file_with_a_mistake_is_refused_by_its_key(tmp_path, text, says):
    file = tmp_path / "aml.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_study_file(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
