"""A certificate for one sign-in's callback on this machine: made now, trusted by nobody, gone afterwards.

Invariants: its key touches the disk only encrypted, in a private directory, for as long as OpenSSL needs to read it.
"""

import ipaddress
import secrets
import ssl
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

from keepline.files import runtime_directory

__all__ = ["self_signed_context"]

_VALID = timedelta(days=1)


def self_signed_context(host: str, now: datetime) -> ssl.SSLContext:
    """A server's TLS context for a loopback address, with a fresh self-signed certificate.

    Blocks for some milliseconds: call it in a thread.

    Args:
        host: the loopback address that the browser asks for.
        now: the wall clock; the certificate is good for a day around it.

    Raises:
        StorageError: the runtime directory cannot be used.
    """
    password = secrets.token_bytes(32)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # OpenSSL reads certificates from files alone
    with tempfile.TemporaryDirectory(prefix="login-", dir=runtime_directory()) as directory:
        pem = Path(directory) / "callback.pem"
        pem.touch(mode=0o600)
        pem.write_bytes(_certificate_and_key(host, now, password))
        context.load_cert_chain(pem, password=password)
    return context


def _certificate_and_key(host: str, now: datetime, password: bytes) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Keepline sign-in on this machine")])
    names = x509.SubjectAlternativeName(
        [x509.IPAddress(ipaddress.ip_address(host)), x509.DNSName("localhost")]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID)
        .not_valid_after(now + _VALID)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password),
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)
