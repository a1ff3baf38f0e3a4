//! What is known about evaluations, in `SQLite`: it outlives the server.

use std::path::Path;

use facewise_evaluation::report::ModelSummary;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::de::DeserializeOwned;

use super::{Evaluation, Order, Progress, Status};

/// Steps from one layout of the tables to the next; how many were taken is the database's `user_version`.
const LAYOUTS: [&str; 1] = ["
    CREATE TABLE evaluations (
        id TEXT PRIMARY KEY,
        status TEXT NOT NULL,
        requested TEXT NOT NULL,
        model TEXT,
        created TEXT NOT NULL,
        started TEXT,
        finished TEXT,
        finished_unix INTEGER,
        done INTEGER NOT NULL DEFAULT 0,
        total INTEGER NOT NULL,
        error TEXT,
        report TEXT
    ) STRICT;
    CREATE INDEX evaluations_status ON evaluations (status, id);
"];

const COLUMNS: &str = "id, status, requested, model, created, started, finished, done, total, error, report";

/// The evaluations on disk.
pub(super) struct Store {
    connection: Mutex<Connection>,
}

/// Something is wrong with the database.
pub(super) type Result<T> = rusqlite::Result<T>;

impl Store {
    /// Opens the file, and makes it and its tables where they are not there yet.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut connection = Connection::open(path)?;
        // A crash of the machine may take the last changes back; the file stays sound, and evaluations are done again.
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        let version: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        for (next, layout) in (1u32..).zip(LAYOUTS).skip(version as usize) {
            let change = connection.transaction()?;
            change.execute_batch(layout)?;
            change.pragma_update(None, "user_version", next)?;
            change.commit()?;
        }
        Ok(Self { connection: Mutex::new(connection) })
    }

    /// Puts an evaluation at the end of the line.
    pub(super) fn add(&self, id: &str, order: &Order, total: u64, now: &str) -> Result<()> {
        self.connection.lock().execute(
            "INSERT INTO evaluations (id, status, requested, total, created) VALUES (?1, 'queued', ?2, ?3, ?4)",
            params![id, json(order)?, total as i64, now],
        )?;
        Ok(())
    }

    /// One evaluation.
    pub(super) fn get(&self, id: &str) -> Result<Option<Evaluation>> {
        let sql = format!("SELECT {COLUMNS} FROM evaluations WHERE id = ?1");
        self.connection.lock().query_row(&sql, [id], evaluation).optional()
    }

    /// The newest evaluations, the newest first; only those before one with this id, if it is given.
    pub(super) fn list(&self, before: Option<&str>, limit: usize) -> Result<Vec<Evaluation>> {
        let sql = format!("SELECT {COLUMNS} FROM evaluations WHERE ?1 IS NULL OR id < ?1 ORDER BY id DESC LIMIT ?2");
        let connection = self.connection.lock();
        let mut statement = connection.prepare(&sql)?;
        statement.query_map(params![before, limit as i64], evaluation)?.collect()
    }

    /// The report as JSON, of an evaluation that has one.
    pub(super) fn report(&self, id: &str) -> Result<Option<String>> {
        let sql = "SELECT report FROM evaluations WHERE id = ?1";
        Ok(self.connection.lock().query_row(sql, [id], |row| row.get(0)).optional()?.flatten())
    }

    /// How many there are with a status.
    pub(super) fn count(&self, status: Status) -> Result<u64> {
        let sql = "SELECT COUNT(*) FROM evaluations WHERE status = ?1";
        self.connection.lock().query_row(sql, [status.name()], |row| row.get(0)).map(|count: i64| count as u64)
    }

    /// Takes the one that has waited longest, which is running from now on.
    pub(super) fn take_next(&self, now: &str) -> Result<Option<Evaluation>> {
        let sql = format!(
            "UPDATE evaluations SET status = 'running', started = COALESCE(started, ?1)
             WHERE id = (SELECT id FROM evaluations WHERE status = 'queued' ORDER BY id LIMIT 1) RETURNING {COLUMNS}"
        );
        self.connection.lock().query_row(&sql, [now], evaluation).optional()
    }

    /// The model that one was begun with.
    pub(super) fn model(&self, id: &str) -> Result<Option<ModelSummary>> {
        let connection = self.connection.lock();
        let sql = "SELECT model FROM evaluations WHERE id = ?1 AND model IS NOT NULL";
        connection.query_row(sql, [id], |row| parsed(row, 0)).optional()
    }

    /// Notes with which model a running one was begun.
    pub(super) fn begin(&self, id: &str, model: &ModelSummary) -> Result<()> {
        let sql = "UPDATE evaluations SET model = ?2 WHERE id = ?1";
        self.connection.lock().execute(sql, params![id, json(model)?]).map(drop)
    }

    /// Ends a running one; whether it was still there.
    pub(super) fn finish(&self, id: &str, end: &End<'_>) -> Result<bool> {
        let sql =
            "UPDATE evaluations SET status = ?2, finished = ?3, finished_unix = ?4, done = ?5, error = ?6, report = ?7
                   WHERE id = ?1 AND status = 'running'";
        let End { status, now, unix, done, error, report } = end;
        let changed = self
            .connection
            .lock()
            .execute(sql, params![id, status.name(), now, *unix as i64, *done as i64, error, report])?;
        Ok(changed > 0)
    }

    /// Takes one that waits out of the line; whether it was there.
    pub(super) fn cancel_queued(&self, id: &str, now: &str, unix: u64) -> Result<bool> {
        let sql = "UPDATE evaluations SET status = 'cancelled', finished = ?2, finished_unix = ?3
                   WHERE id = ?1 AND status IN ('queued', 'interrupted')";
        Ok(self.connection.lock().execute(sql, params![id, now, unix as i64])? > 0)
    }

    /// Puts an interrupted one back into the line, from the beginning; whether it was interrupted.
    pub(super) fn restart(&self, id: &str) -> Result<bool> {
        let sql = "UPDATE evaluations SET status = 'queued', model = NULL, started = NULL, finished = NULL, finished_unix = NULL,
                   done = 0, error = NULL WHERE id = ?1 AND status = 'interrupted'";
        Ok(self.connection.lock().execute(sql, [id])? > 0)
    }

    /// Puts what was running when the last server ended back into the line; how many those were.
    pub(super) fn resume(&self) -> Result<usize> {
        self.connection.lock().execute("UPDATE evaluations SET status = 'queued' WHERE status = 'running'", [])
    }

    /// Forgets an evaluation; whether there was one.
    pub(super) fn remove(&self, id: &str) -> Result<bool> {
        Ok(self.connection.lock().execute("DELETE FROM evaluations WHERE id = ?1", [id])? > 0)
    }

    /// Forgets those that ended before a moment; their ids.
    pub(super) fn remove_finished_before(&self, unix: u64) -> Result<Vec<String>> {
        let connection = self.connection.lock();
        let mut statement = connection.prepare("DELETE FROM evaluations WHERE finished_unix < ?1 RETURNING id")?;
        statement.query_map([unix as i64], |row| row.get(0))?.collect()
    }

    /// Whether there is an evaluation.
    pub(super) fn has(&self, id: &str) -> Result<bool> {
        self.connection
            .lock()
            .query_row("SELECT EXISTS (SELECT 1 FROM evaluations WHERE id = ?1)", [id], |row| row.get(0))
    }
}

/// How an evaluation ends.
pub(super) struct End<'a> {
    pub(super) status: Status,
    pub(super) now: &'a str,
    pub(super) unix: u64,
    pub(super) done: u64,
    pub(super) error: Option<String>,
    pub(super) report: Option<String>,
}

fn evaluation(row: &Row<'_>) -> Result<Evaluation> {
    let order: Order = parsed(row, 2)?;
    let model: Option<ModelSummary> = row.get_ref(3)?.as_str_or_null()?.map(|_| parsed(row, 3)).transpose()?;
    let report = row.get_ref(10)?.as_str_or_null()?.map(|_| parsed(row, 10)).transpose()?;
    let count = |index| row.get(index).map(|count: i64| count as u64);
    let status: String = row.get(1)?;
    let status = Status::ALL.into_iter().find(|known| known.name() == status).ok_or_else(|| {
        let error = format!("'{status}' is no status").into();
        rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, error)
    })?;
    Ok(Evaluation {
        id: row.get(0)?,
        status,
        order,
        version: model.map(|model| model.version),
        created: row.get(4)?,
        started: row.get(5)?,
        finished: row.get(6)?,
        progress: Progress { done: count(7)?, total: count(8)? },
        error: row.get(9)?,
        report,
    })
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

fn parsed<T: DeserializeOwned>(row: &Row<'_>, index: usize) -> Result<T> {
    let text = row.get_ref(index)?.as_str()?;
    serde_json::from_str(text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, error.into()))
}
