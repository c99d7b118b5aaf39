import os
import random

import pytest


@pytest.fixture(scope="session")
def seed() -> int:
    """What the short form draws from; TIDEMARK_TEST_SEED repeats a run."""
    given = os.environ.get("TIDEMARK_TEST_SEED", "1" if "STEADY_TESTS" in os.environ else "")
    return int(given) if given else random.SystemRandom().randrange(1 << 32)
