"""Properties are tried on the same examples every time, and never against the clock of a busy machine."""

from hypothesis import HealthCheck, settings

settings.register_profile("calm", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")
