"""Properties are tried on the same examples every time; tiny nets train on one thread."""

from hypothesis import HealthCheck, settings
from single_thread import one_thread

__all__ = ["one_thread"]

settings.register_profile("calm", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")
