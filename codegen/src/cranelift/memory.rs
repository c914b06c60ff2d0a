//! Addresses, loads and stores.

use super::lanes::{parts, register, scalar};
use super::lower::{Affine, Frame, Lower};
use crate::Error;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::*;
use cranelift_codegen::ir::{BlockArg, InstBuilder, MemFlagsData, Value as V};
use hadal_ir::kernel::*;
use hadal_types::{DType, Dim};

/// A stride or a size, in elements.
#[derive(Clone, Copy)]
enum Extent {
    Fixed(i64),
    Dynamic(V),
}

/// Where a buffer lies.
pub(super) struct Storage {
    base: V,
    strides: Vec<Extent>,
    dtype: DType,
}

/// A memory address and the loop depth from which on it is known.
#[derive(Clone, Copy)]
struct Address {
    base: V,
    offset: i32,
    depth: u32,
    /// Whether only loop variables tie it to that depth. Other terms may turn out to be known further out, once the
    /// optimiser has simplified them.
    tied: bool,
    /// Of 4-bit elements: the flat index, whose lowest bit chooses the nibble.
    flat: Option<V>,
}

impl Lower<'_, '_> {
    pub(super) fn storage(&mut self, base: V, shape: &[Dim], dtype: DType) -> Storage {
        let mut strides = vec![Extent::Fixed(1); shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = match (strides[i], shape[i].as_const()) {
                (Extent::Fixed(a), Some(b)) => Extent::Fixed(a.saturating_mul(b)),
                (Extent::Fixed(a), None) => {
                    let size = self.dim(&shape[i]);
                    Extent::Dynamic(self.b.ins().imul_imm_s(size, a))
                }
                (Extent::Dynamic(a), _) => {
                    let size = self.dim(&shape[i]);
                    Extent::Dynamic(self.b.ins().imul(size, a))
                }
            };
        }
        Storage { base, strides, dtype }
    }

    /// Gives allocations their places in scratch memory: those of fixed size first, at fixed distances.
    pub(super) fn lay_out_scratch(&mut self, scratch: V) {
        let sizes: Vec<Dim> = self.k.allocs.iter().map(|a| a.bytes().unwrap_or_default()).collect();
        let mut bases = vec![scratch; sizes.len()];
        let mut next = 0;
        for (base, size) in bases.iter_mut().zip(&sizes) {
            if let Some(bytes) = size.as_const() {
                *base = self.b.ins().iadd_imm_s(scratch, next);
                next += bytes;
            }
        }
        let mut end = self.b.ins().iadd_imm_s(scratch, next);
        for (base, size) in bases.iter_mut().zip(&sizes) {
            if size.as_const().is_none() {
                *base = end;
                // The size includes what rounding down to a multiple takes away.
                let bytes = self.dim(size);
                let bytes = self.b.ins().band_imm_s(bytes, -(ALLOC_ALIGN as i64));
                end = self.b.ins().iadd(end, bytes);
            }
        }
        for (alloc, base) in self.k.allocs.iter().zip(bases) {
            let storage = self.storage(base, &alloc.shape, alloc.dtype);
            self.allocs.push(storage);
        }
    }

    /// The address of an element. Terms known outside come first, so that sums of them are computed there.
    fn address(&mut self, place: &Place) -> Address {
        let indices: Vec<Affine> = place.index.iter().map(|v| self.affine(*v)).collect();
        let storage = match place.buf {
            Buf::Param(i) => &self.params[i as usize],
            Buf::Alloc(i) => &self.allocs[i as usize],
        };
        let (base, strides, packed) = (storage.base, storage.strides.clone(), storage.dtype.bits() == 4);
        let unit = (storage.dtype.bits() / 8).max(1) as i64;
        let mut offset = 0i64;
        let mut fixed: Vec<(V, u32, i64)> = Vec::new();
        let mut dynamic: Vec<(V, u32, i64, V)> = Vec::new();
        for (index, stride) in indices.into_iter().zip(strides) {
            match stride {
                Extent::Fixed(stride) => {
                    let bytes = stride.wrapping_mul(unit);
                    offset = offset.wrapping_add(index.offset.wrapping_mul(bytes));
                    for (v, depth, k) in index.terms {
                        let k = k.wrapping_mul(bytes);
                        match fixed.iter_mut().find(|t| t.0 == v) {
                            Some(term) => term.2 = term.2.wrapping_add(k),
                            None => fixed.push((v, depth, k)),
                        }
                    }
                }
                Extent::Dynamic(stride) => {
                    let bytes = self.b.ins().imul_imm_s(stride, unit);
                    if index.offset != 0 {
                        fixed.push((bytes, 0, index.offset));
                    }
                    dynamic.extend(index.terms.into_iter().map(|(v, depth, k)| (v, depth, k, bytes)));
                }
            }
        }
        fixed.retain(|t| t.2 != 0);
        let factors = || fixed.iter().map(|t| (t.0, t.1)).chain(dynamic.iter().map(|t| (t.0, t.1)));
        let depth = factors().map(|t| t.1).max().unwrap_or(0);
        let tied = factors().all(|(v, d)| d < depth || self.counters.contains(&v));
        let mut terms: Vec<(u32, V)> = Vec::new();
        for (v, depth, k, stride) in dynamic {
            let scaled = self.b.ins().imul_imm_s(v, k);
            terms.push((depth, self.b.ins().imul(scaled, stride)));
        }
        for (v, depth, k) in fixed {
            let term = match k {
                1 => v,
                k if k > 0 && k.count_ones() == 1 => self.b.ins().ishl_imm_u(v, k.trailing_zeros() as i64),
                k => self.b.ins().imul_imm_s(v, k),
            };
            terms.push((depth, term));
        }
        terms.sort_by_key(|t| t.0);
        if packed {
            let mut flat = self.b.ins().iconst(I64, offset);
            for (_, term) in terms {
                flat = self.b.ins().iadd(flat, term);
            }
            // A masked vector may begin before its buffer.
            let bytes = self.b.ins().sshr_imm_u(flat, 1);
            let base = self.b.ins().iadd(base, bytes);
            return Address { base, offset: 0, depth, tied, flat: Some(flat) };
        }
        let mut sum = base;
        for (_, term) in terms {
            sum = self.b.ins().iadd(sum, term);
        }
        // Leave room for the distances of later registers and lanes.
        match i32::try_from(offset).ok().filter(|o| o.unsigned_abs() < 1 << 30) {
            Some(offset) => Address { base: sum, offset, depth, tied, flat: None },
            None => Address { base: self.b.ins().iadd_imm_s(sum, offset), offset: 0, depth, tied, flat: None },
        }
    }

    /// Flags of a load, and the depth from which on its value is known.
    fn load_flags(&self, place: &Place, address: &Address) -> (MemFlagsData, u32) {
        let flags = MemFlagsData::new().with_notrap();
        let constant = match place.buf {
            Buf::Param(i) => self.k.params[i as usize].access == Access::Read,
            // What moves with the innermost loop cannot leave it.
            Buf::Alloc(i) => address.tied && address.depth == self.depth && self.settled(i),
        };
        match constant && self.may_move(if address.tied { address.depth } else { 0 }) {
            true => (flags.with_readonly().with_can_move(), address.depth),
            false => (flags, self.depth),
        }
    }

    /// The registers of a load and the depth from which on they are known.
    pub(super) fn load(
        &mut self,
        place: &Place,
        ty: ValueType,
        mask: Option<Value>,
        fill: Option<Value>,
    ) -> Result<(Vec<V>, u32), Error> {
        let address = self.address(place);
        let Some(mask) = mask else {
            let (flags, depth) = self.load_flags(place, &address);
            return Ok((self.load_all(ty, &address, flags), depth));
        };
        let fill = match fill {
            Some(fill) => self.regs(fill),
            None => self.zeros(ty),
        };
        let bits = self.mask_bits(mask)?;
        let (join, whole, some) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        let all = self.b.ins().icmp_imm_s(IntCC::Equal, bits, full_mask(ty.lanes));
        self.b.ins().brif(all, whole, &[], some, &[]);
        self.frames.push(Frame::Branch);
        let (flags, _) = self.load_flags(place, &address);
        let results: Vec<V> = parts(ty).into_iter().map(|t| self.b.append_block_param(join, t)).collect();

        self.b.switch_to_block(whole);
        let loaded = self.load_all(ty, &address, flags);
        self.jump_with(join, &loaded);

        self.b.switch_to_block(some);
        self.b.set_cold_block(some);
        let mut regs = fill;
        for lane in 0..ty.lanes {
            let reg = if ty.lanes == 1 { 0 } else { (lane / register(ty.elem).1) as usize };
            let (load, next) = (self.b.create_block(), self.b.create_block());
            self.b.set_cold_block(load);
            self.b.set_cold_block(next);
            let on = self.b.ins().band_imm_s(bits, 1i64.wrapping_shl(lane));
            let merged = self.b.append_block_param(next, parts(ty)[0]);
            self.b.ins().brif(on, load, &[], next, &[BlockArg::Value(regs[reg])]);
            self.b.switch_to_block(load);
            let element = self.load_lane(ty.elem, &address, lane, flags);
            let mut changed = regs.clone();
            if ty.lanes == 1 {
                changed[0] = element;
            } else {
                self.insert(ty.elem, &mut changed, lane, element);
            }
            self.jump_with(next, &[changed[reg]]);
            self.b.switch_to_block(next);
            regs[reg] = merged;
        }
        self.jump_with(join, &regs);
        self.frames.pop();
        self.b.switch_to_block(join);
        Ok((results, self.depth))
    }

    pub(super) fn store(&mut self, place: &Place, value: Value, mask: Option<Value>) -> Result<(), Error> {
        let (ty, regs) = (self.k.ty(value), self.regs(value));
        let address = self.address(place);
        let Some(mask) = mask else {
            self.store_all(ty, &address, &regs);
            return Ok(());
        };
        let bits = self.mask_bits(mask)?;
        let (join, whole, some) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        let all = self.b.ins().icmp_imm_s(IntCC::Equal, bits, full_mask(ty.lanes));
        self.b.ins().brif(all, whole, &[], some, &[]);

        self.b.switch_to_block(whole);
        self.store_all(ty, &address, &regs);
        self.b.ins().jump(join, &[]);

        self.b.switch_to_block(some);
        self.b.set_cold_block(some);
        for lane in 0..ty.lanes {
            let (store, next) = (self.b.create_block(), self.b.create_block());
            self.b.set_cold_block(store);
            self.b.set_cold_block(next);
            let on = self.b.ins().band_imm_s(bits, 1i64.wrapping_shl(lane));
            self.b.ins().brif(on, store, &[], next, &[]);
            self.b.switch_to_block(store);
            let element = if ty.lanes == 1 { regs[0] } else { self.extract(ty.elem, &regs, lane) };
            let offset = address.offset + lane as i32 * (ty.elem.bits() / 8) as i32;
            self.b.ins().store(MemFlagsData::new().with_notrap(), element, address.base, offset);
            self.b.ins().jump(next, &[]);
            self.b.switch_to_block(next);
        }
        self.b.ins().jump(join, &[]);
        self.b.switch_to_block(join);
        Ok(())
    }

    fn jump_with(&mut self, block: cranelift_codegen::ir::Block, values: &[V]) {
        let args: Vec<BlockArg> = values.iter().map(|v| BlockArg::Value(*v)).collect();
        self.b.ins().jump(block, &args);
    }

    /// One bit per lane, in an i64.
    fn mask_bits(&mut self, mask: Value) -> Result<V, Error> {
        let (ty, regs) = (self.k.ty(mask), self.regs(mask));
        match ty.lanes {
            1 => return Ok(self.b.ins().uextend(I64, regs[0])),
            65.. => return Err(self.unsupported("masks of more than 64 lanes")),
            _ => {}
        }
        let mut bits = None;
        for (i, reg) in regs.into_iter().enumerate() {
            let four = self.b.ins().vhigh_bits(I32, reg);
            let wide = self.b.ins().uextend(I64, four);
            let moved = if i == 0 { wide } else { self.b.ins().ishl_imm_u(wide, 4 * i as i64) };
            bits = Some(bits.map_or(moved, |b| self.b.ins().bor(b, moved)));
        }
        let bits = bits.unwrap_or_else(|| self.b.ins().iconst(I64, 0));
        Ok(if ty.lanes < 4 { self.b.ins().band_imm_s(bits, full_mask(ty.lanes)) } else { bits })
    }

    fn load_lane(&mut self, elem: DType, address: &Address, lane: u32, flags: MemFlagsData) -> V {
        match address.flat {
            Some(flat) => {
                let flat = self.b.ins().iadd_imm_s(flat, lane as i64);
                let byte = self.b.ins().load(I8, flags, address.base, lane as i32 / 2);
                let odd = self.b.ins().band_imm_u(flat, 1);
                let shift = self.b.ins().ishl_imm_u(odd, 2);
                let moved = self.b.ins().ushr(byte, shift);
                self.b.ins().band_imm_u(moved, 15)
            }
            None => {
                let offset = address.offset + lane as i32 * (elem.bits() / 8) as i32;
                self.b.ins().load(scalar(elem), flags, address.base, offset)
            }
        }
    }

    /// All lanes.
    fn load_all(&mut self, ty: ValueType, address: &Address, flags: MemFlagsData) -> Vec<V> {
        if ty.lanes == 1 {
            return vec![self.load_lane(ty.elem, address, 0, flags)];
        }
        match ty.elem {
            DType::Bool => {
                let bytes = self.load_bytes(DType::U8, ty.lanes as u64, address, flags);
                let ints = self.cast(ValueType::vector(DType::U8, ty.lanes), DType::I32, &bytes);
                self.cast(ValueType::vector(DType::I32, ty.lanes), DType::Bool, &ints)
            }
            DType::F4E2M1 | DType::U4 | DType::I4 => {
                let bytes = self.load_bytes(DType::U8, ty.lanes as u64 / 2, address, flags);
                let mut nibbles = Vec::new();
                for pairs in bytes {
                    let keep = self.vector_const(I8X16, [15; 16]);
                    let low = self.b.ins().band(pairs, keep);
                    let halves = self.bits(pairs, I16X8);
                    let high = self.b.ins().ushr_imm_u(halves, 4);
                    let high = self.bits(high, I8X16);
                    let high = self.b.ins().band(high, keep);
                    for start in [0, 8] {
                        let order = std::array::from_fn(|i| start + i as u8 / 2 + 16 * (i as u8 % 2));
                        nibbles.push(self.shuffle(I8X16, low, high, order));
                    }
                }
                nibbles.truncate(parts(ty).len());
                nibbles
            }
            elem => self.load_bytes(elem, ty.lanes as u64 * elem.bits() / 8, address, flags),
        }
    }

    /// `count` bytes (a power of two) as registers of `elem`.
    fn load_bytes(&mut self, elem: DType, count: u64, address: &Address, flags: MemFlagsData) -> Vec<V> {
        let ty = register(elem).0;
        let (base, offset) = (address.base, address.offset);
        let piece = match count {
            1 | 2 => {
                let t = if count == 1 { I8 } else { I16 };
                let bits = self.b.ins().load(t, flags, base, offset);
                let bits = self.b.ins().uextend(I32, bits);
                self.b.ins().scalar_to_vector(I32X4, bits)
            }
            4 => {
                let bits = self.b.ins().load(F32, flags, base, offset);
                self.b.ins().scalar_to_vector(F32X4, bits)
            }
            8 => {
                let bits = self.b.ins().load(F64, flags, base, offset);
                self.b.ins().scalar_to_vector(F64X2, bits)
            }
            _ => {
                let pieces = (0..count as i32 / 16).map(|i| self.b.ins().load(ty, flags, base, offset + 16 * i));
                return pieces.collect();
            }
        };
        vec![self.bits(piece, ty)]
    }

    fn store_all(&mut self, ty: ValueType, address: &Address, regs: &[V]) {
        let flags = MemFlagsData::new().with_notrap();
        if ty.lanes == 1 {
            self.b.ins().store(flags, regs[0], address.base, address.offset);
            return;
        }
        match ty.elem {
            DType::Bool => {
                let ints = self.cast(ty, DType::I32, regs);
                let bytes = self.pack_bytes(&ints);
                self.store_bytes(&bytes, ty.lanes as u64, address);
            }
            DType::F4E2M1 | DType::U4 | DType::I4 => {
                let bytes = self.join_nibbles(regs);
                self.store_bytes(&bytes, ty.lanes as u64 / 2, address);
            }
            elem => self.store_bytes(regs, ty.lanes as u64 * elem.bits() / 8, address),
        }
    }

    /// Codes of four bits, a byte each, as they lie in memory: in each pair of bytes the second moves above the first,
    /// then the low ones are packed.
    pub(super) fn join_nibbles(&mut self, regs: &[V]) -> Vec<V> {
        let mut halves = Vec::new();
        for reg in regs {
            let pairs = self.bits(*reg, I16X8);
            let high = self.b.ins().ushr_imm_u(pairs, 4);
            let both = self.b.ins().bor(pairs, high);
            let keep = self.vector_const(I16X8, std::array::from_fn(|i| if i % 2 == 0 { 0xff } else { 0 }));
            halves.push(self.b.ins().band(both, keep));
        }
        halves.chunks(2).map(|c| self.b.ins().unarrow(c[0], c[c.len() - 1])).collect()
    }

    fn store_bytes(&mut self, regs: &[V], count: u64, address: &Address) {
        let flags = MemFlagsData::new().with_notrap();
        let (base, offset) = (address.base, address.offset);
        let as_type = match count {
            1 => I8X16,
            2 => I16X8,
            4 => F32X4,
            8 => F64X2,
            _ => {
                for (i, reg) in regs.iter().enumerate() {
                    self.b.ins().store(flags, *reg, base, offset + 16 * i as i32);
                }
                return;
            }
        };
        let v = self.bits(regs[0], as_type);
        let low = self.b.ins().extractlane(v, 0);
        self.b.ins().store(flags, low, base, offset);
    }
}

/// The mask with `lanes` bits set.
fn full_mask(lanes: u32) -> i64 {
    (u64::MAX >> (64 - lanes.clamp(1, 64))) as i64
}
