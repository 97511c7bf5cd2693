"""Made-up measurements for the tests of what is computed from them. Called by test_goals and test_report."""

from __future__ import annotations

from bench.load import Measurement


def measurement(**columns: float) -> Measurement:
    """A measurement whose named columns matter; the rest is plausible."""
    plain: dict[str, float] = {
        "rate": 1000.0,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "max_ms": 3.0,
        "user_us": 1.0,
        "system_us": 1.0,
        "servers_us": 1.0,
        "load_cores": 0.5,
        "other_cores": 0.0,
    }
    return Measurement(requests=1000, **(plain | columns))
