"""The fit planner: what fits on a node, at which context, for how many sequences, before anything starts.

Reading order: ``types`` (facts in, plans out), ``shape`` and ``read`` (config.json), ``read_tensors`` (models
nobody here knows), ``quantisation`` and ``formats``
(what a weight costs), ``tensors`` and ``weights``, ``kv`` (blocks and groups), ``overhead``, ``estimate`` (one engine),
``wants``, ``place`` and ``solve`` (a tower), ``suggest``, ``warn``, ``fit``. ``sources`` alone reads disk and network.
"""
