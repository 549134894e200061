"""One MLflow server on PostgreSQL for all tests that need it: it takes ten to thirty seconds to start, and a gigabyte.

Tests that ask for it belong to the xdist group `mlflow_server`, so that one process runs them all.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_server import Proxy, Server, postgres, programs, proxy
from records_of import FINGERPRINT

from prism_sweeps.tracking.records import JobRecord, Store


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed: make postgres")
    pytest.importorskip("psycopg2", reason="psycopg2-binary of the test extra is not installed")
    with postgres(found) as backend:
        started = Server(backend, tmp_path_factory.mktemp("mlflow"))
        try:
            started.start()
            yield started
        finally:
            started.stop()


@pytest.fixture
def between(server: Server) -> Iterator[Proxy]:
    """A proxy before the server."""
    with proxy(server.port) as started:
        yield started


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def record(store: Store) -> JobRecord:
    return store.job(FINGERPRINT)
