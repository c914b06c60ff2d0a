//! Buffers that remember what happened to each element.

use super::RunFault;
use hadal_types::DType;

/// A buffer's bytes and which of its elements hold something.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Buffer {
    /// Elements as they are in memory.
    pub bytes: Vec<u8>,
    /// For each element, whether it was ever written.
    pub initialised: Vec<bool>,
}

impl Buffer {
    /// A buffer of `dtype` with these contents.
    pub fn from_bytes(dtype: DType, bytes: Vec<u8>) -> Buffer {
        let count = bytes.len() as u64 * 8 / dtype.bits();
        Buffer { bytes, initialised: vec![true; count as usize] }
    }

    /// `count` elements that must be written before they are read.
    pub fn uninit(dtype: DType, count: usize) -> Buffer {
        Buffer { bytes: vec![0xcd; dtype.bytes(count as u64) as usize], initialised: vec![false; count] }
    }

    /// f32 elements.
    pub fn from_f32(values: &[f32]) -> Buffer {
        Buffer::from_bytes(DType::F32, values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// i32 elements.
    pub fn from_i32(values: &[i32]) -> Buffer {
        Buffer::from_bytes(DType::I32, values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// The bytes as f32 elements.
    pub fn to_f32(&self) -> Vec<f32> {
        self.bytes.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
    }

    /// The bytes as i32 elements.
    pub fn to_i32(&self) -> Vec<i32> {
        self.bytes.chunks_exact(4).map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
    }
}

/// One access: by which grid index, which thread of it and at which of its steps.
#[derive(Clone, Debug)]
pub(super) struct Who {
    pub grid: i64,
    pub slot: usize,
    pub clock: u32,
    pub seq: u64,
    /// Accesses of this grid index before that one are ordered before this one.
    pub base: u64,
}

impl Who {
    /// Whether an access with `now`'s clock comes after this one.
    fn is_before(&self, now: &Who, clock: &[u32]) -> bool {
        self.grid == now.grid && (self.seq <= now.base || self.clock <= clock.get(self.slot).copied().unwrap_or(0))
    }

    fn name(&self) -> String {
        format!(
            "grid index {} thread {}{}",
            self.grid,
            self.slot,
            if self.clock == OPEN { " (not waited for)" } else { "" }
        )
    }
}

#[derive(Clone, Default)]
struct Shadow {
    writer: Option<Who>,
    readers: Vec<Who>,
}

/// Readers remembered per element.
const READERS: usize = 32;

/// The step of an access that is not over: before nothing.
const OPEN: u32 = u32::MAX;

/// Elements an interpreted allocation may have.
const MAX_ELEMENTS: u64 = 1 << 28;

pub(super) struct Memory {
    name: String,
    dtype: DType,
    shape: Vec<i64>,
    pub buffer: Buffer,
    /// Empty for buffers nobody writes.
    shadow: Vec<Shadow>,
}

impl Memory {
    pub fn of_param(
        name: &str,
        dtype: DType,
        shape: Vec<i64>,
        buffer: Buffer,
        track: bool,
    ) -> Result<Memory, RunFault> {
        let expected = count(name, &shape)?;
        let found = buffer.initialised.len() as u64;
        if expected > found || dtype.bytes(found) > buffer.bytes.len() as u64 {
            return Err(RunFault::ArgumentSize { buffer: name.into(), expected, found });
        }
        let shadow = vec![Shadow::default(); if track { found as usize } else { 0 }];
        Ok(Memory { name: name.into(), dtype, shape, buffer, shadow })
    }

    pub fn new(name: &str, dtype: DType, shape: Vec<i64>) -> Result<Memory, RunFault> {
        let n = count(name, &shape)? as usize;
        let buffer = Buffer::uninit(dtype, n);
        Ok(Memory { name: name.into(), dtype, shape, buffer, shadow: vec![Shadow::default(); n] })
    }

    /// The flat index of an element; `whole` where it begins a vector, which cannot start inside a byte.
    pub fn locate(&self, at: Vec<i64>, whole: bool) -> Result<u64, RunFault> {
        let flat = locate(&self.name, &self.shape, &at)?;
        if whole && !(flat * self.dtype.bits()).is_multiple_of(8) {
            return Err(RunFault::Misaligned { buffer: self.name.clone(), at });
        }
        Ok(flat)
    }

    /// Whether there is such an element.
    pub fn is_inside(&self, flat: u64) -> Result<(), RunFault> {
        let n = self.buffer.initialised.len() as u64;
        if flat < n {
            return Ok(());
        }
        let (at, index) = (vec![flat as i64], flat as i64);
        Err(RunFault::OutOfBounds { buffer: self.name.clone(), dim: 0, index, extent: n as i64, at })
    }

    /// What is wrong with an element where no product may begin.
    pub fn misaligned(&self, flat: u64) -> RunFault {
        RunFault::Misaligned { buffer: self.name.clone(), at: self.coordinates(flat) }
    }

    pub fn read(&mut self, flat: u64, who: &Who, clock: &[u32]) -> Result<u64, RunFault> {
        let i = flat as usize;
        if !self.buffer.initialised[i] {
            return Err(RunFault::Uninitialised { buffer: self.name.clone(), at: self.coordinates(flat) });
        }
        if let Some(shadow) = self.shadow.get(i) {
            if let Some(writer) = shadow.writer.as_ref().filter(|w| !w.is_before(who, clock)).cloned() {
                return Err(self.race(flat, who, &writer));
            }
            let open = |r: &Who| r.grid == who.grid && r.slot == who.slot && r.clock == OPEN;
            if !shadow.readers.iter().any(open) {
                self.reader(flat, who.clone());
            }
        }
        Ok(self.get(flat))
    }

    pub fn write(&mut self, flat: u64, bits: u64, who: &Who, clock: &[u32]) -> Result<(), RunFault> {
        self.claim(flat, who, clock)?;
        self.finish(flat, bits);
        Ok(())
    }

    /// The element is being written by a copy: nobody may touch it.
    pub fn begin_copy(&mut self, flat: u64, who: &Who, clock: &[u32]) -> Result<(), RunFault> {
        self.claim(flat, who, clock)?;
        self.shadow[flat as usize].writer = Some(Who { clock: OPEN, ..who.clone() });
        self.buffer.initialised[flat as usize] = false;
        Ok(())
    }

    /// It is written.
    pub fn end_copy(&mut self, flat: u64, bits: u64, who: &Who) {
        self.shadow[flat as usize].writer = Some(who.clone());
        self.finish(flat, bits);
    }

    /// The element is being read: nobody may write it. Gives who wrote it.
    pub fn begin_read(&mut self, flat: u64, who: &Who, clock: &[u32]) -> Result<Option<(usize, u32)>, RunFault> {
        self.read(flat, who, clock)?;
        self.reader(flat, Who { clock: OPEN, ..who.clone() });
        let writer = self.shadow.get(flat as usize).and_then(|s| s.writer.as_ref());
        Ok(writer.map(|w| (w.slot, w.clock)))
    }

    /// It is read, unless there is another reading that is not over.
    pub fn end_read(&mut self, flat: u64, who: &Who, open: bool) -> u64 {
        if !open {
            self.reader(flat, who.clone());
        }
        self.get(flat)
    }

    /// Remembers a thread's latest reading.
    fn reader(&mut self, flat: u64, who: Who) {
        let Some(shadow) = self.shadow.get_mut(flat as usize) else { return };
        match shadow.readers.iter().position(|r| r.grid == who.grid && r.slot == who.slot) {
            Some(known) => shadow.readers[known] = who,
            None if shadow.readers.len() < READERS => shadow.readers.push(who),
            None => {}
        }
    }

    fn finish(&mut self, flat: u64, bits: u64) {
        self.buffer.initialised[flat as usize] = true;
        self.set(flat, bits);
    }

    /// What is wrong with reading an element that was written without a fence.
    pub fn no_fence(&self, flat: u64) -> RunFault {
        RunFault::NoFence { buffer: self.name.clone(), at: self.coordinates(flat) }
    }

    fn claim(&mut self, flat: u64, who: &Who, clock: &[u32]) -> Result<(), RunFault> {
        let shadow = &mut self.shadow[flat as usize];
        let other = shadow.writer.iter().chain(&shadow.readers).find(|w| !w.is_before(who, clock));
        if let Some(other) = other.cloned() {
            return Err(self.race(flat, who, &other));
        }
        shadow.readers.clear();
        shadow.writer = Some(who.clone());
        Ok(())
    }

    fn race(&self, flat: u64, who: &Who, other: &Who) -> RunFault {
        let at = self.coordinates(flat);
        RunFault::Race { buffer: self.name.clone(), at, who: who.name(), other: other.name() }
    }

    fn coordinates(&self, flat: u64) -> Vec<i64> {
        let mut rest = flat as i64;
        let mut at: Vec<i64> = self
            .shape
            .iter()
            .rev()
            .map(|extent| {
                let coordinate = rest % extent.max(&1);
                rest /= extent.max(&1);
                coordinate
            })
            .collect();
        at.reverse();
        at
    }

    fn get(&self, flat: u64) -> u64 {
        if self.dtype.bits() == 4 {
            let byte = self.buffer.bytes[flat as usize / 2];
            return (byte >> (flat % 2 * 4) & 15) as u64;
        }
        let size = (self.dtype.bits() / 8) as usize;
        let start = flat as usize * size;
        let bytes = &self.buffer.bytes[start..start + size];
        bytes.iter().rev().fold(0, |bits, b| bits << 8 | *b as u64)
    }

    fn set(&mut self, flat: u64, bits: u64) {
        if self.dtype.bits() == 4 {
            let byte = &mut self.buffer.bytes[flat as usize / 2];
            let shift = flat % 2 * 4;
            *byte = *byte & !(15 << shift) | ((bits as u8 & 15) << shift);
            return;
        }
        let size = (self.dtype.bits() / 8) as usize;
        let start = flat as usize * size;
        self.buffer.bytes[start..start + size].copy_from_slice(&bits.to_le_bytes()[..size]);
    }
}

/// The flat index of an element.
pub(super) fn locate(name: &str, shape: &[i64], at: &[i64]) -> Result<u64, RunFault> {
    let mut flat = 0u64;
    for (dim, index) in at.iter().enumerate() {
        let extent = shape.get(dim).copied().unwrap_or(1);
        if !(0..extent).contains(index) {
            let (buffer, at) = (name.into(), at.to_vec());
            return Err(RunFault::OutOfBounds { buffer, dim, index: *index, extent, at });
        }
        flat = flat * extent as u64 + *index as u64;
    }
    Ok(flat)
}

pub(super) fn count(name: &str, shape: &[i64]) -> Result<u64, RunFault> {
    let n = shape.iter().try_fold(1u64, |n, d| n.checked_mul((*d).max(0) as u64));
    n.filter(|n| *n <= MAX_ELEMENTS).ok_or_else(|| RunFault::TooLarge { buffer: name.into() })
}
