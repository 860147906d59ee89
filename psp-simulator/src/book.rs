//! The book: every charge and every stored answer, on disk before it is told. One line of JSON an event, appended;
//! synced once for all that gathered while the last sync ran.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

/// Events synced together at most.
const BATCH: usize = 1024;

/// A charge as the PSP keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    /// The PSP's id.
    pub id: String,
    /// Place in the book, counted from 1.
    pub sequence: u64,
    /// The caller's reference.
    pub reference: String,
    /// The key that made it.
    pub idempotency_key: String,
    /// succeeded, pending, declined or failed.
    pub status: String,
    /// Minor units charged.
    pub amount: i64,
    /// ISO 4217 code.
    pub currency: String,
    /// Why not.
    pub code: String,
    /// For people.
    pub message: String,
    /// Whether money moved.
    pub executed: bool,
    /// Milliseconds since 1970 at which a pending charge is decided; 0 when it is.
    pub decide_at: u64,
    /// What a pending charge is decided to be.
    pub decision: String,
    /// What was asked: the same key with another question is refused.
    pub fingerprint: String,
}

/// Where a key stands.
#[derive(Debug, Clone)]
pub enum Key {
    /// A call with it is under way.
    InProgress,
    /// Its answer is stored.
    Stored(Box<Charge>),
}

#[derive(Debug, Default)]
struct Index {
    charges: Vec<Charge>,
    by_id: HashMap<String, usize>,
    by_reference: HashMap<String, Vec<usize>>,
    by_key: HashMap<String, Key>,
    calls: HashMap<String, u32>,
}

/// The book.
#[derive(Debug)]
pub struct Book {
    index: Mutex<Index>,
    writer: mpsc::UnboundedSender<(String, oneshot::Sender<()>)>,
}

impl Index {
    /// Takes a line of the book: a new charge, or a decided one.
    fn take(&mut self, charge: Charge) {
        self.by_key.insert(charge.idempotency_key.clone(), Key::Stored(Box::new(charge.clone())));
        if let Some(place) = self.by_id.get(&charge.id) {
            self.charges[*place] = charge;
            return;
        }
        let place = self.charges.len();
        self.by_id.insert(charge.id.clone(), place);
        self.by_reference.entry(charge.reference.clone()).or_default().push(place);
        self.charges.push(charge);
    }
}

impl Book {
    /// Opens the book in this folder, or begins one. A last line that a crash cut off was never told to anybody, and
    /// is dropped.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join("book.jsonl");
        let mut index = Index::default();
        let mut good = 0;
        if let Ok(file) = File::open(&path) {
            let mut reader = BufReader::new(file);
            let mut line = String::new();
            while reader.read_line(&mut line)? > 0 {
                let Ok(charge) = serde_json::from_str(&line) else { break };
                if !line.ends_with('\n') {
                    break;
                }
                good += line.len() as u64;
                index.take(charge);
                line.clear();
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        file.set_len(good)?;
        let (writer, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || write(file, lines));
        Ok(Self { index: Mutex::new(index), writer })
    }

    /// Takes a key for a call, or answers what the key stands for. Answers the number of the charge's call too.
    pub fn begin(&self, key: &str, reference: &str) -> Result<u32, Key> {
        let mut index = self.lock();
        if let Some(known) = index.by_key.get(key) {
            return Err(known.clone());
        }
        index.by_key.insert(key.to_owned(), Key::InProgress);
        let calls = index.calls.entry(reference.to_owned()).or_default();
        *calls += 1;
        Ok(*calls)
    }

    /// Gives a key back whose call stored nothing.
    pub fn release(&self, key: &str) {
        let mut index = self.lock();
        if matches!(index.by_key.get(key), Some(Key::InProgress)) {
            index.by_key.remove(key);
        }
    }

    /// Writes a charge, gives it its id and place, and returns when it is on disk.
    pub async fn write(&self, mut charge: Charge) -> Charge {
        let (done, written) = oneshot::channel();
        {
            // Places are given and lines are sent under one lock: the book's lines stand in the order of their places.
            let mut index = self.lock();
            if charge.id.is_empty() {
                charge.sequence = index.charges.len() as u64 + 1;
                charge.id = format!("sim_{:08}", charge.sequence);
                // The place is taken at once, but the key answers "in progress" until the charge is on disk.
                index.take(charge.clone());
                index.by_key.insert(charge.idempotency_key.clone(), Key::InProgress);
            }
            let mut line = serde_json::to_string(&charge).unwrap_or_default();
            line.push('\n');
            // The writer lives as long as the book; it ends the process if the disk fails.
            let _ = self.writer.send((line, done));
        }
        let _ = written.await;
        self.lock().take(charge.clone());
        charge
    }

    /// Charges by the caller's reference.
    pub fn by_reference(&self, reference: &str) -> Vec<Charge> {
        let index = self.lock();
        let places = index.by_reference.get(reference).map(Vec::as_slice).unwrap_or_default();
        places.iter().map(|place| index.charges[*place].clone()).collect()
    }

    /// Charges after a place in the book.
    pub fn after(&self, sequence: u64, limit: usize) -> Vec<Charge> {
        let start = usize::try_from(sequence).unwrap_or(usize::MAX);
        self.lock().charges.iter().skip(start).take(limit).cloned().collect()
    }

    /// Charges that are still to be decided.
    pub fn undecided(&self) -> Vec<Charge> {
        self.lock().charges.iter().filter(|charge| charge.decide_at > 0).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes and syncs what has gathered, then says so. A full or broken disk ends the process: a PSP that cannot write
/// its book must not answer.
fn write(mut file: File, mut lines: mpsc::UnboundedReceiver<(String, oneshot::Sender<()>)>) {
    let mut gathered = Vec::new();
    while lines.blocking_recv_many(&mut gathered, BATCH) > 0 {
        let text: String = gathered.iter().map(|(line, _)| line.as_str()).collect();
        if let Err(error) = file.write_all(text.as_bytes()).and_then(|()| file.sync_data()) {
            eprintln!("psp-simulator: the book: {error}");
            std::process::exit(1);
        }
        for (_, done) in gathered.drain(..) {
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charge(key: &str) -> Charge {
        Charge {
            id: String::new(),
            sequence: 0,
            reference: "ch_1".into(),
            idempotency_key: key.into(),
            status: "succeeded".into(),
            amount: 100,
            currency: "EUR".into(),
            code: String::new(),
            message: String::new(),
            executed: true,
            decide_at: 0,
            decision: String::new(),
            fingerprint: "f".into(),
        }
    }

    #[tokio::test]
    async fn the_book_survives_a_crash_in_the_middle_of_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let book = Book::open(folder.path()).unwrap();
        assert_eq!(book.begin("k1", "ch_1").unwrap(), 1);
        let written = book.write(charge("k1")).await;
        drop(book);
        let mut file = OpenOptions::new().append(true).open(folder.path().join("book.jsonl")).unwrap();
        file.write_all(b"{\"id\":\"sim_half").unwrap();
        let book = Book::open(folder.path()).unwrap();
        assert_eq!(book.by_reference("ch_1"), std::slice::from_ref(&written));
        assert!(matches!(book.begin("k1", "ch_1"), Err(Key::Stored(stored)) if *stored == written));
        let second = book.write(charge("k2")).await;
        assert_eq!(second.sequence, 2);
        assert_eq!(Book::open(folder.path()).unwrap().after(0, 10).len(), 2);
    }

    #[test]
    fn a_key_is_in_progress_until_it_is_stored_or_released() {
        let folder = tempfile::tempdir().unwrap();
        let book = Book::open(folder.path()).unwrap();
        assert!(book.begin("k", "r").is_ok());
        assert!(matches!(book.begin("k", "r"), Err(Key::InProgress)));
        book.release("k");
        assert_eq!(book.begin("k", "r").unwrap(), 2);
    }
}
