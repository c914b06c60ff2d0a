//! Writing behind: a thread writes what it was given while the next bytes are made.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

/// Bytes that are handed over at a time, and how many such parts there are.
const PART: usize = 1 << 20;
const PARTS: usize = 4;

/// A stream whose bytes a thread of `scope` writes. What it has not been told to [`finish`](Behind::finish) may be lost.
pub(crate) struct Behind<'s> {
    part: Vec<u8>,
    full: Option<SyncSender<Vec<u8>>>,
    empty: Receiver<Vec<u8>>,
    thread: Option<ScopedJoinHandle<'s, io::Result<()>>>,
}

impl<'s> Behind<'s> {
    pub fn new<'e>(scope: &'s Scope<'s, 'e>, mut to: impl Write + Send + 's) -> Behind<'s> {
        let (full, parts) = sync_channel::<Vec<u8>>(PARTS);
        let (back, empty) = sync_channel(PARTS);
        (1..PARTS).for_each(|_| back.send(Vec::with_capacity(PART)).expect("there is room for all parts"));
        let thread = scope.spawn(move || {
            for mut part in parts {
                to.write_all(&part)?;
                part.clear();
                // Nobody wants it back at the end.
                let _ = back.send(part);
            }
            to.flush()
        });
        Behind { part: Vec::with_capacity(PART), full: Some(full), empty, thread: Some(thread) }
    }

    /// Writes the rest, and says how all of it went.
    pub fn finish(mut self) -> io::Result<()> {
        self.hand_over()?;
        self.outcome()
    }

    fn hand_over(&mut self) -> io::Result<()> {
        let part = std::mem::take(&mut self.part);
        let sent = self.full.as_ref().is_some_and(|full| full.send(part).is_ok());
        match self.empty.recv() {
            Ok(part) if sent => {
                self.part = part;
                Ok(())
            }
            _ => self.outcome().and(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn outcome(&mut self) -> io::Result<()> {
        self.full = None;
        match self.thread.take().map(ScopedJoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            _ => Err(io::Error::other("the thread that writes has ended")),
        }
    }
}

impl Write for Behind<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PART - self.part.len());
        self.part.extend_from_slice(&bytes[..taken]);
        if self.part.len() == PART {
            self.hand_over()?;
        }
        Ok(taken)
    }

    /// Does nothing: see [`finish`](Behind::finish).
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes.
    struct Disk(Vec<u8>, usize);

    impl Write for &mut Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0.len() + bytes.len() > self.1 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn write(bytes: &[u8], room: usize) -> (io::Result<()>, Vec<u8>) {
        let mut disk = Disk(Vec::new(), room);
        let outcome = std::thread::scope(|scope| {
            let mut out = Behind::new(scope, &mut disk);
            bytes.chunks(70_001).try_for_each(|part| out.write_all(part))?;
            out.finish()
        });
        (outcome, disk.0)
    }

    #[test]
    fn everything_arrives_in_order() {
        for length in [0, 1, PART, 9 * PART + 5] {
            let bytes: Vec<u8> = (0..length).map(|i| (i * 131 % 251) as u8).collect();
            let (outcome, found) = write(&bytes, length);
            outcome.unwrap();
            assert!(found == bytes, "{length}");
        }
    }

    #[test]
    fn the_error_is_that_of_the_disk() {
        for room in [0, 3 * PART, 8 * PART] {
            let (outcome, _) = write(&vec![1; 9 * PART], room);
            assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::StorageFull, "{room}");
        }
    }
}
