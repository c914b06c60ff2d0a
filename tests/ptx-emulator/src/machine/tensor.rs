//! Bulk copies and copies of tensors: what moves where is worked out when they are asked for, and moved when they
//! complete.

use super::Machine;
use super::clock::{Component, Level};
use super::copy::{BulkGroup, Pending};
use super::memory::{Target, combine};
use super::warp::{Outcome, Wait, Warp, lanes};
use crate::fault::{FaultKind, Run, trouble, trouble_at};
use crate::program::{Address, AtomicOp, Completion, Op, Reduction, Src};
use crate::tensor_map::{Element, TENSOR_MAP_BYTES, TensorMap};
use crate::types::{Space, Type};

/// A stretch of bytes of both sides.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Nothing where the tensor ends.
    global: Option<u64>,
    /// From the beginning of the block's memory.
    shared: u32,
    bytes: u32,
}

/// The block that is written, the barrier that is told, and the operation.
#[derive(Clone, Copy, Debug)]
struct Destination {
    slot: usize,
    /// What is added to offsets of pieces, modulo 2^32.
    shift: u32,
    barrier: (usize, u32),
    operation: u32,
}

#[derive(Debug)]
pub(crate) struct Transfer {
    pub pc: u32,
    pub slot: usize,
    cluster: u32,
    pieces: Vec<Piece>,
    /// What stands for elements outside of the tensor.
    fill: Vec<u8>,
    total: u32,
    /// Of loads.
    destinations: Vec<Destination>,
    /// Of copies from shared memory to that of another block: where those bytes come from.
    source: Option<u32>,
    /// Of stores: the operations that read and write, and their components and time.
    store: Option<(u32, u32, Component, Component, u32)>,
    reduce: Option<(AtomicOp, Type)>,
}

impl Transfer {
    pub(super) fn touches(&self, slot: usize) -> bool {
        self.slot == slot && (self.store.is_some() || self.source.is_some())
            || self.destinations.iter().any(|d| d.slot == slot)
    }
}

/// The type of an element for reductions.
fn element_type(element: Element) -> Type {
    match element {
        Element::U8 => Type::U8,
        Element::U16 => Type::U16,
        Element::U32 => Type::U32,
        Element::S32 => Type::S32,
        Element::U64 => Type::U64,
        Element::S64 => Type::S64,
        Element::F16 => Type::F16,
        Element::Bf16 => Type::Bf16,
        Element::F32 | Element::Tf32 => Type::F32,
        Element::F64 => Type::F64,
    }
}

fn nan(element: Element) -> Vec<u8> {
    match element {
        Element::F16 | Element::Bf16 => vec![0xff, 0x7f],
        Element::F32 | Element::Tf32 => vec![0xff, 0xff, 0xff, 0x7f],
        Element::F64 => vec![0, 0, 0, 0, 0, 0, 0xf8, 0x7f],
        other => vec![0; other.bytes() as usize],
    }
}

/// The pieces of a box at some coordinates, with the sectors of global memory that they touch.
fn pieces(map: &TensorMap, at: &[i32], shared: u32) -> (Vec<Piece>, u64) {
    let copied = map.copied();
    let size = map.element.bytes();
    let inner = copied[0] * size;
    let rows: u32 = copied[1..].iter().product();
    let (mut found, mut sectors) = (Vec::new(), 0);
    for row in 0..rows {
        let (mut rest, mut global, mut inside) = (row, map.base, true);
        for dim in 1..copied.len() {
            let index = i64::from(at[dim]) + i64::from(rest % copied[dim] * map.element_strides[dim]);
            rest /= copied[dim];
            inside &= index >= 0 && (index as u64) < map.sizes[dim];
            global = global.wrapping_add((index as u64).wrapping_mul(map.strides[dim - 1]));
        }
        let logical = shared + row * inner;
        let stride = i64::from(map.element_strides[0]);
        let place = |index: u32| -> Option<u64> {
            let column = i64::from(at[0]) + i64::from(index) * stride;
            (inside && column >= 0 && (column as u64) < map.sizes[0])
                .then(|| global.wrapping_add(column as u64 * u64::from(size)))
        };
        let mut index = 0;
        while index < copied[0] {
            let start = place(index);
            let begin = logical + index * size;
            let mut length = 1;
            // On to where the tensor begins or ends, elements stop being neighbours, or 16 bytes end.
            while index + length < copied[0]
                && !(begin + length * size).is_multiple_of(16)
                && place(index + length).is_some() == start.is_some()
                && (stride == 1 || start.is_none())
            {
                length += 1;
            }
            found.push(Piece { global: start, shared: map.swizzle.apply(begin), bytes: length * size });
            index += length;
        }
        if let (Some(first), Some(last)) = ((0..copied[0]).find_map(place), (0..copied[0]).rev().find_map(place)) {
            sectors += last / 32 - first / 32 + 1;
        }
    }
    (found, sectors)
}

impl Machine<'_> {
    pub(super) fn bulk(&mut self, warp: &mut Warp, op: &Op, active: u32) -> Run<Outcome> {
        match op {
            Op::TensorLoad { to, map, at, barrier, blocks } => {
                for lane in lanes(active) {
                    let tensor = self.tensor(warp, lane, map, at)?;
                    let (slot, offset) = self.shared_side(warp, lane, to, 128)?;
                    let coordinates = coordinates(warp, lane, at);
                    let (pieces, sectors) = pieces(&tensor, &coordinates, offset);
                    self.report.global_read_sectors += sectors;
                    let fill =
                        if tensor.nan_outside { nan(tensor.element) } else { vec![0; tensor.element.bytes() as usize] };
                    let barrier = self.address(warp, barrier, lane);
                    let blocks = blocks.map(|b| warp.lane(b, lane) as u16);
                    self.start_load(warp, lane, (slot, pieces, tensor.box_bytes(), fill), barrier, blocks, None)?;
                }
            }
            Op::TensorStore { from, map, at, reduce } => {
                for lane in lanes(active) {
                    let tensor = self.tensor(warp, lane, map, at)?;
                    let (_, offset) = self.shared_side(warp, lane, from, 128)?;
                    let coordinates = coordinates(warp, lane, at);
                    let (mut pieces, sectors) = pieces(&tensor, &coordinates, offset);
                    pieces.retain(|p| p.global.is_some());
                    self.report.global_written_sectors += sectors;
                    let reduce = match reduce {
                        Reduction::Store => None,
                        Reduction::Op(op) => Some((*op, element_type(tensor.element))),
                    };
                    self.start_store(warp, lane, pieces, reduce)?;
                }
            }
            Op::BulkCopy { to, to_space, from, from_space, bytes, done, blocks, reduce } => {
                for lane in lanes(active) {
                    let bytes = warp.lane(*bytes, lane) as u32;
                    if !bytes.is_multiple_of(16) {
                        let message = format!("a bulk copy of {bytes} bytes, which is no multiple of 16");
                        return trouble(FaultKind::Misaligned, 1 << lane, message);
                    }
                    let global = |a: u64, at: u32| {
                        (0..bytes / 16).map(move |i| Piece {
                            global: Some(a + u64::from(i) * 16),
                            shared: at + i * 16,
                            bytes: 16,
                        })
                    };
                    match (to_space, from_space, done) {
                        (Space::Global, _, _) => {
                            let (_, offset) = self.shared_side(warp, lane, from, 16)?;
                            let address = self.aligned(warp, lane, to)?;
                            let pieces = global(address, offset).collect();
                            self.report.global_written_sectors += sectors(address, bytes);
                            self.start_store(warp, lane, pieces, *reduce)?;
                        }
                        (_, Space::Global, Completion::Barrier(barrier)) => {
                            let (slot, offset) = self.shared_side(warp, lane, to, 16)?;
                            let address = self.aligned(warp, lane, from)?;
                            let pieces = global(address, offset).collect();
                            self.report.global_read_sectors += sectors(address, bytes);
                            let barrier = self.address(warp, barrier, lane);
                            let blocks = blocks.map(|b| warp.lane(b, lane) as u16);
                            let load = (slot, pieces, bytes, vec![0]);
                            self.start_load(warp, lane, load, barrier, blocks, None)?;
                        }
                        (_, _, Completion::Barrier(barrier)) => {
                            let (slot, offset) = self.shared_side(warp, lane, to, 16)?;
                            let (_, source) = self.shared_side(warp, lane, from, 16)?;
                            let barrier = self.address(warp, barrier, lane);
                            let pieces = vec![Piece { global: None, shared: offset, bytes }];
                            let load = (slot, pieces, bytes, vec![0]);
                            self.start_load(warp, lane, load, barrier, None, Some((source, *reduce)))?;
                        }
                        _ => return trouble(FaultKind::Descriptor, 1 << lane, "a bulk copy without an end"),
                    }
                }
            }
            Op::BulkCommit => {
                for lane in lanes(active) {
                    let state = &mut warp.copies[lane];
                    let operations = std::mem::take(&mut state.bulk_open);
                    state.bulk_groups.push(BulkGroup { operations });
                    state.bulk_committed += 1;
                }
            }
            Op::BulkWait { left, read } => {
                if !self.bulk_done(warp, active, *left, *read) {
                    return Ok(Outcome::Retry(Wait::Bulk { left: *left, read: *read }));
                }
                for lane in lanes(active) {
                    let state = &mut warp.copies[lane];
                    let time = state.bulk_committed.saturating_sub(*left);
                    state.bulk_waited = state.bulk_waited.max(time);
                    let Some((reads, writes)) = state.components else { continue };
                    warp.views.completed(1 << lane, reads, time);
                    if !*read {
                        warp.views.completed(1 << lane, writes, time);
                    }
                }
            }
            _ => {}
        }
        Ok(Outcome::Next)
    }

    /// Whether all but the last groups of some lanes are done.
    pub(super) fn bulk_done(&self, warp: &Warp, mask: u32, left: u32, _read: bool) -> bool {
        let done = &self.operations[warp.views.cluster as usize].done;
        lanes(mask).all(|lane| {
            let groups = &warp.copies[lane].bulk_groups;
            let due = groups.len().saturating_sub(left as usize);
            groups[..due].iter().flat_map(|g| &g.operations).all(|(read, _)| done[*read as usize].1.is_some())
        })
    }

    /// The tensor map of an instruction.
    fn tensor(&mut self, warp: &Warp, lane: usize, map: &Address, at: &[Src]) -> Run<TensorMap> {
        let address = self.address(warp, map, lane);
        if !address.is_multiple_of(64) {
            let message = "a tensor map that is not aligned to 64 bytes";
            return trouble_at(FaultKind::Misaligned, 1 << lane, Space::Generic, address, message);
        }
        // A parameter's own address may stand for its generic one.
        let space =
            if map.base.is_none() && address < crate::decode::CALL_PARAMS { Space::Param } else { Space::Generic };
        let target = self.resolve(warp, lane, space, address, TENSOR_MAP_BYTES as u32 / 2)?;
        let mut bytes = [0; TENSOR_MAP_BYTES];
        match target {
            Target::Param { offset } => {
                let Some(found) = self.params.get(offset as usize..offset as usize + TENSOR_MAP_BYTES) else {
                    return trouble(FaultKind::Descriptor, 1 << lane, "a tensor map beyond the parameters");
                };
                bytes.copy_from_slice(found);
            }
            Target::Global { .. } => {
                let Some(found) = self.memory.read(address, TENSOR_MAP_BYTES) else {
                    return trouble(FaultKind::Descriptor, 1 << lane, "a tensor map beyond its memory");
                };
                bytes.copy_from_slice(&found);
            }
            _ => return trouble(FaultKind::Descriptor, 1 << lane, "a tensor map in shared or local memory"),
        }
        let map = TensorMap::decode(&bytes).or_else(|e| trouble(FaultKind::Descriptor, 1 << lane, e))?;
        if map.sizes.len() != at.len() {
            let message = format!("{} coordinates for a tensor of rank {}", at.len(), map.sizes.len());
            return trouble(FaultKind::Descriptor, 1 << lane, message);
        }
        Ok(map)
    }

    fn shared_side(&mut self, warp: &Warp, lane: usize, address: &Address, align: u32) -> Run<(usize, u32)> {
        let at = self.address(warp, address, lane);
        if !at.is_multiple_of(u64::from(align)) {
            let message = format!("the address is no multiple of {align}");
            return trouble_at(FaultKind::Misaligned, 1 << lane, Space::Shared, at, message);
        }
        self.shared_place(warp.slot, at, 1 << lane)
    }

    fn aligned(&self, warp: &Warp, lane: usize, address: &Address) -> Run<u64> {
        let at = self.address(warp, address, lane);
        if at.is_multiple_of(16) {
            return Ok(at);
        }
        trouble_at(FaultKind::Misaligned, 1 << lane, Space::Global, at, "the address is no multiple of 16")
    }

    /// Checks and marks the global side.
    fn global_side(&mut self, warp: &Warp, lane: usize, pieces: &[Piece], write: bool, operation: u32) -> Run<()> {
        let stamp = self.operation_stamp(warp, operation, true);
        for piece in pieces {
            let Some(address) = piece.global else { continue };
            let Some((index, offset)) = self.memory.find(address, piece.bytes as usize) else {
                let message = format!("{} bytes; {}", piece.bytes, self.memory.near(address));
                return trouble_at(FaultKind::OutOfBounds, 1 << lane, Space::Global, address, message);
            };
            if write && self.memory.allocations[index].constant {
                let message = "a write to a variable of constant memory";
                return trouble_at(FaultKind::ReadOnly, 1 << lane, Space::Const, address, message);
            }
            let target = Target::Global { index, offset, address };
            self.shadowed(warp, lane, target, (piece.bytes, write), stamp, Level::FencedGlobal)?;
            let report = &mut self.report;
            *(if write { &mut report.global_written } else { &mut report.global_read }) += u64::from(piece.bytes);
        }
        Ok(())
    }

    fn inside(&self, lane: usize, slot: usize, offset: u32, bytes: u32) -> Run<()> {
        let size = self.blocks[slot].shared.len() as u32;
        if offset.checked_add(bytes).is_some_and(|end| end <= size) {
            return Ok(());
        }
        let message = format!("a bulk copy of {bytes} bytes; the block has {size}");
        trouble_at(FaultKind::OutOfBounds, 1 << lane, Space::Shared, u64::from(offset), message)
    }

    fn start_load(
        &mut self,
        warp: &mut Warp,
        lane: usize,
        (slot, pieces, total, fill): (usize, Vec<Piece>, u32, Vec<u8>),
        barrier: u64,
        blocks: Option<u16>,
        source: Option<(u32, Option<(AtomicOp, Type)>)>,
    ) -> Run<()> {
        let own = self.barrier_for_copy(warp, lane, barrier)?;
        if own.0 != slot && blocks.is_none() {
            return trouble(FaultKind::Barrier, 1 << lane, "a copy to one block that tells the barrier of another");
        }
        let mut destinations = Vec::new();
        let ranks: Vec<u32> = match blocks {
            None => vec![self.blocks[slot].rank],
            Some(mask) => (0..16).filter(|r| mask >> r & 1 == 1).collect(),
        };
        for rank in ranks {
            let Some(to) = self.peer(warp.slot, rank).filter(|&s| !self.blocks[s].done) else {
                let message = format!("a copy to block {rank} of the cluster, which is not there");
                return trouble(FaultKind::OutOfBounds, 1 << lane, message);
            };
            let barrier = (to, own.1);
            let Some(component) = self.blocks[to].mbarriers.get(&own.1).map(|b| b.component) else {
                let message = format!("block {rank} has no barrier at {:#x}", own.1);
                return trouble(FaultKind::Barrier, 1 << lane, message);
            };
            let operation = self.new_operation(warp.views.cluster, component);
            destinations.push(Destination { slot: to, shift: 0, barrier, operation });
        }
        if let Some(first) = destinations.first() {
            self.global_side(warp, lane, &pieces, false, first.operation)?;
        }
        for destination in &destinations {
            let stamp = self.operation_stamp(warp, destination.operation, true);
            for piece in &pieces {
                let offset = piece.shared.wrapping_add(destination.shift);
                self.inside(lane, destination.slot, offset, piece.bytes)?;
                let target = Target::Shared { slot: destination.slot, offset };
                self.shadowed(warp, lane, target, (piece.bytes, true), stamp, Level::FencedShared)?;
            }
            self.report.shared_written += u64::from(total);
            if let Some((offset, _)) = source {
                self.inside(lane, warp.slot, offset, total)?;
                let target = Target::Shared { slot: warp.slot, offset };
                self.shadowed(warp, lane, target, (total, false), stamp, Level::FencedShared)?;
            }
        }
        let cluster = self.blocks[warp.slot].cluster;
        self.clusters[cluster].pending.push(Pending::Transfer(Box::new(Transfer {
            pc: warp.pc,
            slot: warp.slot,
            cluster: warp.views.cluster,
            pieces,
            fill,
            total,
            destinations,
            source: source.map(|s| s.0),
            store: None,
            reduce: source.and_then(|s| s.1),
        })));
        Ok(())
    }

    fn start_store(
        &mut self,
        warp: &mut Warp,
        lane: usize,
        pieces: Vec<Piece>,
        reduce: Option<(AtomicOp, Type)>,
    ) -> Run<()> {
        let cluster = self.blocks[warp.slot].cluster;
        let (reads, writes) = match warp.copies[lane].components {
            Some(components) => components,
            None => (self.new_component(cluster), self.new_component(cluster)),
        };
        warp.copies[lane].components = Some((reads, writes));
        let time = warp.copies[lane].bulk_committed + 1;
        let read = self.new_operation(warp.views.cluster, reads);
        let write = self.new_operation(warp.views.cluster, writes);
        warp.copies[lane].bulk_open.push((read, write));
        let stamp = self.operation_stamp(warp, read, true);
        for piece in &pieces {
            self.inside(lane, warp.slot, piece.shared, piece.bytes)?;
            let target = Target::Shared { slot: warp.slot, offset: piece.shared };
            self.shadowed(warp, lane, target, (piece.bytes, false), stamp, Level::FencedShared)?;
            if !self.blocks[warp.slot].written.all(piece.shared as usize, piece.bytes as usize) {
                let message = "a bulk copy of bytes that nothing wrote";
                let address = u64::from(piece.shared);
                return trouble_at(FaultKind::UninitialisedMemory, 1 << lane, Space::Shared, address, message);
            }
            self.report.shared_read += u64::from(piece.bytes);
        }
        if reduce.is_none() {
            self.global_side(warp, lane, &pieces, true, write)?;
        } else {
            // Reductions do not race with each other; they are checked as strong writes.
            let stamp = super::shadow::Stamp { strong: true, ..self.operation_stamp(warp, write, true) };
            for piece in &pieces {
                let Some(address) = piece.global else { continue };
                let Some((index, offset)) = self.memory.find(address, piece.bytes as usize) else {
                    let message = format!("{} bytes; {}", piece.bytes, self.memory.near(address));
                    return trouble_at(FaultKind::OutOfBounds, 1 << lane, Space::Global, address, message);
                };
                let target = Target::Global { index, offset, address };
                self.shadowed(warp, lane, target, (piece.bytes, true), stamp, Level::FencedGlobal)?;
                self.report.global_written += u64::from(piece.bytes);
            }
        }
        self.clusters[cluster].pending.push(Pending::Transfer(Box::new(Transfer {
            pc: warp.pc,
            slot: warp.slot,
            cluster: warp.views.cluster,
            pieces,
            fill: vec![0],
            total: 0,
            destinations: Vec::new(),
            source: None,
            store: Some((read, write, reads, writes, time)),
            reduce,
        })));
        Ok(())
    }

    pub(super) fn complete_transfer(&mut self, transfer: &Transfer) -> Run<()> {
        let cluster = transfer.cluster as usize;
        if let Some((read, write, reads, writes, time)) = transfer.store {
            for piece in &transfer.pieces {
                let at = piece.shared as usize;
                let bytes = self.blocks[transfer.slot].shared[at..at + piece.bytes as usize].to_vec();
                self.put_global(piece.global.unwrap_or(0), &bytes, transfer.reduce)?;
            }
            self.operations[cluster].done[read as usize] = (reads, Some(time));
            self.operations[cluster].done[write as usize] = (writes, Some(time));
            return Ok(());
        }
        for destination in &transfer.destinations {
            for piece in &transfer.pieces {
                let bytes = self.source_bytes(transfer, piece)?;
                let at = piece.shared.wrapping_add(destination.shift) as usize;
                let block = &mut self.blocks[destination.slot];
                match transfer.reduce {
                    None => block.shared[at..at + bytes.len()].copy_from_slice(&bytes),
                    Some((op, ty)) => reduce_into(&mut block.shared[at..at + bytes.len()], &bytes, op, ty),
                }
                block.written.set(at, bytes.len());
            }
            let (slot, offset) = destination.barrier;
            let Some(barrier) = self.blocks[slot].mbarriers.get_mut(&offset) else {
                return trouble(FaultKind::Barrier, 0, "a copy tells a barrier that is gone");
            };
            let time = barrier.phase as u32 + 1;
            let component = barrier.component;
            self.operations[cluster].done[destination.operation as usize] = (component, Some(time));
            barrier.complete_bytes(transfer.total);
        }
        Ok(())
    }

    fn source_bytes(&mut self, transfer: &Transfer, piece: &Piece) -> Run<Vec<u8>> {
        let n = piece.bytes as usize;
        if let Some(offset) = transfer.source {
            let block = &self.blocks[transfer.slot];
            if !block.written.all(offset as usize, n) {
                let message = "a bulk copy of bytes that nothing wrote";
                return trouble_at(FaultKind::UninitialisedMemory, 0, Space::Shared, u64::from(offset), message);
            }
            return Ok(block.shared[offset as usize..offset as usize + n].to_vec());
        }
        let Some(address) = piece.global else {
            return Ok(transfer.fill.iter().copied().cycle().take(n).collect());
        };
        self.memory.read(address, n).map_or_else(
            || {
                let message = "a bulk copy of bytes that nothing wrote";
                trouble_at(FaultKind::UninitialisedMemory, 0, Space::Global, address, message)
            },
            Ok,
        )
    }

    fn put_global(&mut self, address: u64, bytes: &[u8], reduce: Option<(AtomicOp, Type)>) -> Run<()> {
        let Some((index, offset)) = self.memory.find(address, bytes.len()) else { return Ok(()) };
        let allocation = &mut self.memory.allocations[index];
        let slot = &mut allocation.bytes[offset..offset + bytes.len()];
        match reduce {
            None => slot.copy_from_slice(bytes),
            Some(_) if !allocation.written.all(offset, bytes.len()) => {
                let message = "a reduction into bytes that nothing wrote";
                return trouble_at(FaultKind::UninitialisedMemory, 0, Space::Global, address, message);
            }
            Some((op, ty)) => reduce_into(slot, bytes, op, ty),
        }
        allocation.written.set(offset, bytes.len());
        Ok(())
    }
}

fn coordinates(warp: &Warp, lane: usize, at: &[Src]) -> Vec<i32> {
    at.iter().map(|c| warp.lane(*c, lane) as i32).collect()
}

fn sectors(address: u64, bytes: u32) -> u64 {
    (address + u64::from(bytes)).div_ceil(32) - address / 32
}

fn reduce_into(into: &mut [u8], from: &[u8], op: AtomicOp, ty: Type) {
    let size = ty.bytes() as usize;
    let value = |bytes: &[u8]| {
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(bytes);
        u64::from_le_bytes(wide)
    };
    for (slot, from) in into.chunks_exact_mut(size).zip(from.chunks_exact(size)) {
        let new = combine(op, ty, value(slot), value(from), 0);
        slot.copy_from_slice(&new.to_le_bytes()[..size]);
    }
}
