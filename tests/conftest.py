"""The same examples in every run, so that a test fails because of a change and not because of a draw."""

from hypothesis import settings

settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")
