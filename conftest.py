"""For tests and doctests: no limits of time, and a cache of corpora that lasts for one run of pytest."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# The first call of a kernel compiles it, which takes seconds on a busy machine.
settings.register_profile("any-machine", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARMSTART_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
