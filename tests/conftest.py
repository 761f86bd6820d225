"""What all tests share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A busy machine is no failure; what must be fast is measured elsewhere.
settings.register_profile("lmtower", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lmtower")
