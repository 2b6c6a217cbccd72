"""Secrets at rest open only in their place and under a configured key; keyed hashes are only for looking up."""

import base64

import pytest

from app.core.crypto import DecryptionError, KeyedHash, SecretBox

OLD, NEW = ("k1", b"1" * 32), ("k2", b"2" * 32)
PLACE = ("endpoints", "signing_secret", "ep_1", "ws_1")
SECRET = "whsec_canary-4711 ✓"


@pytest.fixture
def box() -> SecretBox:
    return SecretBox([OLD])


def test_what_was_encrypted_is_shown_again_and_cannot_be_read_in_between(box):
    stored = box.encrypt(SECRET, *PLACE)
    assert box.decrypt(stored, *PLACE) == SECRET
    assert stored.startswith("v1:k1:")
    assert "canary" not in stored


def test_the_same_secret_is_stored_differently_each_time(box):
    assert len({box.encrypt(SECRET, *PLACE) for _ in range(100)}) == 100


@pytest.mark.parametrize("part", range(4))
def test_a_ciphertext_copied_to_another_place_does_not_open(box, part):
    stored = box.encrypt(SECRET, *PLACE)
    elsewhere = [*PLACE]
    elsewhere[part] = "another"
    with pytest.raises(DecryptionError):
        box.decrypt(stored, *elsewhere)
    with pytest.raises(DecryptionError):
        box.decrypt(stored, *PLACE[:3])


def test_no_changed_byte_goes_unnoticed(box):
    version, key_id, encoded = box.encrypt("secret", *PLACE).split(":")
    sealed = base64.urlsafe_b64decode(encoded)
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(DecryptionError):
            box.decrypt(f"{version}:{key_id}:{base64.urlsafe_b64encode(changed).decode()}", *PLACE)
    with pytest.raises(DecryptionError):
        box.decrypt(f"{version}:{key_id}:{base64.urlsafe_b64encode(sealed[:-1]).decode()}", *PLACE)


@pytest.mark.parametrize(
    "stored", ["", "v1", "v1:", "v1:k1", "v1:k1:", "v1:k1:AAAA", "v1:k1:A", "v2:k1:AAAA", "plain"]
)
def test_what_is_no_ciphertext_is_told_as_that(box, stored):
    with pytest.raises(DecryptionError):
        box.decrypt(stored, *PLACE)


def test_the_error_shows_neither_secret_nor_ciphertext(box):
    stored = box.encrypt(SECRET, *PLACE)
    with pytest.raises(DecryptionError) as refusal:
        box.decrypt(stored, "endpoints", "headers", "ep_1", "ws_1")
    assert "canary" not in str(refusal.value)
    assert stored[6:] not in str(refusal.value)


def test_keys_rotate(box):
    before = box.encrypt(SECRET, *PLACE)
    rotated = SecretBox([NEW, OLD])
    assert rotated.decrypt(before, *PLACE) == SECRET
    after = rotated.encrypt(SECRET, *PLACE)
    assert after.startswith("v1:k2:")
    assert rotated.decrypt(after, *PLACE) == SECRET

    only_new = SecretBox([NEW])
    assert only_new.decrypt(after, *PLACE) == SECRET
    with pytest.raises(DecryptionError, match="k1"):
        only_new.decrypt(before, *PLACE)
    with pytest.raises(DecryptionError):  # a key id stands for one key only
        SecretBox([("k1", b"2" * 32)]).decrypt(before, *PLACE)


def test_a_keyed_hash_finds_what_was_hashed_under_any_live_key():
    old, rotated = KeyedHash([OLD], "api key"), KeyedHash([NEW, OLD], "api key")
    key_id, stored = old.current("bbat_live_1")
    assert key_id == "k1"
    assert old.candidates("bbat_live_1") == [stored]
    assert stored in rotated.candidates("bbat_live_1")
    assert rotated.current("bbat_live_1") == ("k2", rotated.candidates("bbat_live_1")[0])
    assert stored not in rotated.candidates("bbat_live_2")
    assert stored not in KeyedHash([NEW], "api key").candidates("bbat_live_1")


def test_each_purpose_has_its_own_hashes():
    assert KeyedHash([OLD], "api key").current("x") != KeyedHash([OLD], "incoming token").current("x")
