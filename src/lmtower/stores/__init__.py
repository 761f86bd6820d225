"""Files and vector stores: a service of its own beside the gateway (``stores.server``), LanceDB and SQL underneath.

Light on purpose: importing the package loads nothing. The gateway and the CLI use ``stores.internal`` (the secret) and
``stores.citations`` (hits as text and annotations); everything else runs in the service's process.
"""
