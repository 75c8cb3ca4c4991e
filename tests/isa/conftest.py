"""Hypothesis without deadlines: how long an example takes depends on what else the machine runs."""

from hypothesis import settings

settings.register_profile("tapeout", deadline=None, print_blob=True)
settings.load_profile("tapeout")
