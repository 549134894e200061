"""Property tests without a deadline: a loaded machine is slow, not wrong."""

from hypothesis import settings

settings.register_profile("evaluation", deadline=None, max_examples=30)
settings.load_profile("evaluation")
