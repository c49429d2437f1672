"""Two members whose identities come each from a SPIRE of its own, while their nodes train a study together."""

from __future__ import annotations

import time

import pytest
from cryptography import x509

TTL_S = 30

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


def test_a_study_goes_on_while_certificates_rotate_and_agents_and_servers_die_and_come_back(hospitals_with):
    hospitals = hospitals_with(TTL_S)
    bonn, lyon = (hospitals.spires[name] for name in ("bonn", "lyon"))
    hospitals.another_certificate("bonn", "lyon")

    lyon.kill("agent")
    hospitals.rounds(10)
    lyon.start("agent")
    hospitals.another_certificate("lyon")

    hospitals.another_certificate("bonn")
    bonn.kill("server")
    hospitals.go_on_for(TTL_S * 2 / 3)  # beyond half of the certificate's life, when another one is due
    held = hospitals.certificate("bonn")
    bonn.start("server")
    hospitals.another_certificate("bonn")
    assert held.not_valid_after_utc.timestamp() > time.time(), "there was one all the time"
    hospitals.finish()
    for name in ("bonn", "lyon"):
        named = hospitals.certificate(name).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert named.value.get_values_for_type(x509.UniformResourceIdentifier) == [
            hospitals.spires[name].node
        ]
