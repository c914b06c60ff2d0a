//! Who wrote and read each word of memory last, so that an access that nothing orders behind is found.
//!
//! A cell is four bytes; one that is ever accessed in part is split into bytes. Writes keep the last writer, reads
//! all readers since: one entry for the lanes of a warp that read at the same time.

use std::collections::HashMap;

use super::clock::{Component, Level, Views};

/// Set in [`Stamp::who`] for an asynchronous operation, whose time is known when it completes.
pub(crate) const OPERATION: u32 = 1 << 31;
const NOBODY: u32 = u32::MAX;

/// An access: by which component of which cluster, when, where in the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp {
    pub who: u32,
    pub cluster: u32,
    pub time: u32,
    pub pc: u32,
    /// Strong accesses do not race with each other.
    pub strong: bool,
    /// By the asynchronous proxy.
    pub asynchronous: bool,
}

const NO_STAMP: Stamp = Stamp { who: NOBODY, cluster: 0, time: 0, pc: 0, strong: false, asynchronous: false };

/// Readers that share a time: lanes of a warp, or one asynchronous operation.
#[derive(Clone, Copy, Debug)]
struct Readers {
    /// Of lane 0, or of an operation.
    stamp: Stamp,
    lanes: u32,
}

#[derive(Clone, Debug)]
struct Cell {
    write: Stamp,
    reader: Readers,
    more: Vec<Readers>,
    split: bool,
}

const EMPTY: Cell =
    Cell { write: NO_STAMP, reader: Readers { stamp: NO_STAMP, lanes: 0 }, more: Vec::new(), split: false };

/// When asynchronous operations completed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Operations {
    /// The component whose time tells, and that time once the operation is done.
    pub done: Vec<(Component, Option<u32>)>,
}

/// Who accesses.
#[derive(Clone, Copy)]
pub(crate) struct Accessor<'a> {
    pub views: &'a Views,
    pub lane: u32,
    /// What must lie between an ordinary write and this.
    pub level: Level,
    pub stamp: Stamp,
    pub operations: &'a [Operations],
}

/// Two accesses that nothing orders.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conflict {
    pub other: Stamp,
    /// Whether the other wrote.
    pub wrote: bool,
    /// Whether only the proxy fence is missing.
    pub unfenced: bool,
}

impl Accessor<'_> {
    fn ordered(&self, stamp: Stamp, level: Level) -> bool {
        let (who, time) = if stamp.who & OPERATION != 0 {
            let operations = self.operations.get(stamp.cluster as usize);
            let Some((component, done)) = operations.and_then(|o| o.done.get((stamp.who & !OPERATION) as usize)) else {
                return false;
            };
            let Some(time) = *done else { return false };
            (*component, time)
        } else {
            (stamp.who, stamp.time)
        };
        self.views.knows(self.lane, level, stamp.cluster, who, time)
    }

    /// An earlier write against this access.
    fn against_write(&self, write: Stamp) -> Result<(), Conflict> {
        if write.who == NOBODY || (write.strong && self.stamp.strong) {
            return Ok(());
        }
        let known = self.ordered(write, Level::Known);
        let fenced = known && (write.asynchronous || self.level == Level::Known || self.ordered(write, self.level));
        if fenced { Ok(()) } else { Err(Conflict { other: write, wrote: true, unfenced: known }) }
    }

    /// Earlier reads against this write.
    fn against_readers(&self, readers: Readers) -> Result<(), Conflict> {
        if readers.stamp.who == NOBODY || (readers.stamp.strong && self.stamp.strong) {
            return Ok(());
        }
        let mut lanes = readers.lanes;
        while lanes != 0 {
            let lane = lanes.trailing_zeros();
            lanes &= lanes - 1;
            let stamp = if readers.stamp.who & OPERATION != 0 {
                readers.stamp
            } else {
                Stamp { who: readers.stamp.who + lane, ..readers.stamp }
            };
            if !self.ordered(stamp, Level::Known) {
                return Err(Conflict { other: stamp, wrote: false, unfenced: false });
            }
        }
        Ok(())
    }

    /// The readers that this access is; lanes of a warp share an entry.
    fn readers(&self) -> Readers {
        // Components that no warp owns, and operations, stand alone.
        let lane = self.stamp.who.wrapping_sub(self.views.first);
        if self.stamp.who & OPERATION == 0 && lane < 32 {
            Readers { stamp: Stamp { who: self.views.first, ..self.stamp }, lanes: 1 << lane }
        } else {
            Readers { stamp: self.stamp, lanes: 1 }
        }
    }
}

impl Cell {
    fn read(&mut self, by: &Accessor) -> Result<(), Conflict> {
        by.against_write(self.write)?;
        let new = by.readers();
        if absorb(&mut self.reader, new) {
            return Ok(());
        }
        let more = &mut self.more;
        more.retain_mut(|r| !covered(r, new));
        if !more.iter_mut().any(|r| merge(r, new)) {
            more.push(new);
        }
        Ok(())
    }

    fn write(&mut self, by: &Accessor) -> Result<(), Conflict> {
        by.against_write(self.write)?;
        by.against_readers(self.reader)?;
        for readers in &self.more {
            by.against_readers(*readers)?;
        }
        self.write = by.stamp;
        self.reader = EMPTY.reader;
        self.more.clear();
        Ok(())
    }
}

fn same(a: &Stamp, b: &Stamp) -> bool {
    a.who == b.who && a.cluster == b.cluster && a.time == b.time && a.strong == b.strong && a.pc == b.pc
}

/// Joins lanes that read at the same time.
fn merge(readers: &mut Readers, new: Readers) -> bool {
    let joins = same(&readers.stamp, &new.stamp);
    if joins {
        readers.lanes |= new.lanes;
    }
    joins
}

/// Whether later reads by the same lanes make an entry superfluous; lanes that read again leave it.
fn covered(readers: &mut Readers, new: Readers) -> bool {
    let own = readers.stamp.who == new.stamp.who && readers.stamp.cluster == new.stamp.cluster;
    if own && (new.stamp.strong == readers.stamp.strong || readers.stamp.strong) && !same(&readers.stamp, &new.stamp) {
        readers.lanes &= !new.lanes;
    }
    readers.lanes == 0
}

fn absorb(readers: &mut Readers, new: Readers) -> bool {
    if readers.stamp.who == NOBODY || covered(readers, new) {
        *readers = new;
        return true;
    }
    merge(readers, new)
}

/// The cells of a piece of memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shadow {
    cells: Vec<Cell>,
    split: HashMap<u32, Box<[Cell; 4]>>,
}

impl Shadow {
    pub(crate) fn new(bytes: usize) -> Shadow {
        Shadow { cells: vec![EMPTY; bytes.div_ceil(4)], split: HashMap::new() }
    }

    pub(crate) fn read(&mut self, at: u32, length: u32, by: &Accessor) -> Result<(), Conflict> {
        self.each(at, length, |cell| cell.read(by))
    }

    pub(crate) fn write(&mut self, at: u32, length: u32, by: &Accessor) -> Result<(), Conflict> {
        self.each(at, length, |cell| cell.write(by))
    }

    fn each(
        &mut self,
        at: u32,
        length: u32,
        mut access: impl FnMut(&mut Cell) -> Result<(), Conflict>,
    ) -> Result<(), Conflict> {
        let end = at + length;
        let mut from = at;
        while from < end {
            let index = from / 4;
            let to = (index * 4 + 4).min(end);
            let cell = &mut self.cells[index as usize];
            if to - from == 4 && !cell.split {
                access(cell)?;
            } else {
                if !cell.split {
                    cell.split = true;
                    let part = Cell { split: false, ..cell.clone() };
                    self.split.insert(index, Box::new([part.clone(), part.clone(), part.clone(), part]));
                }
                if let Some(parts) = self.split.get_mut(&index) {
                    for byte in from..to {
                        access(&mut parts[(byte % 4) as usize])?;
                    }
                }
            }
            from = to;
        }
        Ok(())
    }
}
