"""Many machines, one study: two worker processes and a kill, over a PostgreSQL that the test starts itself."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sweeping

from cirbench.studies.storage import with_driver

optuna = pytest.importorskip("optuna")


def _programs() -> Path | None:
    """The folder of the server's own programs; what is on the path may be a link into it."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "initdb").is_file() and (f / "postgres").is_file()), None)


def _unprivileged() -> pwd.struct_passwd | None:
    """Whom the server runs as: it refuses root."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


@pytest.fixture
def database() -> Iterator[str]:
    """URL of an empty database, on a port of its own."""
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed (the extra `storage`)")
    programs, user = _programs(), _unprivileged()
    if programs is None:
        pytest.skip("no PostgreSQL server here (initdb and postgres are not installed)")
    if user is None:
        pytest.skip("PostgreSQL refuses root, and there is no unprivileged user here")
    # Not below pytest's own folder, which other users may not enter.
    folder = Path(tempfile.mkdtemp(prefix="cirbench-pg-"))
    who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    if who:
        os.chown(folder, user.pw_uid, user.pw_gid)
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": str(folder)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = None
    try:
        made = subprocess.run(
            [programs / "initdb", "-D", folder / "data", "-U", "tester", "--auth=trust", "--no-sync", "-E", "UTF8"],
            cwd=folder, env=environment, capture_output=True, text=True, **who,
        )
        assert made.returncode == 0, made.stderr
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder, "-c", "fsync=off",
                 "-c", "listen_addresses=127.0.0.1"],
                cwd=folder, env=environment, stdout=log, stderr=log, **who,
            )
        import psycopg2

        for _ in range(300):
            try:
                psycopg2.connect(host="127.0.0.1", port=port, user="tester", dbname="postgres").close()
                break
            except psycopg2.OperationalError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # at once, whoever is connected
            server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def test_workers_over_a_database_lose_nothing(database: str, tmp_path: Path) -> None:
    over_a_database(database, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_twenty_killed_workers_over_a_database_lose_nothing(database: str, tmp_path: Path) -> None:
    hits = over_a_database(database, tmp_path, 20)
    assert sum(h != "nothing" for h in hits) >= 15, hits


def over_a_database(database: str, folder: Path, rounds: int) -> list[str]:
    """Each round has a database of its own: the studies have one name."""
    import psycopg2

    urls = [f"{database.rpartition('/')[0]}/round{number}" for number in range(rounds)]
    server = psycopg2.connect(database)
    server.autocommit = True
    for number in range(rounds):
        server.cursor().execute(f"CREATE DATABASE round{number}")
    server.close()
    hits = sweeping.crashes(folder, rounds, lambda number: ["--storage", urls[number]])
    for number, url in enumerate(urls):
        assert not list((folder / f"broken{number}").glob("sweeps/*/journal.log")), "the study is in the database"
        (study,) = optuna.get_all_study_summaries(with_driver(url))
        trials = optuna.load_study(study_name=study.study_name, storage=with_driver(url)).trials
        assert [t.state.name for t in trials if "void" not in t.user_attrs] == ["COMPLETE"] * 6
    return hits


def test_a_machine_with_folders_of_its_own_joins_the_study(database: str, tmp_path: Path) -> None:
    file = sweeping.write(tmp_path)
    more = ("--storage", database, "--seeds", "0")
    both = [subprocess.Popen(sweeping.command(file, tmp_path / name, *more)) for name in ("here", "there")]
    assert [p.wait(500) for p in both] == [0, 0]
    (study,) = optuna.get_all_study_summaries(with_driver(database))
    trials = [t for t in optuna.load_study(study_name=study.study_name, storage=with_driver(database)).trials
              if "void" not in t.user_attrs]
    assert [(t.number, t.state.name) for t in trials] == [(n, "COMPLETE") for n in range(6)]
    done = [{p.name for p in (tmp_path / name).iterdir() if p.name != "sweeps"} for name in ("here", "there")]
    assert not done[0] & done[1] and len(done[0] | done[1]) == 6, "every run was done once, on one of the two"
    for name in ("here", "there"):
        assert len(sweeping.read(tmp_path / name)["runs"]) == 6, "each knows of all of them"


def test_a_server_that_does_not_answer_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed (the extra `storage`)")
    from cirbench.cli import main

    with pytest.raises(SystemExit) as stopped:
        main(["sweep", sweeping.write(tmp_path), "--out", str(tmp_path / "runs"),
              "--storage", "postgresql://me:secret@127.0.0.1:1/none"])
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and "--storage postgresql://me:***@" in message and "secret" not in message
