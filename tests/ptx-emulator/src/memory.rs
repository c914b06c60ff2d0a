//! Global memory: allocations with guards between them, and which bytes of them were ever written.

use std::collections::HashSet;

use crate::module::Module;

/// Where the first allocation lies: far above what fits into 32 bits, so that a truncated address is no address.
const FIRST: u64 = 0x2000_0000_0000;
const GUARD: u64 = 1 << 16;
/// Allocations begin at multiples of it, as those of a driver do.
const ALIGN: u64 = 256;

/// A set of small numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bitmap(Vec<u64>);

impl Bitmap {
    pub(crate) fn new(length: usize, value: bool) -> Bitmap {
        Bitmap(vec![if value { u64::MAX } else { 0 }; length.div_ceil(64)])
    }

    pub(crate) fn set(&mut self, from: usize, length: usize) {
        let mut at = from;
        while at < from + length {
            let take = (64 - at % 64).min(from + length - at);
            self.0[at / 64] |= crate::types::mask(take as u32) << (at % 64);
            at += take;
        }
    }

    pub(crate) fn all(&self, from: usize, length: usize) -> bool {
        let mut at = from;
        while at < from + length {
            let take = (64 - at % 64).min(from + length - at);
            let wanted = crate::types::mask(take as u32) << (at % 64);
            if self.0[at / 64] & wanted != wanted {
                return false;
            }
            at += take;
        }
        true
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Allocation {
    pub base: u64,
    pub bytes: Vec<u8>,
    pub written: Bitmap,
    pub constant: bool,
}

/// The memory of a device.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Sorted by address.
    pub(crate) allocations: Vec<Allocation>,
    next: u64,
    last: usize,
    modules: HashSet<u64>,
}

impl Memory {
    /// Empty memory.
    pub fn new() -> Memory {
        Memory { next: FIRST, ..Memory::default() }
    }

    /// The address of `bytes` new bytes, which must be written before they are read.
    pub fn allocate(&mut self, bytes: usize) -> u64 {
        let base = self.next.max(FIRST);
        self.next = (base + bytes as u64 + GUARD).next_multiple_of(ALIGN);
        self.add(Allocation { base, bytes: vec![0xa5; bytes], written: Bitmap::new(bytes, false), constant: false });
        base
    }

    /// The address of a copy of `bytes`.
    pub fn upload(&mut self, bytes: &[u8]) -> u64 {
        let base = self.allocate(bytes.len());
        self.write(base, bytes);
        base
    }

    /// Gives an allocation back: no address in it is good any more.
    ///
    /// # Panics
    ///
    /// If none begins there.
    pub fn free(&mut self, address: u64) {
        let index = self.allocations.binary_search_by_key(&address, |a| a.base).expect("where an allocation begins");
        self.allocations.remove(index);
        self.last = 0;
    }

    fn add(&mut self, allocation: Allocation) {
        let at = self.allocations.partition_point(|a| a.base < allocation.base);
        self.allocations.insert(at, allocation);
        self.last = 0;
    }

    /// Writes bytes into one allocation.
    ///
    /// # Panics
    ///
    /// If they do not lie in one: it is the caller's own address.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        let (index, offset) = self.find(address, bytes.len()).expect("an address that was allocated");
        self.allocations[index].bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.allocations[index].written.set(offset, bytes.len());
    }

    /// Reads bytes of one allocation; nothing if they were not all written.
    pub fn read(&mut self, address: u64, bytes: usize) -> Option<Vec<u8>> {
        let (index, offset) = self.find(address, bytes)?;
        let allocation = &self.allocations[index];
        allocation.written.all(offset, bytes).then(|| allocation.bytes[offset..offset + bytes].to_vec())
    }

    /// Reads numbers; nothing if they were not all written.
    pub fn read_f32(&mut self, address: u64, count: usize) -> Option<Vec<f32>> {
        let bytes = self.read(address, 4 * count)?;
        Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// Reads numbers; nothing if they were not all written.
    pub fn read_u32(&mut self, address: u64, count: usize) -> Option<Vec<u32>> {
        let bytes = self.read(address, 4 * count)?;
        Some(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// Which allocation holds some bytes, and where in it.
    pub(crate) fn find(&mut self, address: u64, length: usize) -> Option<(usize, usize)> {
        let inside = |a: &Allocation| address >= a.base && address - a.base + length as u64 <= a.bytes.len() as u64;
        if self.allocations.get(self.last).is_some_and(inside) {
            return Some((self.last, (address - self.allocations[self.last].base) as usize));
        }
        let index = self.allocations.partition_point(|a| a.base <= address).checked_sub(1)?;
        inside(&self.allocations[index]).then(|| {
            self.last = index;
            (index, (address - self.allocations[index].base) as usize)
        })
    }

    /// The nearest allocation, in words, for what found none.
    pub(crate) fn near(&self, address: u64) -> String {
        let index = self.allocations.partition_point(|a| a.base <= address);
        match index.checked_sub(1).map(|i| &self.allocations[i]) {
            Some(a) => {
                let end = a.base + a.bytes.len() as u64;
                format!("the allocation below is {:#x} to {end:#x}", a.base)
            }
            None => "it is below all allocations".into(),
        }
    }

    /// Puts the variables of a module in place when it runs for the first time.
    pub(crate) fn load(&mut self, module: &Module) {
        if self.modules.insert(module.id) {
            for (base, bytes, constant) in module.variables() {
                let written = Bitmap::new(bytes.len(), true);
                self.add(Allocation { base, bytes, written, constant });
            }
        }
    }
}
