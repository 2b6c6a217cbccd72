"""The built-in receiver's certificate, from an authority of its own whose key is thrown away.

So nobody can make another certificate under it, should somebody trust it beyond these deliveries.
"""

from dataclasses import dataclass
from pathlib import Path

import trustme

from config.settings import write_private

HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Certificate:
    """Where the files are (PEM)."""

    authority: Path
    server: Path  # private key and chain in one file, so that they cannot be of two different makings


def ensure(folder: Path) -> Certificate:
    """Give the certificate that is kept in `folder`; makes it when there is none."""
    certificate = Certificate(folder / "ca.pem", folder / "server.pem")
    # The server's file is written last: where it is, both are whole.
    if not certificate.server.is_file() or not certificate.authority.is_file():
        authority = trustme.CA(organization_name="BotBat built-in receiver")
        server = authority.issue_cert(*HOSTS)
        write_private(certificate.authority, authority.cert_pem.bytes().decode())
        write_private(certificate.server, server.private_key_and_cert_chain_pem.bytes().decode())
    return certificate


def trusted(folder: Path, also: Path | None) -> Path:
    """Give a bundle with the receiver's authority and, where the user configured one, `also`."""
    own = ensure(folder).authority
    if also is None:
        return own
    bundle = folder / "trusted.pem"
    write_private(bundle, own.read_text() + "\n" + also.read_text())
    return bundle
