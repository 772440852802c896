"""What all unit tests share: no example of hypothesis is timed, since the machine may be busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("tproxy", deadline=None)
settings.load_profile("tproxy")
