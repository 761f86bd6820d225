"""The certificate that clients see. A renewed one is shown to whoever connects after the reload that it causes."""

from __future__ import annotations

import ssl

from lmtower.config.types import Tls
from lmtower.errors import NodeError


def context_of(tls: Tls) -> ssl.SSLContext:
    """A context with certificate and key. Raises NodeError that says which file is wrong, and how."""
    for key, path in (("cert", tls.cert), ("key", tls.key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as exc:
            raise NodeError(f"gateway.tls.{key}: cannot read {path}: {(exc.strerror or str(exc)).lower()}.") from exc
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    try:
        _load(context, tls)
    except (ssl.SSLError, ValueError) as exc:
        if "KEY_VALUES_MISMATCH" in str(exc):
            message = f"the key in {tls.key} does not belong to the certificate in {tls.cert}"
        else:
            message = f"{tls.cert} and {tls.key} must be a certificate chain and its key in PEM, not encrypted: {exc}"
        raise NodeError(f"gateway.tls: {message}.") from exc
    return context


def renew(context: ssl.SSLContext, tls: Tls) -> None:
    """Show the certificate that is in the files now. Raises NodeError, and the old one stays."""
    context_of(tls)
    _load(context, tls)


def _load(context: ssl.SSLContext, tls: Tls) -> None:
    context.load_cert_chain(tls.cert, tls.key, password="")  # without one OpenSSL asks the terminal, and waits
