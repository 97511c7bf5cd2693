"""What holds for all unit tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# An example may take as long as the machine stands still; hypothesis gives it 200 ms. The same examples in each run:
# what decides whether a change is taken must not depend on chance. `make fuzz` goes on looking.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")
