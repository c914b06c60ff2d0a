//! `ldmatrix`, `stmatrix`, `mma`: fragments and products of a warp.

use super::Machine;
use super::clock::Level;
use super::memory::bank_conflicts;
use super::warp::{Outcome, Warp};
use crate::fault::Run;
use crate::float::exact::{F16, F64, Rounding};
use crate::float::format::convert;
use crate::matrix::{Kind, Product, Sum};
use crate::program::{Address, Op, Src};
use crate::types::Space;

/// Where an element of a fragment is: row and column of element `index` of a register, `a` of 16 rows.
///
/// Rows go over the upper bits of the lane and then the odd registers, columns over the lower two bits of the lane
/// and then the registers.
pub(super) fn a_place(kind: Kind, lane: u32, register: u32, index: u32) -> (u32, u32) {
    let each = 4 / kind.bytes();
    (lane / 4 + 8 * (register % 2), lane % 4 * each + index + 4 * each * (register / 2))
}

/// The same of `b`: row (along `k`) and column.
fn b_place(kind: Kind, lane: u32, register: u32, index: u32) -> (u32, u32) {
    let each = 4 / kind.bytes();
    (lane % 4 * each + index + 4 * each * register, lane / 4)
}

/// The elements of a register.
pub(super) fn codes(kind: Kind, register: u32) -> impl Iterator<Item = u32> {
    let bits = 8 * kind.bytes();
    (0..32 / bits).map(move |i| (u64::from(register) >> (i * bits) & crate::types::mask(bits)) as u32)
}

/// A row times a column, added to a sum and rounded as the product has it. Products of elements are exact in f64.
pub(super) fn rounded(product: &Product, start: u64, (a, b): (&[f64], &[f64]), options: &crate::Options) -> u64 {
    let products = || a.iter().zip(b).map(|(a, b)| a * b);
    match product.sum {
        Sum::S32 => {
            let sum = i64::from(start as i32) + products().sum::<f64>() as i64;
            let value = if product.saturate { sum.clamp(i32::MIN.into(), i32::MAX.into()) } else { sum };
            u64::from(value as u32)
        }
        Sum::F32 => {
            let start = f64::from(f32::from_bits(start as u32));
            let sum = match options.fp8_accumulation_bits.filter(|_| product.a.is_fp8()) {
                Some(bits) => truncated(start, &products().collect::<Vec<f64>>(), bits),
                None => start + products().sum::<f64>(),
            };
            let value = sum as f32;
            u64::from(if value.is_nan() { 0x7fff_ffff } else { value.to_bits() })
        }
        Sum::F16 => {
            let wide = convert(start & 0xffff, F16, F64, Rounding::Nearest, false);
            let sum = f64::from_bits(wide) + products().sum::<f64>();
            convert(sum.to_bits(), F64, F16, Rounding::Nearest, false)
        }
    }
}

/// Products added with so many bits below the largest one's first.
fn truncated(start: f64, products: &[f64], bits: u32) -> f64 {
    let largest = products.iter().fold(start.abs(), |m, p| m.max(p.abs()));
    if largest == 0.0 || !largest.is_finite() {
        return start + products.iter().sum::<f64>();
    }
    let step = 2f64.powi(largest.log2().floor() as i32 - bits as i32);
    let cut = |x: f64| (x / step).trunc() * step;
    cut(start) + products.iter().map(|p| cut(*p)).sum::<f64>()
}

impl Machine<'_> {
    pub(super) fn matrix(&mut self, warp: &mut Warp, op: &Op, active: u32) -> Run<Outcome> {
        if let Some(outcome) = warp.whole(active)? {
            return Ok(outcome);
        }
        match op {
            Op::LoadMatrix { space, address, d, transposed } => {
                let rows = self.matrix_rows(warp, *space, address, (d.len(), *transposed), None)?;
                for (index, d) in d.iter().enumerate() {
                    let mut values = [0; 32];
                    for (lane, value) in values.iter_mut().enumerate() {
                        let half = |row: usize, column: usize| {
                            let row = &rows[index * 8 + row];
                            u64::from(row[2 * column]) | u64::from(row[2 * column + 1]) << 8
                        };
                        let (r, c) = (lane / 4, lane % 4 * 2);
                        *value = if *transposed {
                            half(c, r) | half(c + 1, r) << 16
                        } else {
                            half(r, c) | half(r, c + 1) << 16
                        };
                    }
                    warp.write(*d, u32::MAX, &values);
                }
            }
            Op::StoreMatrix { space, address, s, transposed } => {
                let mut rows = vec![[0u8; 16]; s.len() * 8];
                for (index, s) in s.iter().enumerate() {
                    for lane in 0..32 {
                        let bytes = (warp.lane(*s, lane) as u32).to_le_bytes();
                        let (r, c) = (lane / 4, lane % 4 * 2);
                        for half in 0..2 {
                            let (row, column) = if *transposed { (c + half, r) } else { (r, c + half) };
                            let row = &mut rows[index * 8 + row];
                            row[2 * column..2 * column + 2].copy_from_slice(&bytes[2 * half..2 * half + 2]);
                        }
                    }
                }
                self.matrix_rows(warp, *space, address, (s.len(), *transposed), Some(&rows))?;
            }
            Op::Mma { product, d, a, b, c } => self.product(warp, product, d, [a, b, c]),
            _ => {}
        }
        Ok(Outcome::Next)
    }

    /// Reads or writes rows of 16 bytes, whose addresses are those of the first lanes.
    fn matrix_rows(
        &mut self,
        warp: &mut Warp,
        space: Space,
        address: &Address,
        (count, transposed): (usize, bool),
        data: Option<&[[u8; 16]]>,
    ) -> Run<Vec<[u8; 16]>> {
        let write = data.is_some();
        let mut rows = Vec::new();
        let mut offsets = Vec::new();
        for lane in 0..8 * count {
            let at = self.address(warp, address, lane);
            let target = self.resolve(warp, lane, space, at, 16)?;
            // The lanes that get a part of the row access it, not the one that knows where it is.
            let size = if transposed { 2 } else { 4 };
            for part in 0..16 / size {
                let owner = if transposed { part as usize * 4 + lane % 8 / 2 } else { lane % 8 * 4 + part as usize };
                let stamp = self.stamp(warp, owner, false);
                self.shadowed(warp, owner, target.plus(part * size), (size, write), stamp, Level::Known)?;
            }
            if let Some(data) = data {
                self.put(warp, lane, target, &data[lane])?;
            } else {
                let mut row = [0; 16];
                self.fetch(warp, lane, target, &mut row)?;
                rows.push(row);
            }
            offsets.push(at as u32);
        }
        let bytes = 128 * count as u64;
        *(if write { &mut self.report.shared_written } else { &mut self.report.shared_read }) += bytes;
        let conflicts = bank_conflicts(&offsets, 16);
        if conflicts > 0 {
            self.report.bank_conflicts += conflicts;
            let line = self.program.insts[warp.pc as usize].line;
            *self.report.bank_conflicts_by_line.entry(line).or_default() += conflicts;
        }
        Ok(rows)
    }

    fn product(&mut self, warp: &mut Warp, product: &Product, d: &[u32], [a, b, c]: [&[Src]; 3]) {
        let Product { m, n, k, .. } = *product;
        let (m, n, k) = (m as usize, n as usize, k as usize);
        let (mut left, mut right) = (vec![0.0; m * k], vec![0.0; k * n]);
        for lane in 0..32u32 {
            for (register, source) in a.iter().enumerate() {
                let bits = warp.lane(*source, lane as usize) as u32;
                for (index, code) in codes(product.a, bits).enumerate() {
                    let (row, column) = a_place(product.a, lane, register as u32, index as u32);
                    left[row as usize * k + column as usize] = product.a.value(code);
                }
            }
            for (register, source) in b.iter().enumerate() {
                let bits = warp.lane(*source, lane as usize) as u32;
                for (index, code) in codes(product.b, bits).enumerate() {
                    let (row, column) = b_place(product.b, lane, register as u32, index as u32);
                    right[column as usize * k + row as usize] = product.b.value(code);
                }
            }
        }
        let starts: Vec<[u64; 32]> = c.iter().map(|c| warp.read(*c)).collect();
        let mut out = vec![[0u64; 32]; d.len()];
        let halves = if product.sum == Sum::F16 { 2 } else { 1 };
        for lane in 0..32 {
            for element in 0..4 {
                let row = lane / 4 + 8 * (element / 2);
                let column = lane % 4 * 2 + element % 2;
                let factors = (&left[row * k..row * k + k], &right[column * k..column * k + k]);
                let (register, shift) = (element / halves, 16 * (element % halves));
                let start = starts[register][lane] >> shift;
                out[register][lane] |= rounded(product, start, factors, self.options) << shift;
            }
        }
        for (d, values) in d.iter().zip(&out) {
            warp.write(*d, u32::MAX, values);
        }
    }
}
