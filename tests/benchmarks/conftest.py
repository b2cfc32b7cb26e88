import os

import pytest


@pytest.fixture(autouse=True)
def own_cores():
    """Benchmarks keep their programs to the first of the cores that they find.

    Each worker of pytest-xdist finds others, or two workers' programs would share one core.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    found = os.sched_getaffinity(0)
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    os.sched_setaffinity(0, sorted(found)[number::workers] or found)
    yield
    os.sched_setaffinity(0, found)
