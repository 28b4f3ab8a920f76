//! The typed store and the thread in which sled's blocking calls run.
//!
//! Changes that arrive while another is being flushed are applied and flushed together: one fsync
//! for all. The thread knows every acknowledged record (shared with the caller, not copied), which
//! is how it can make a database right that failed in the middle of a write.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::store::database::{Content, Database, Unopened};
use crate::store::{Error, Faults, Step, codec};

/// Most changes flushed together.
const GROUP: usize = 256;

/// One record changed.
#[derive(Debug)]
pub enum Change<R> {
    /// The record under this id is now this.
    Put(u64, Arc<R>),
    /// There is none under this id any more. The caller has made sure of that elsewhere: even if
    /// the database cannot be written now, it is made to agree later.
    Forget(u64),
}

/// What a database held when it was opened, not yet in use.
pub struct Opened<R> {
    /// The records that could be read, by id.
    pub records: Vec<(u64, R)>,
    /// Ids whose record could not, and why.
    pub damaged: Vec<(u64, codec::Broken)>,
    /// The highest id ever given out, as far as the database knows.
    pub last_id: u64,
    /// The database was damaged and has been replaced by an empty one.
    pub lost: Option<Error>,
    /// The database cannot be opened at present; it may hold more than is known.
    pub unavailable: Option<Error>,
    database: Option<Database>,
    dir: PathBuf,
}

/// Numbered records of one type, in sled.
pub struct Store<R> {
    jobs: Mutex<Option<mpsc::Sender<Job<R>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Job<R> {
    change: Change<R>,
    reply: oneshot::Sender<Result<(), Error>>,
}

struct Writer<R> {
    dir: PathBuf,
    /// `None`, or out of step with `truth`: to be opened again before the next change.
    database: Option<Database>,
    truth: BTreeMap<u64, Arc<R>>,
    last_id: u64,
    faults: Faults,
}

impl<R: Serialize + DeserializeOwned + Send + Sync + 'static> Store<R> {
    /// Opens the database in folder `dir` and reads all of it. What is damaged is reported in the
    /// result, not as an error: the caller has a second copy.
    ///
    /// # Errors
    /// A damaged database cannot be moved out of the way.
    pub fn open(dir: &Path) -> Result<Opened<R>, Error> {
        let mut opened = Opened {
            records: Vec::new(),
            damaged: Vec::new(),
            last_id: 0,
            lost: None,
            unavailable: None,
            database: None,
            dir: dir.to_owned(),
        };
        match open_and_read(dir) {
            Ok((database, content)) => {
                opened.database = Some(database);
                opened.last_id = content.last_id;
                for (id, bytes) in content.entries {
                    match codec::unseal(&bytes) {
                        Ok(record) => opened.records.push((id, record)),
                        Err(broken) => opened.damaged.push((id, broken)),
                    }
                }
            }
            Err(Unopened::Unavailable(error)) => opened.unavailable = Some(error),
            Err(Unopened::Damaged(error)) => {
                Database::move_aside(dir)?;
                opened.lost = Some(error);
            }
        }
        Ok(opened)
    }

    /// Applies one change and returns when it is on disk.
    ///
    /// # Errors
    /// It is not on disk, and the store is as if it had not been tried (except
    /// [`Change::Forget`]); trying again later may help.
    pub async fn apply(&self, change: Change<R>) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        match &*self.jobs.lock() {
            Some(jobs) => jobs
                .send(Job { change, reply })
                .map_err(|_| Error::Closed)?,
            None => return Err(Error::Closed),
        }
        answer.await.unwrap_or(Err(Error::Closed))
    }

    /// Finishes what was begun and closes the database. Blocks.
    pub fn close(&self) {
        drop(self.jobs.lock().take());
        let thread = self.thread.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the metadata thread panicked");
        }
    }
}

impl<R> Drop for Store<R> {
    fn drop(&mut self) {
        drop(self.jobs.get_mut().take());
        if let Some(thread) = self.thread.get_mut().take() {
            // A panic in it has been printed by the panic hook.
            let _ = thread.join();
        }
    }
}

impl<R: Serialize + DeserializeOwned + Send + Sync + 'static> Opened<R> {
    /// Makes the database hold exactly `truth` and starts the store. If it cannot be written now,
    /// the first change tries again.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(
        self,
        truth: BTreeMap<u64, Arc<R>>,
        last_id: u64,
        faults: Faults,
    ) -> Result<Store<R>, Error> {
        let mut writer = Writer {
            dir: self.dir,
            database: self.database,
            truth,
            last_id: last_id.max(self.last_id),
            faults,
        };
        if let Err(error) = writer.agree() {
            tracing::warn!(%error, "metadata database not usable at present");
            writer.database = None;
        }
        let (jobs, queue) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(|error| Error::Database(format!("cannot start its thread: {error}")))?;
        Ok(Store {
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
        })
    }
}

impl<R: Serialize + DeserializeOwned> Writer<R> {
    fn run(mut self, queue: &mpsc::Receiver<Job<R>>) {
        while let Ok(first) = queue.recv() {
            let mut group = vec![first];
            group.extend(queue.try_iter().take(GROUP - 1));
            self.group(group);
        }
    }

    fn group(&mut self, group: Vec<Job<R>>) {
        let (changes, replies): (Vec<_>, Vec<_>) =
            group.into_iter().map(|job| (job.change, job.reply)).unzip();
        let result = self.write(&changes);
        if let Err(error) = &result {
            tracing::warn!(%error, changes = changes.len(), "metadata not written");
            self.database = None;
        }
        for change in changes {
            match change {
                Change::Put(id, record) if result.is_ok() => {
                    self.truth.insert(id, record);
                }
                Change::Put(..) => {}
                Change::Forget(id) => {
                    self.truth.remove(&id);
                }
            }
        }
        for reply in replies {
            let answer = match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(Error::Database(error.to_string())),
            };
            // A caller that went away has no use for the answer.
            let _ = reply.send(answer);
        }
    }

    fn write(&mut self, changes: &[Change<R>]) -> Result<(), Error> {
        if self.database.is_none() {
            self.reopen()?;
        }
        let mut batch = Vec::with_capacity(changes.len());
        for change in changes {
            match change {
                Change::Put(id, record) => {
                    self.last_id = self.last_id.max(*id);
                    batch.push((*id, Some(seal(&**record)?)));
                }
                Change::Forget(id) => batch.push((*id, None)),
            }
        }
        self.put(batch)
    }

    fn put(&self, batch: Vec<(u64, Option<Vec<u8>>)>) -> Result<(), Error> {
        let database = self.database.as_ref().ok_or(Error::Closed)?;
        database.apply(batch, self.last_id)?;
        self.fault(Step::StoreApplied)?;
        database.flush()?;
        self.fault(Step::StoreFlushed)
    }

    fn fault(&self, step: Step) -> Result<(), Error> {
        self.faults
            .at(step)
            .map_err(|error| Error::Database(error.to_string()))
    }

    /// A failed write leaves sled refusing everything until it is closed and opened again, and
    /// may or may not have left its change behind.
    fn reopen(&mut self) -> Result<(), Error> {
        self.database = None;
        match Database::open(&self.dir) {
            Ok(database) => self.database = Some(database),
            Err(Unopened::Unavailable(error)) => return Err(error),
            Err(Unopened::Damaged(error)) => {
                tracing::error!(%error, "metadata database damaged, written anew");
                Database::move_aside(&self.dir)?;
            }
        }
        self.agree()?;
        tracing::info!("metadata database opened again");
        Ok(())
    }

    /// Makes the database hold exactly what is true, opening it first if need be.
    fn agree(&mut self) -> Result<(), Error> {
        let database = match self.database.take() {
            Some(database) => database,
            None => Database::open(&self.dir).map_err(Unopened::into_error)?,
        };
        let content = database.content()?;
        self.last_id = self.last_id.max(content.last_id);
        let mut missing: BTreeMap<u64, &Arc<R>> = self
            .truth
            .iter()
            .map(|(id, record)| (*id, record))
            .collect();
        let mut batch = Vec::new();
        for (id, bytes) in content.entries {
            match missing
                .get(&id)
                .map(|record| seal(&***record))
                .transpose()?
            {
                Some(right) if right == bytes => {
                    missing.remove(&id);
                }
                Some(_) => {}
                None => batch.push((id, None)),
            }
        }
        for (id, record) in missing {
            batch.push((id, Some(seal(&**record)?)));
        }
        self.database = Some(database);
        if batch.is_empty() && content.last_id == self.last_id {
            return Ok(());
        }
        self.put(batch)
    }
}

impl Unopened {
    fn into_error(self) -> Error {
        match self {
            Self::Unavailable(error) | Self::Damaged(error) => error,
        }
    }
}

fn open_and_read(dir: &Path) -> Result<(Database, Content), Unopened> {
    let database = Database::open(dir)?;
    let content = database.content().map_err(Unopened::Damaged)?;
    Ok((database, content))
}

fn seal<R: Serialize>(record: &R) -> Result<Vec<u8>, Error> {
    codec::seal(record).map_err(|broken| Error::Database(broken.to_string()))
}
