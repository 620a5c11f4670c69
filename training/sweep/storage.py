"""The database of a sweep, an Optuna study: an SQLite file, or a PostgreSQL that several machines share.

Optuna numbers trials and changes their states atomically. Three things are added, so that any process may end at any
moment: starting a trial excludes all other processes (in PostgreSQL by an advisory lock, which the server frees),
running trials have heartbeats, and an outage of the database is waited for.
"""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from distillery import DistilleryError
from training.data.views import draw_seed

if TYPE_CHECKING:  # an extra: at run time it is imported where it is used
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from sqlalchemy import Engine
    from sqlalchemy.engine import URL

FILE_LOCK_S = 60
"""How long a process waits for the lock of an SQLite file."""
MISSED_HEARTBEATS = 3
"""A running trial is failed after this many intervals without a heartbeat, and its settings are tried again."""
RETRIES = 3
"""How often the settings of a trial are tried again; they may be what ends the processes, for lack of memory."""
OUTAGE_S = 120
"""How long a running sweep waits for a database that does not respond."""
LONGEST_PAUSE_S = 5
LOCK_HOLD_S = 60
"""PostgreSQL ends the session of a process that holds the lock for longer: its host may be disconnected."""
CONNECTION = {
    "connect_timeout": 10,  # seconds, as the other values; a peer that vanished is noticed after half a minute
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,  # milliseconds
    "application_name": "distillery-train sweep",
}
"""Parameters of libpq, unless the URL has them. https://www.postgresql.org/docs/15/libpq-connect.html"""
T = TypeVar("T")


@dataclass(frozen=True)
class SharedStudy:
    """A study and the database it is in."""

    study: "Study"
    storage: "RDBStorage"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude the processes of all machines, in PostgreSQL; other databases have no such lock."""
        with _locked(self.storage.engine, self.study.study_name):
            yield

    def retry(self, call: Callable[[], T]) -> T:
        """Return the result of `call`, which is repeated during an outage of the database, for at most two minutes."""
        from optuna.exceptions import StorageInternalError  # noqa: PLC0415
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

        began, pause = time.monotonic(), 0.5
        while True:
            try:
                return call()
            except (StorageInternalError, SQLAlchemyError) as error:
                if not self._is_outage(error) or time.monotonic() + pause > began + OUTAGE_S:
                    raise
                if pause == 0.5:
                    message = f"--storage: {_reason(error)}; trying again for {OUTAGE_S} seconds"
                    print(message, file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def beat(self, number: int) -> None:
        """Record a heartbeat of a trial."""
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        self.storage.record_heartbeat(self.storage.get_trial_id_from_study_id_trial_number(study_id, number))

    @contextmanager
    def heartbeats(self, number: int) -> Iterator[None]:
        """Record the heartbeats of a trial in the background. An outage of the database is ignored."""
        from optuna.exceptions import StorageInternalError  # noqa: PLC0415
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

        ended, interval = Event(), self.storage.get_heartbeat_interval()

        def record() -> None:
            while not ended.wait(interval):
                with suppress(StorageInternalError, SQLAlchemyError):
                    self.beat(number)

        thread = Thread(target=record, name="heartbeats", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def fail_stale_trials(self) -> None:
        """Fail the running trials without heartbeats, and queue their settings."""
        from optuna.storages import fail_stale_trials  # noqa: PLC0415

        with _without_warnings():
            fail_stale_trials(self.study)

    def ask(self, distributions: "dict[str, BaseDistribution]") -> "Trial":
        """Start a trial, a queued one first."""
        with _without_warnings():
            return self.study.ask(distributions)

    def _is_outage(self, error: Exception) -> bool:
        from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError  # noqa: PLC0415

        # SQLAlchemy's own errors are caused by the driver's; Optuna's by SQLAlchemy's.
        found = error if isinstance(error, SQLAlchemyError) else error.__cause__
        return self.storage.engine.dialect.name != "sqlite" and isinstance(
            found, (OperationalError, InterfaceError)
        )


def open_study(url: str, name: str, *, heartbeat: int) -> SharedStudy:
    """Return the study of that name in the database at `url`, created if missing. Call within `storage_errors`.

    `heartbeat`: interval of the heartbeats of running trials, seconds.
    """
    import optuna  # noqa: PLC0415
    from sqlalchemy import create_engine, make_url  # noqa: PLC0415
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parsed = make_url(url)
    if "@" in (parsed.host or ""):
        raise ArgumentError("an @ in the password must be written as %40")
    options = _engine_options(parsed)
    try:
        with _without_warnings():
            retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
            engine = create_engine(parsed, **options)
            # Two processes that create the tables at the same time would both fail.
            with _locked(engine, "tables"):
                storage = optuna.storages.RDBStorage(
                    url,
                    engine_kwargs=options,
                    heartbeat_interval=heartbeat,
                    grace_period=MISSED_HEARTBEATS * heartbeat,
                    heartbeat_stale_trial_callback=retry,
                )
            engine.dispose()
    except (ImportError, RuntimeError) as error:  # no driver; tables of another version of Optuna
        raise optuna.exceptions.StorageInternalError(str(error)) from None
    study = optuna.create_study(
        storage=storage, study_name=name, directions=["minimize", "minimize"], load_if_exists=True
    )
    return SharedStudy(study, storage)


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn database errors into a `DistilleryError` that names the URL without its password."""
    from optuna.exceptions import StorageInternalError  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = _reason(error)
        raise DistilleryError(f"--storage {without_password(url)}: {reason}; {_fix(reason)}") from None


def without_password(url: str) -> str:
    """Return `url` as it may be shown: without a password, also where a typing error makes it invalid."""
    from sqlalchemy import make_url  # noqa: PLC0415
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return url if "@" not in url else f"…@{url.rpartition('@')[2]}"
    if "@" in (parsed.host or ""):  # what precedes it is the rest of the password
        parsed = parsed.set(host=str(parsed.host).rpartition("@")[2])
    secret = [name for name in parsed.query if "pass" in name.lower()]
    return parsed.difference_update_query(secret).render_as_string(hide_password=True)


def _engine_options(url: "URL") -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": FILE_LOCK_S}}
    if (
        url.get_backend_name() == "postgresql"
    ):  # pre-ping: a connection may have ended while a trial was trained
        given = {name: value for name, value in CONNECTION.items() if name not in url.query}
        return {"pool_pre_ping": True, "connect_args": given}
    return {"pool_pre_ping": True}


@contextmanager
def _locked(engine: "Engine", name: str) -> Iterator[None]:
    from sqlalchemy import text  # noqa: PLC0415

    if engine.dialect.name != "postgresql":
        yield
        return
    with engine.begin() as connection:  # the lock ends with the transaction, however that ends
        connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{LOCK_HOLD_S}s'"))
        connection.execute(text(f"SET LOCAL lock_timeout = '{2 * LOCK_HOLD_S}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": draw_seed("sweep", name)})
        yield


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Ignore that Optuna's heartbeats are experimental, and meant for `Study.optimize`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reason(error: Exception) -> str:
    """Return what the database or its driver reports, in one line."""
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

    found = error if isinstance(error, DBAPIError) else error.__cause__ or error
    return " ".join(str(found.orig if isinstance(found, DBAPIError) else found).split()).rstrip(".")


def _fix(reason: str) -> str:
    known = {
        "disk is full": "make space there, then run the same command to continue",
        "disk I/O error": "make space there, then run the same command to continue",
        "readonly": "make it writable for this user, or choose another one",
        "password": "give the password in the URL, in PGPASSWORD or in ~/.pgpass",
        "does not exist": "create it: createdb --owner USER NAME",
        "permission denied": "make the user the owner of the database: createdb --owner USER NAME",
        "import": "install its driver; for PostgreSQL: pip install '.[sweep]'",
        "No module": "install its driver; for PostgreSQL: pip install '.[sweep]'",
    }
    return next(
        (fix for part, fix in known.items() if part in reason),
        "give the URL of a reachable database whose driver is installed, such as sqlite:///runs/sweep.db or "
        "postgresql+psycopg://user@host/name",
    )
