"""PostgreSQL with pgvector, a real server: addresses, builds that are killed, graphs, the scripts and the app."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from scripts import build_index, search
from tests.conftest import unit
from tests.search.conftest import start_server

pytest.importorskip("psycopg", reason="the client of PostgreSQL is not installed")
from fusemix.search import postgres_index  # noqa: E402
from fusemix.search.postgres_index import Address, PostgresIndex  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
MODEL = "m" * 64


def items(count):
    return [{"id": str(i), "licence": ("CC0-1.0", "GPL-2")[i % 2]} for i in range(count)]


def build(address, rows):
    index = PostgresIndex.create(address, rows.shape[1], model_identity=MODEL)
    index.add("image", rows, items(len(rows)))
    index.save()
    return index


@pytest.mark.parametrize(
    ("text", "connection", "collection"),
    [
        ("postgresql://localhost/mine/gallery", {"host": "localhost", "port": "5432", "dbname": "mine"}, "gallery"),
        ("postgres://me@[::1]:7/a%20b/c-d.e_1?exact=1", {"host": "::1", "port": "7", "dbname": "a b", "user": "me"},
         "c-d.e_1"),
        ("postgresql:///mine/x?host=/tmp/s", {"host": "/tmp/s", "port": "5432", "dbname": "mine"}, "x"),
    ],
)  # fmt: skip
def test_an_address_names_server_database_and_collection(text, connection, collection):
    address = Address.parse(text)
    assert (address.connection, address.collection, address.exact) == (connection, collection, "exact" in text)


@pytest.mark.parametrize(
    "text",
    ["postgresql://host/d", "postgresql://host/", "postgresql://host:x/d/c", "postgresql://host/d/b/c",
     "postgresql:/d/c", "postgresql:///d/c", "postgresql://host/d/c?tls=1", "postgresql://u:secret@host/d/c", "postgresql://host:99999/d/c",
     "http://host/d/c", "postgresql://host/d/c?x", "postgresql://host/d/c:building", "postgresql://host/d/c?host=/tmp"],
)  # fmt: skip
def test_an_address_that_cannot_be_read_is_one_sentence_without_the_password(text):
    with pytest.raises(ValueError, match=r"address|PGPASSWORD") as caught:
        Address.parse(text)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_sentence(capsys, checkpoint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"postgresql://127.0.0.1:{taken.getsockname()[1]}/d/gallery"
        with pytest.raises(ConnectionError, match=r"could not answer.*pgvector"):
            PostgresIndex.load(address, model_identity=MODEL)
        assert search.main(["--checkpoint", str(checkpoint), "--text", "x", "--index", address]) == 2
    assert "could not answer" in " ".join(capsys.readouterr().err.split())


def test_two_builders_of_one_collection_do_not_mix(postgres):
    address = postgres("two-builders")
    first = PostgresIndex.create(address, 4, model_identity=MODEL)
    first.add("image", np.eye(4, dtype=np.float32)[:2], items(2))
    with pytest.raises(ValueError, match="Another process is building"):
        PostgresIndex.create(address, 4, model_identity=MODEL)
    first.save()
    second = PostgresIndex.create(address, 4, model_identity=MODEL)  # the first has ended
    second.add("image", np.eye(4, dtype=np.float32)[:3], items(3))
    assert PostgresIndex.load(address, model_identity=MODEL).counts == {"image": 2}  # searched until the second saves
    second.save()
    assert PostgresIndex.load(address, model_identity=MODEL).counts == {"image": 3}


def test_a_killed_builder_leaves_the_old_collection_and_does_not_block_the_next(postgres):
    address = postgres("killed-builder")
    build(address, np.eye(4, dtype=np.float32))
    code = (
        "import os, signal, numpy as np\nfrom fusemix.search.postgres_index import PostgresIndex\n"
        f"index = PostgresIndex.create({address!r}, 4, model_identity={MODEL!r})\n"
        "index.add('image', np.eye(4, dtype=np.float32)[:1], [{'id': 'half'}])\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    assert PostgresIndex.load(address, model_identity=MODEL).counts == {"image": 4}
    build(address, np.eye(4, dtype=np.float32)[:2])
    assert PostgresIndex.load(address, model_identity=MODEL).counts == {"image": 2}


def test_a_server_killed_within_a_build_comes_back_with_the_old_collection():
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as folder:
        server = start_server(folder)
        address = f"postgresql://postgres@/postgres/gallery?host={folder}"
        build(address, np.eye(4, dtype=np.float32))
        reader = PostgresIndex.load(address, model_identity=MODEL)
        building = PostgresIndex.create(address, 4, model_identity=MODEL)
        building.add("image", np.eye(4, dtype=np.float32)[:1], items(1))
        process = int(Path(folder, "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        for pid in [process, *map(int, children)]:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(ConnectionError, match="could not answer"):
            building.add("image", np.eye(4, dtype=np.float32)[:1], items(1))
        for lock in ("postmaster.pid", ".s.PGSQL.5432.lock"):  # a dead process that nobody has reaped counts as alive
            Path(folder, lock).unlink()
        server.ensure_postgres_running()
        with pytest.raises(ConnectionError, match="could not answer"):  # its lock is gone: a build is not resumed
            building.add("image", np.eye(4, dtype=np.float32)[:1], items(1))
        try:
            found = reader.search("image", np.eye(4)[:1], top_k=1)
        except ConnectionError:  # the first to notice that the connection is lost
            found = reader.search("image", np.eye(4)[:1], top_k=1)
        assert found[0][0].item["id"] == "0" and PostgresIndex.load(address, model_identity=MODEL).counts == {
            "image": 4
        }
        build(address, np.eye(4, dtype=np.float32)[:3])
        assert PostgresIndex.load(address, model_identity=MODEL).counts == {"image": 3}
        server.cleanup()


def test_missing_items_are_noticed(postgres):
    address = postgres("torn")
    index = build(address, np.eye(4, dtype=np.float32))
    with index._transaction() as cursor:
        cursor.execute("DELETE FROM fusemix.torn WHERE position = 1")
    with pytest.raises(ValueError, match=r"Items of .* are missing"):
        PostgresIndex.load(address, model_identity=MODEL)


@pytest.mark.parametrize("width", [32, 2_100])
def test_the_graph_finds_nearly_all_and_filters_do_not_thin_out_the_hits(postgres, monkeypatch, width):
    monkeypatch.setattr(postgres_index, "EXACT_UP_TO", 500)
    rows = unit(np.random.default_rng(0), 1_000, width)
    address = postgres(f"graph-{width}")
    build(address, rows)
    queries = np.random.default_rng(1).normal(size=(20, width))
    walked, exact = (PostgresIndex.load(a, model_identity=MODEL) for a in (address, address + "&exact=1"))
    with walked._transaction() as cursor:
        cursor.execute("SELECT count(*) FROM pg_indexes WHERE tablename = %s AND indexdef LIKE '%%hnsw%%'",
                       [f"graph-{width}"])  # fmt: skip
        assert cursor.fetchone() == (1,)
    for where in (None, {"licence": "GPL-2"}):
        found, true = (index.search("image", queries, top_k=10, where=where) for index in (walked, exact))
        shared = [len({h.item["id"] for h in a} & {h.item["id"] for h in b}) for a, b in zip(found, true, strict=True)]
        assert all(len(hits) == 10 for hits in found) and np.mean(shared) >= 8.5
        for query, hits in zip(queries / np.linalg.norm(queries, axis=1, keepdims=True), found, strict=True):
            cosines = [float(rows[int(hit.item["id"])] @ query) for hit in hits]  # float32, whatever the graph is of
            np.testing.assert_allclose([hit.similarity for hit in hits], cosines, atol=1e-5)


def test_threads_search_one_index_at_once(postgres):
    rows = unit(np.random.default_rng(0), 200, 16)
    build(postgres("threads"), rows)
    index, wrong = PostgresIndex.load(postgres("threads"), model_identity=MODEL), []

    def ask(start):
        for row in range(start, 200, 8):
            hit = index.search("image", rows[row : row + 1], top_k=1)[0][0]
            wrong.extend([row] if hit.item["id"] != str(row) else [])

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_scripts_build_and_search_a_collection(postgres, checkpoint, pairs, index_folder, tmp_path):
    address = postgres("scripts")
    assert build_index.main(["--checkpoint", str(checkpoint), "--pairs", str(pairs), "--index", address]) == 0
    found = {}
    for name, index in (("postgres", address), ("faiss", str(index_folder))):
        command = ["--text", "a red square", "--index", index, "--where", "licence=CC0-1.0"]
        out = tmp_path / f"{name}.json"
        assert search.main([*command, "--checkpoint", str(checkpoint), "--json", str(out)]) == 0
        found[name] = json.loads(out.read_text())
        for hit in [hit for hits in found[name]["hits"].values() for hit in hits]:
            hit["similarity"] = round(hit["similarity"], 4)
    assert found["postgres"] == found["faiss"] and len(found["faiss"]["hits"]["image"]) == 3


def test_the_app_serves_a_collection_once_it_knows_the_folder(postgres, checkpoint, pairs):
    from demo.service import Service

    address = postgres("app")
    assert build_index.main(["--checkpoint", str(checkpoint), "--pairs", str(pairs), "--index", address]) == 0
    service = Service.from_pretrained(checkpoint, f"{address}&root={pairs.parent}")
    answer = service.search_text("a red square")
    assert {hit.item["path"] for hit in answer.hits["image"]} == {"red.png", "green.png", "blue.png"}
    service.retriever.index.close()
    with pytest.raises(ValueError, match=r"knows no folder"):
        Service.from_pretrained(checkpoint, address)


def test_without_the_client_one_sentence_names_the_extra():
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from fusemix.search.retriever import load_index\n"
        "try: load_index('postgresql://host/d/c', model_identity='m')\n"
        "except ImportError as error: print(error)"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "fusemix[postgres]" in printed and printed.count("\n") == 1


def test_a_graph_that_does_not_fit_into_memory_is_told(postgres, monkeypatch, caplog):
    monkeypatch.setattr(postgres_index, "EXACT_UP_TO", 10)
    rows = unit(np.random.default_rng(0), 1000, 512)
    for memory, said in (("1MB", True), ("64MB", False)):
        caplog.clear()
        monkeypatch.setenv("PGOPTIONS", f"-c maintenance_work_mem={memory}")
        build(postgres("memory"), rows)
        assert ("PGOPTIONS='-c maintenance_work_mem=1GB' builds it in memory" in caplog.text) == said
