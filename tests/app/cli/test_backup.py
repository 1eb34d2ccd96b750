"""`anamorph backup` and `restore`: every row and byte comes back, on either kind of storage, or nothing does."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from sqlalchemy import select

from app.cli.backup import requeue
from app.core.errors import AnamorphError, Conflict, StorageDamaged
from app.core.jobs import state as jobs
from app.core.store import backup, blobs
from app.core.store.database import engine, migrate, reading, transaction
from app.core.store.tables import job_events, metadata
from app.core.store.tables import jobs as job_table
from tests.app.cli.conftest import forgetting, job_states
from tests.app.conftest import new_bucket
from tests.servers import new_database, postgres_url

OLD = Path(__file__).parents[2] / "golden" / "data-0.1.tar.xz"


@pytest.fixture(params=["embedded", "servers"])
def empty(request, home, tmp_path, monkeypatch):
    """Switches to an empty database and blob store, of each kind."""

    def switch() -> None:
        if request.param == "servers":
            url = new_database(postgres_url())
            bucket = new_bucket(request.getfixturevalue("s3"), monkeypatch)
            forgetting(home)(DATABASE_URL=url, BLOBS_URL=bucket, data_dir=tmp_path / "there")
        else:
            folder = tmp_path / "there"
            urls = {"DATABASE_URL": f"sqlite:///{folder}/anamorph.db", "BLOBS_URL": f"file://{folder}/blobs"}
            forgetting(home)(**urls, data_dir=folder)
        migrate()

    yield switch
    engine().dispose()


def rows() -> dict[str, list[dict]]:
    with reading() as conn:
        tables = (table for table in metadata.sorted_tables if table.name != "workers")
        return {
            table.name: [dict(row) for row in conn.execute(select(table).order_by(*table.primary_key)).mappings()]
            for table in tables
        }


def without_random_ids(tables: dict[str, list[dict]]) -> dict[str, list]:
    """A migration gives the counts of ended jobs ids of no meaning."""
    counts = [{**row, "id": None} for row in tables["ended_jobs"]]
    return tables | {"ended_jobs": sorted(map(str, counts))}


def files() -> dict[str, bytes]:
    return {key: blobs.get(key) for root in backup.ROOTS for key, _ in blobs.list(root)}


def nothing(conn) -> None: ...


def test_every_row_and_byte_comes_back_on_another_kind_of_storage(filled, empty, tmp_path):
    before, bytes_before = rows(), files()
    written = backup.write(tmp_path / "backup")
    assert not written.bad and written.files == len(bytes_before)
    assert written.bytes == sum(map(len, bytes_before.values()))
    empty()
    restored = backup.read(tmp_path / "backup", nothing)
    assert (restored.rows, restored.files, restored.bytes) == (written.rows, written.files, written.bytes)
    assert rows() == before and files() == bytes_before


def test_jobs_that_ran_wait_again_and_those_being_cancelled_are(filled, empty, tmp_path):
    backup.write(tmp_path / "backup")
    empty()
    backup.read(tmp_path / "backup", requeue)
    found = {state: job_states()[job] for state, job in filled.jobs.items()}
    assert found == {
        "succeeded": "succeeded", "failed": "failed", "running": "queued", "queued": "queued", "canceling": "canceled"
    }  # fmt: skip
    with transaction() as conn:
        row = conn.execute(select(job_table).where(job_table.c.id == filled.jobs["running"])).mappings().one()
        assert row["failures"] == 0 and row["published_at"] is None and row["checkpoint"]["images"] == 8
        claim = jobs.claim(conn, row["id"], "elsewhere")
        assert claim.attempt == 2
        kinds = conn.execute(select(job_events.c.kind).where(job_events.c.job_id == row["id"])).scalars().all()
    assert kinds.count("queued") == 2


def test_nothing_is_overwritten(filled, empty, tmp_path):
    backup.write(tmp_path / "backup")
    with pytest.raises(Conflict, match="not empty"):
        backup.read(tmp_path / "backup", nothing)
    empty()
    blobs.put(filled.files["weights"], b"other bytes")
    with pytest.raises(Conflict, match="other bytes"):
        backup.read(tmp_path / "backup", nothing)
    assert blobs.get(filled.files["weights"]) == b"other bytes" and not any(rows().values())


@pytest.mark.parametrize("storage", ["embedded"], indirect=True)
@pytest.mark.parametrize("empty", ["embedded"], indirect=True)
class TestDamage:
    def test_an_interrupted_restore_is_repeated(self, filled, empty, tmp_path):
        before, bytes_before = rows(), files()
        backup.write(tmp_path / "backup")
        empty()

        def fail(conn) -> None:
            raise RuntimeError("power cut")

        with pytest.raises(RuntimeError):
            backup.read(tmp_path / "backup", fail)
        assert not any(rows().values())
        backup.read(tmp_path / "backup", nothing)
        assert rows() == before and files() == bytes_before

    def test_a_damaged_backup_is_refused_and_its_rest_restored_on_request(self, filled, empty, tmp_path):
        backup.write(tmp_path / "backup")
        (tmp_path / "backup" / "blobs" / filled.files["weights"]).write_bytes(b"damaged")
        empty()
        with pytest.raises(StorageDamaged, match="weights"):
            backup.read(tmp_path / "backup", nothing)
        assert not any(rows().values())
        found = backup.read(tmp_path / "backup", nothing, skip_damaged=True)
        assert found.bad == [filled.files["weights"]] and blobs.exists(filled.files["arrays"])

    @pytest.mark.parametrize("file", ["tables/jobs.jsonl", "blobs.jsonl", "manifest.json"])
    def test_a_damaged_list_is_refused(self, filled, empty, tmp_path, file):
        backup.write(tmp_path / "backup")
        path = tmp_path / "backup" / file
        path.write_bytes(path.read_bytes()[:-5])
        empty()
        with pytest.raises(AnamorphError, match=r"damaged|no readable manifest"):
            backup.read(tmp_path / "backup", nothing)
        assert not any(rows().values())

    def test_a_damaged_file_never_replaces_the_good_copy_of_the_backup_before(self, filled, tmp_path, empty):
        backup.write(tmp_path / "backup")
        for kind in ("weights", "artifact"):
            good = blobs.get(filled.files[kind])
            blobs.put(filled.files[kind], b"?" * len(good), create_only=False)
            found = backup.write(tmp_path / "backup")
            assert len(found.kept) == 1 and not found.bad and filled.files[kind] in found.kept[0]
            assert (tmp_path / "backup" / "blobs" / filled.files[kind]).read_bytes() == good
            blobs.put(filled.files[kind], good, create_only=False)

    def test_damage_without_an_older_copy_is_told(self, filled, tmp_path, empty):
        blobs.delete_prefix(filled.files["weights"])
        found = backup.write(tmp_path / "backup")
        assert len(found.bad) == 1 and "missing" in found.bad[0] and filled.files["weights"] in found.bad[0]

    def test_a_checkpoint_that_is_replaced_meanwhile_is_followed(self, filled, tmp_path, empty, monkeypatch):
        copy, job = backup._copy, filled.jobs["running"]
        key = f"jobs/{job}/1/checkpoint-16.safetensors"

        def replaced(*arguments) -> None:
            if not blobs.exists(key):  # between the rows and the files
                with transaction() as conn:
                    row = conn.execute(select(job_table).where(job_table.c.id == job)).mappings().one()
                    (entry,) = row["checkpoint"]["kept"]
                    blobs.put(key, blobs.get(entry["key"]))
                    ref = {"images": 16, "kept": [entry | {"key": key}], "marks": []}
                    jobs.add_checkpoint(conn, job, row["token"], ref)
                blobs.delete_prefix(entry["key"])
            copy(*arguments)

        monkeypatch.setattr(backup, "_copy", replaced)
        assert not backup.write(tmp_path / "backup").bad
        assert (tmp_path / "backup" / "blobs" / key).is_file()
        listed = [json.loads(line) for line in (tmp_path / "backup" / "tables" / "jobs.jsonl").read_text().splitlines()]
        assert key in str(listed)

    def test_a_folder_that_is_no_backup_is_refused_and_left_alone(self, filled, tmp_path, empty):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("text")
        with pytest.raises(Conflict, match="is no backup"):
            backup.write(tmp_path / "mine")
        assert (tmp_path / "mine" / "thesis.txt").read_text() == "text"
        with pytest.raises(AnamorphError, match="no readable manifest"):
            backup.read(tmp_path / "mine", nothing)

    def test_files_that_no_row_names_are_left_out(self, filled, tmp_path, empty):
        blobs.put("models/0000/weights.safetensors", b"of a model that was deleted")
        backup.write(tmp_path / "backup")
        assert not (tmp_path / "backup" / "blobs" / "models" / "0000").exists()


def test_a_backup_of_the_folder_of_release_0_1_is_restored_at_its_schema_and_migrated(home, empty, tmp_path):
    """Rows and files of the last release, backed up before anything migrated them."""
    with tarfile.open(OLD) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "anamorph-data"
    shutil.copytree(folder, tmp_path / "twin")
    urls = {"DATABASE_URL": f"sqlite:///{folder}/anamorph.db", "BLOBS_URL": f"file://{folder}/blobs"}
    forgetting(home)(**urls, data_dir=folder)
    written = backup.write(tmp_path / "backup")
    assert not written.bad and written.rows["models"] > 3
    assert json.loads((tmp_path / "backup" / "manifest.json").read_text())["schema"] < "0006"
    twin = {"DATABASE_URL": f"sqlite:///{tmp_path}/twin/anamorph.db", "BLOBS_URL": f"file://{tmp_path}/twin/blobs"}
    forgetting(home)(**twin)
    migrate()
    expected, expected_files = rows(), files()
    empty()
    backup.read(tmp_path / "backup", nothing)
    assert without_random_ids(rows()) == without_random_ids(expected)
    assert files().items() <= expected_files.items()
    with transaction() as conn:
        requeue(conn)
    assert "running" not in job_states().values()
