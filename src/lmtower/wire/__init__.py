"""The protocols as bytes: request bodies, replies, event streams, usage and error envelopes. No I/O, no clock.

Theory of operation
-------------------
A request body is decoded once, at its top level only (``top.split``): a dict of ``msgspec.Raw`` values that
still point into the received bytes. Rules edit that dict; ``top.join`` writes it out as a list of pieces that
goes to the socket with one ``writelines``. Message text is never decoded and never re-encoded.

The way back is a *reply*, one object per request, which the gateway drives:

- ``reply.body(data)``    the whole answer of a request that does not stream -> bytes for the client
- ``reply.feed(data)``    bytes of an event stream as they were read, cut anywhere -> bytes to send now
- ``reply.end()``         the engine ended the stream cleanly -> last bytes
- ``reply.broken(fault)`` the engine died or was cut -> the protocol's error event
- ``reply.usage``         what the engine said it used, as far as it is known by then
- ``reply.alive()``       bytes that keep a silent connection open in this protocol
- ``reply.complete``      whether the stream reached its proper end

An error is a ``Fault`` until the very last moment, when ``faults.render`` writes it in the client's protocol.
"""

from lmtower.wire.faults import Dialect, Fault
from lmtower.wire.usage import Usage

__all__ = ["Dialect", "Fault", "Usage"]
