"""The programs that customers copy from docs/verify accept what we sign, and nothing else, in every language.

Each runs as its own process, fed by standard input. A language whose runtime is missing is skipped.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.core import signing
from config.settings import process_environment

VERIFY = Path(__file__).parents[2] / "docs" / "verify"
SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
OTHER_SECRET = "a secret of the customer's own"
BODY = '{"id":"evt_01HZX0000000000000000000","type":"ping","data":{}}'
T = 1767225600
V1 = "7114f2483fd1033235051fa7653fab108f91a2b12736c678f180993a3892caaa"

VALID = (0, "valid")
EMPTY_SECRET = (1, "invalid: the secret is empty")
MALFORMED = (1, "invalid: malformed header")
OUTSIDE = (1, "invalid: timestamp outside the tolerance")
NO_MATCH = (1, "invalid: no signature matches")


PROGRAMS = {"python": "verify.py", "node": "verify.mjs", "go": "verify.go", "php": "verify.php"}


@pytest.fixture(scope="session", params=PROGRAMS)
def program(request, tmp_path_factory) -> list[str]:
    """Give the command that runs one language's program; Go is compiled once."""
    language = request.param
    runtime = sys.executable if language == "python" else shutil.which(language)
    if runtime is None:
        pytest.skip(f"{language} is not installed")
    source = str(VERIFY / PROGRAMS[language])
    if language != "go":
        return [runtime, source]
    folder = tmp_path_factory.mktemp("go")
    environment = process_environment(
        GOCACHE=str(folder / "cache"),
        GOPATH=str(folder / "path"),
        GO111MODULE="off",
        GOFLAGS="",
        CGO_ENABLED="0",
    )
    compiled = str(folder / "verify")
    subprocess.run([runtime, "build", "-o", compiled, source], env=environment, check=True, timeout=110)
    return [compiled]


def run(
    program: list[str],
    header: str | None,
    *,
    secret: str = SECRET,
    body: str = BODY,
    now: int | None = T,
    tolerance: int | None = None,
) -> tuple[int, str]:
    """Give the exit status and what was printed."""
    given = {"secret": secret, "body": body, "header": header, "tolerance": tolerance, "now": now}
    result = subprocess.run(
        program,
        input=json.dumps(given, ensure_ascii=False).encode(),
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert result.stderr == b""
    return result.returncode, result.stdout.decode().removesuffix("\n")


def header(*secrets: str, body: str = BODY, t: int = T) -> str:
    """Give the header that a delivery carries when these secrets are live, newest first."""
    keys = [signing.signing_key(secret) for secret in secrets]
    return signing.sign(keys, "evt_01HZX0000000000000000000", t, body.encode())[0]


def test_the_check_vector_is_valid(program):
    assert run(program, f"t={T},v1={V1}") == VALID


@pytest.mark.parametrize("live", [(OTHER_SECRET, SECRET), (SECRET, OTHER_SECRET)], ids=["previous", "new"])
def test_during_a_rotation_either_secret_verifies(program, live):
    signed = header(*live)
    assert signed.count("v1=") == 2
    assert run(program, signed) == VALID


def test_a_signature_of_a_later_kind_does_not_disturb(program):
    assert run(program, f"v0=00,t={T},v2=ff,v1={V1},note=a=b") == VALID


def test_another_secret_is_refused(program):
    assert run(program, header(SECRET), secret=OTHER_SECRET) == NO_MATCH
    assert run(program, header(OTHER_SECRET, OTHER_SECRET)) == NO_MATCH


def test_an_empty_secret_never_verifies(program):
    assert run(program, header(""), secret="") == EMPTY_SECRET


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (BODY, BODY.replace("ping", "pong")),
        (BODY, BODY + "\n"),
        (BODY, ""),
        ('{"text":"Grüße 👋"}', '{"text":"Grüsse 👋"}'),
        ('{"text":"Grüße 👋"}', '{"text":"Grüße 👍"}'),
        ('{"text":"é"}', '{"text":"e\u0301"}'),
    ],
    ids=["one byte", "one byte more", "nothing left", "other letters", "other emoji", "other normal form"],
)
def test_a_body_is_valid_as_it_was_sent_and_in_no_other_way(program, sent, received):
    signed = header(SECRET, body=sent)
    assert run(program, signed, body=sent) == VALID
    assert run(program, signed, body=received) == NO_MATCH


def test_every_byte_counts(program):
    body = "\x00 \r\n\t\x7f\u2028 \ufeff\U0010ffff\\"
    assert run(program, header(SECRET, body=body), body=body) == VALID
    assert run(program, header(SECRET, body=""), body="") == VALID


def test_a_timestamp_may_be_off_by_five_minutes_either_way(program):
    signed = header(SECRET)
    assert run(program, signed, now=T + 300) == VALID
    assert run(program, signed, now=T + 301) == OUTSIDE
    assert run(program, signed, now=T - 300) == VALID
    assert run(program, signed, now=T - 301) == OUTSIDE


def test_the_tolerance_can_be_changed(program):
    signed = header(SECRET)
    assert run(program, signed, now=T + 11, tolerance=10) == OUTSIDE
    assert run(program, signed, now=T + 3600, tolerance=3600) == VALID
    assert run(program, signed, tolerance=0) == VALID
    assert run(program, signed, now=T - 1, tolerance=0) == OUTSIDE


def test_without_a_given_time_it_is_now(program):
    assert run(program, header(SECRET, t=int(time.time())), now=None) == VALID
    assert run(program, header(SECRET), now=None) == OUTSIDE


def test_an_old_signature_is_not_renewed_by_another_timestamp(program):
    assert run(program, f"t={T + 3600},v1={V1}", now=T + 3600) == NO_MATCH


@pytest.mark.parametrize(
    ("garbage", "expected"),
    [
        (None, MALFORMED),
        ("", MALFORMED),
        ("=,;=", MALFORMED),
        (f"v1={V1}", MALFORMED),
        (f"t=,v1={V1}", MALFORMED),
        (f"t={T}.0,v1={V1}", MALFORMED),
        (f"t=-{T},v1={V1}", MALFORMED),
        (f"t=+{T},v1={V1}", MALFORMED),
        (f"t= {T},v1={V1}", MALFORMED),
        (f"t={T}\n,v1={V1}", MALFORMED),
        (f"t=0x6955b900,v1={V1}", MALFORMED),
        (f"t=१७६७२२५६००,v1={V1}", MALFORMED),
        (f"t={'9' * 400},v1={V1}", MALFORMED),
        (f"t={T},t={T},v1={V1}", MALFORMED),
        (f"t={T - 9999},v1={V1},t={T}", MALFORMED),
        (f"T={T},v1={V1}", MALFORMED),
        (f"t={T}", NO_MATCH),
        (f"t={T},v1=", NO_MATCH),
        (f"t={T},v1", NO_MATCH),
        (f"t={T},v1={V1[:-1]}", NO_MATCH),
        (f"t={T},v1={V1}0", NO_MATCH),
        (f"t={T},v1={'z' * 64}", NO_MATCH),
        (f"t={T},v1={'é' * 64}", NO_MATCH),
        (f"t={T},v1={'é' * 32}", NO_MATCH),
        (f"t={T},v0={V1}", NO_MATCH),
        (V1, MALFORMED),
    ],
)
def test_a_header_that_is_garbage_is_refused(program, garbage, expected):
    assert run(program, garbage) == expected


@pytest.mark.parametrize("name", PROGRAMS.values())
def test_the_part_to_paste_is_marked(name):
    before, _, rest = (VERIFY / name).read_text().partition("--8<-- start\n")
    part, _, after = rest.partition("--8<-- end\n")
    assert "verify(" in part
    assert "verify(" in after, "the program below the marked part uses it"
    assert "verify(" not in before
    assert "--8<--" not in before + part + after
    assert len(part.splitlines()) < 60
