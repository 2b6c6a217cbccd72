"""The receiver's certificate is good for this machine alone, and its key is private."""

import ssl

import pytest

from app.development import certificates


def test_files_are_private_and_kept(tmp_path):
    first = certificates.ensure(tmp_path / "receiver")
    content = first.server.read_text()
    assert content.count("BEGIN CERTIFICATE") == 1
    assert "PRIVATE KEY" in content
    assert "PRIVATE KEY" not in first.authority.read_text()
    for path in (first.server, first.authority):
        assert path.stat().st_mode & 0o777 == 0o600
    assert certificates.ensure(tmp_path / "receiver") == first
    assert first.server.read_text() == content


@pytest.mark.parametrize("name", ["ca.pem", "server.pem"])
def test_a_pair_of_which_one_is_lost_is_made_anew(tmp_path, name):
    before = certificates.ensure(tmp_path)
    old = before.server.read_text()
    (tmp_path / name).unlink()
    assert certificates.ensure(tmp_path).server.read_text() != old


def test_what_deliveries_trust_has_the_user_s_authorities_too(tmp_path):
    own = certificates.ensure(tmp_path / "receiver").authority
    assert certificates.trusted(tmp_path / "receiver", None) == own
    user = certificates.ensure(tmp_path / "user").authority
    bundle = certificates.trusted(tmp_path / "receiver", user)
    context = ssl.create_default_context(cafile=bundle)
    assert len(context.get_ca_certs()) == 2
    assert certificates.trusted(tmp_path / "receiver", user) == bundle
