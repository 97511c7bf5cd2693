"""What holds for all unit tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# An example may take as long as the machine stands still; hypothesis gives it 200 ms.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
