//! Addresses, loads and stores.
//!
//! Buffers are apart: every access says which buffer it is in, so that LLVM keeps what it has loaded over stores to
//! others, and loads from buffers that are only read are invariant.

use super::emit::{Affine, Emitter};
use super::types::*;
use hadal_ir::kernel::*;
use hadal_types::{DType, Dim};
use std::fmt::Write;

/// A stride or a size, in elements.
#[derive(Clone)]
enum Extent {
    Fixed(i64),
    Dynamic(String),
}

/// Where a buffer lies.
#[derive(Clone)]
pub(super) struct Storage {
    /// The type of its addresses.
    space: &'static str,
    base: String,
    strides: Vec<Extent>,
    dtype: DType,
}

/// A memory address.
#[derive(Clone)]
pub(super) struct Address {
    /// Its type.
    pub space: &'static str,
    /// Where the buffer begins.
    pub base: String,
    pub pointer: String,
    /// Of 4-bit elements: the flat index, whose lowest bit chooses the nibble.
    pub flat: Option<String>,
    /// Whether units of 16 bytes are permuted within rows of 128 bytes.
    pub swizzled: bool,
    /// What is known of the memory, as an access says it.
    pub notes: String,
}

/// Nodes before those of buffers: the empty one, and the domain of their names.
const FIRST: usize = 2;

/// What accesses refer to: for each buffer its name, the list of it, and the list of all others.
pub(super) fn metadata(kernel: &Kernel) -> String {
    let n = kernel.params.len() + kernel.allocs.len();
    let mut out = "!0 = !{}\n!1 = !{!\"buffers\"}\n".to_string();
    for i in 0..n {
        let _ = writeln!(out, "!{} = !{{!\"{i}\", !1}}", FIRST + i);
    }
    for i in 0..n {
        let others: Vec<String> = (0..n).filter(|j| *j != i).map(|j| format!("!{}", FIRST + j)).collect();
        let _ = writeln!(out, "!{} = !{{!{}}}", FIRST + n + i, FIRST + i);
        let _ = writeln!(out, "!{} = !{{{}}}", FIRST + 2 * n + i, others.join(", "));
    }
    out
}

/// How many nodes [`metadata`] has; the next ones are free.
pub(super) fn nodes(kernel: &Kernel) -> usize {
    FIRST + 3 * (kernel.params.len() + kernel.allocs.len())
}

impl Emitter<'_> {
    /// Where an allocation begins.
    pub(super) fn alloc_base(&self, alloc: u32) -> &str {
        &self.allocs[alloc as usize].base
    }

    pub(super) fn storage(&mut self, (space, base): (&'static str, String), shape: &[Dim], dtype: DType) -> Storage {
        let mut strides = vec![Extent::Fixed(1); shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = match (&strides[i], shape[i].as_const()) {
                (Extent::Fixed(a), Some(b)) => Extent::Fixed(a.saturating_mul(b)),
                (a, _) => {
                    let a = match a {
                        Extent::Fixed(a) => a.to_string(),
                        Extent::Dynamic(a) => a.clone(),
                    };
                    let size = self.dim(&shape[i]);
                    Extent::Dynamic(self.def(format!("mul i64 {size}, {a}")))
                }
            };
        }
        Storage { space, base, strides, dtype }
    }

    /// Gives allocations their places in scratch memory: those of fixed size first, at fixed distances.
    pub(super) fn lay_out_scratch(&mut self) {
        let sizes: Vec<Dim> = self.k.allocs.iter().map(|a| a.bytes().unwrap_or_default()).collect();
        let mut bases = vec!["%scratch".to_string(); sizes.len()];
        let mut next = 0;
        for (base, size) in bases.iter_mut().zip(&sizes) {
            if let Some(bytes) = size.as_const() {
                *base = self.def(format!("getelementptr i8, ptr %scratch, i64 {next}"));
                next += bytes;
            }
        }
        let mut end = self.def(format!("getelementptr i8, ptr %scratch, i64 {next}"));
        for (base, size) in bases.iter_mut().zip(&sizes) {
            if size.as_const().is_none() {
                *base = end.clone();
                // The size includes what rounding down to a multiple takes away.
                let bytes = self.dim(size);
                let bytes = self.def(format!("and i64 {bytes}, {}", -(ALLOC_ALIGN as i64)));
                end = self.def(format!("getelementptr i8, ptr {end}, i64 {bytes}"));
            }
        }
        for (alloc, base) in self.k.allocs.iter().zip(bases) {
            let storage = self.storage(("ptr", base), &alloc.shape, alloc.dtype);
            self.allocs.push(storage);
        }
    }

    /// The address of an element. Terms known outside come first, so that sums of them are computed there.
    pub(super) fn address(&mut self, place: &Place) -> Address {
        let indices: Vec<Affine> = place.index.iter().map(|v| self.affine(*v)).collect();
        let (storage, number) = match place.buf {
            Buf::Param(i) => (&self.params[i as usize], i as usize),
            Buf::Alloc(i) => (&self.allocs[i as usize], self.k.params.len() + i as usize),
        };
        let (space, base) = (storage.space, storage.base.clone());
        let (strides, packed) = (storage.strides.clone(), storage.dtype.is_packed());
        let unit = (storage.dtype.bits() / 8).max(1) as i64;
        let mut fixed = Affine::default();
        let mut terms: Vec<(u32, String)> = Vec::new();
        for (index, stride) in indices.into_iter().zip(strides) {
            match stride {
                Extent::Fixed(stride) => {
                    let moved = index.scale(stride.wrapping_mul(unit));
                    fixed = match fixed.plus(&moved, 1) {
                        Some(sum) => sum,
                        None => {
                            self.terms(&fixed, &mut terms);
                            moved
                        }
                    };
                }
                Extent::Dynamic(stride) => {
                    let bytes = self.def(format!("mul i64 {stride}, {unit}"));
                    if index.offset != 0 {
                        terms.push((0, self.def(format!("mul i64 {bytes}, {}", index.offset))));
                    }
                    for (atom, k) in index.terms {
                        let scaled = self.def(format!("mul i64 {}, {k}", atom.name));
                        terms.push((atom.depth, self.def(format!("mul i64 {scaled}, {bytes}"))));
                    }
                }
            }
        }
        self.terms(&fixed, &mut terms);
        // Offsets that were given up on above are in the terms.
        terms.sort_by_key(|t| t.0);
        let swizzled = self.is_swizzled(place.buf);
        let mut notes = String::new();
        let read = matches!(place.buf, Buf::Param(i) if self.k.params[i as usize].access == Access::Read);
        if read {
            notes.push_str(", !invariant.load !0");
        }
        let n = self.k.params.len() + self.k.allocs.len();
        let _ = write!(notes, ", !alias.scope !{}, !noalias !{}", FIRST + n + number, FIRST + 2 * n + number);
        if packed {
            let mut flat = fixed.offset.to_string();
            for (_, term) in terms {
                flat = self.def(format!("add i64 {flat}, {term}"));
            }
            // A masked vector may begin before its buffer.
            let bytes = self.def(format!("ashr i64 {flat}, 1"));
            let pointer = self.def(format!("getelementptr i8, {space} {base}, i64 {bytes}"));
            return Address { space, base, pointer, flat: Some(flat), swizzled, notes };
        }
        let mut pointer = base.clone();
        for (_, term) in terms {
            pointer = self.def(format!("getelementptr i8, {space} {pointer}, i64 {term}"));
        }
        if fixed.offset != 0 {
            pointer = self.def(format!("getelementptr i8, {space} {pointer}, i64 {}", fixed.offset));
        }
        Address { space, base, pointer, flat: None, swizzled, notes }
    }

    /// The terms of an affine form, each with the depth from which on it is known.
    fn terms(&mut self, form: &Affine, out: &mut Vec<(u32, String)>) {
        for (atom, k) in &form.terms {
            let term = if *k == 1 { atom.name.clone() } else { self.def(format!("mul i64 {}, {k}", atom.name)) };
            out.push((atom.depth, term));
        }
    }

    pub(super) fn load(
        &mut self,
        place: &Place,
        result: ValueType,
        mask: Option<Value>,
        fill: Option<Value>,
    ) -> Vec<String> {
        match self.target.is_gpu() {
            true => self.load_parts(place, result, mask, fill),
            false => vec![self.load_vector(place, result, mask, fill)],
        }
    }

    fn load_vector(&mut self, place: &Place, result: ValueType, mask: Option<Value>, fill: Option<Value>) -> String {
        let address = self.address(place);
        let mask = mask.map(|m| self.text(m));
        let fill = match fill {
            Some(fill) => self.text(fill),
            None if result.elem == DType::F32 || result.elem == DType::F64 => zero(result),
            None => int(result, 0),
        };
        let direct = !result.elem.is_packed() && result.elem != DType::Bool;
        if direct {
            return self.load_raw(result, &address, mask.as_deref(), &fill);
        }
        // What lies in memory is not what the value is: masked-off lanes are filled afterwards.
        let loaded = match (result.elem, result.lanes) {
            (DType::Bool, _) => {
                let bytes = result.with_elem(DType::U8);
                let x = self.load_raw(bytes, &address, mask.as_deref(), &int(bytes, 0));
                self.def(format!("icmp ne {} {x}, {}", ty(bytes), int(bytes, 0)))
            }
            (_, 1) => {
                let byte = self.load_raw(result.with_elem(DType::U8), &address, mask.as_deref(), "0");
                let flat = address.flat.clone().unwrap_or_default();
                let odd = self.def(format!("trunc i64 {flat} to i8"));
                let odd = self.def(format!("and i8 {odd}, 1"));
                let shift = self.def(format!("shl i8 {odd}, 2"));
                let moved = self.def(format!("lshr i8 {byte}, {shift}"));
                self.def(format!("and i8 {moved}, 15"))
            }
            (_, lanes) => {
                let bytes = ValueType::vector(DType::U8, lanes / 2);
                let mask = mask.as_deref().map(|m| self.mask_of_pairs(lanes, m));
                let pairs = self.load_raw(bytes, &address, mask.as_deref(), &int(bytes, 0));
                // Two nibbles in sixteen bits: the upper one moves up, and each has a byte of its own.
                let (narrow, wide) = (ty(bytes), vector("i16", lanes / 2));
                let x = self.def(format!("zext {narrow} {pairs} to {wide}"));
                let up = self.def(format!("shl {wide} {x}, {}", ints("i16", lanes / 2, 4)));
                let both = self.def(format!("or {wide} {x}, {up}"));
                let apart = self.def(format!("and {wide} {both}, {}", ints("i16", lanes / 2, 0x0f0f)));
                let codes = self.def(format!("bitcast {wide} {apart} to {}", ty(result)));
                if mask.is_none() {
                    self.pairs.insert(codes.clone(), pairs);
                }
                codes
            }
        };
        match mask {
            Some(mask) => {
                let (t, m) = (ty(result), ty(result.with_elem(DType::Bool)));
                self.def(format!("select {m} {mask}, {t} {loaded}, {t} {fill}"))
            }
            None => loaded,
        }
    }

    /// Codes of four bits, a byte each, as they lie in memory: the second of each pair of bytes moves beside the first.
    pub(super) fn join_nibbles(&mut self, from: ValueType, x: &str) -> String {
        let wide = vector("i16", from.lanes / 2);
        let pairs = self.def(format!("bitcast {} {x} to {wide}", ty(from)));
        let high = self.def(format!("lshr {wide} {pairs}, {}", ints("i16", from.lanes / 2, 4)));
        let both = self.def(format!("or {wide} {pairs}, {high}"));
        self.def(format!("trunc {wide} {both} to {}", vector("i8", from.lanes / 2)))
    }

    /// Which bytes hold a nibble whose lane is on.
    fn mask_of_pairs(&mut self, lanes: u32, mask: &str) -> String {
        if lanes == 2 {
            let [a, b] = [0, 1].map(|i| self.def(format!("extractelement <2 x i1> {mask}, i64 {i}")));
            return self.def(format!("or i1 {a}, {b}"));
        }
        let [a, b] = [0, 1].map(|first| self.every_other(ValueType::vector(DType::Bool, lanes), mask, first));
        self.def(format!("or {} {a}, {b}", vector("i1", lanes / 2)))
    }

    /// The even or the odd lanes of a vector of more than two.
    fn every_other(&mut self, from: ValueType, x: &str, first: u32) -> String {
        let t = ty(from);
        let order = list_of("i32", (0..from.lanes / 2).map(|i| (2 * i + first).to_string()));
        self.def(format!("shufflevector {t} {x}, {t} poison, {order}"))
    }

    /// Whether one instruction loads or stores some lanes of a vector.
    fn masks_memory(&self, dtype: DType) -> bool {
        self.target.arch == "x86_64" && (self.target.has("avx512bw") || dtype.bits() >= 32)
    }

    /// Loads values as they lie in memory.
    fn load_raw(&mut self, result: ValueType, address: &Address, mask: Option<&str>, fill: &str) -> String {
        let (t, p, notes) = (ty(result), &address.pointer, &address.notes);
        let plain = format!("load {t}, ptr {p}, align 1{notes}");
        let Some(mask) = mask else { return self.def(plain) };
        let masked = |this: &mut Self| {
            let function = format!("llvm.masked.load.{}.p0", mangled(result));
            let mask_ty = vector("i1", result.lanes);
            let arguments = [("ptr", p.as_str()), ("i32", "1"), (&mask_ty, mask), (&t, fill)];
            this.call(&t, &function, &arguments, notes)
        };
        if result.lanes > 1 && self.masks_memory(result.elem) {
            return masked(self);
        }
        let [whole, some, join] = self.labels(["whole", "some", "join"]);
        let all = self.all_lanes(result.lanes, mask);
        self.branch(&all, &whole, &some);
        self.begin(&whole);
        let loaded = self.def(plain);
        self.jump(&join);
        self.begin(&some);
        let other = if result.lanes == 1 { fill.to_string() } else { masked(self) };
        self.jump(&join);
        self.begin(&join);
        self.def(format!("phi {t} [ {loaded}, %{whole} ], [ {other}, %{some} ]"))
    }

    /// Whether every lane of a mask is on.
    fn all_lanes(&mut self, lanes: u32, mask: &str) -> String {
        if lanes == 1 {
            return mask.to_string();
        }
        let bits = self.def(format!("bitcast <{lanes} x i1> {mask} to i{lanes}"));
        self.def(format!("icmp eq i{lanes} {bits}, -1"))
    }

    /// Into the second-level cache.
    pub(super) fn prefetch(&mut self, place: &Place) {
        if self.target.is_gpu() {
            return; // There are other warps to run meanwhile.
        }
        let pointer = self.address(place).pointer;
        let arguments = [("ptr", pointer.as_str()), ("i32", "0"), ("i32", "2"), ("i32", "1")];
        self.call("void", "llvm.prefetch.p0", &arguments, "");
    }

    pub(super) fn store(&mut self, place: &Place, value: Value, mask: Option<Value>) {
        match self.target.is_gpu() {
            true => self.store_parts(place, value, mask),
            false => self.store_vector(place, value, mask),
        }
    }

    fn store_vector(&mut self, place: &Place, value: Value, mask: Option<Value>) {
        let (from, x) = (self.k.ty(value), self.text(value));
        let address = self.address(place);
        let (stored, x) = match from.elem {
            DType::Bool => {
                let bytes = from.with_elem(DType::U8);
                (bytes, self.def(format!("zext {} {x} to {}", ty(from), ty(bytes))))
            }
            // Stored whole, as the verifier says.
            d if d.is_packed() => (ValueType::vector(DType::U8, from.lanes / 2), self.join_nibbles(from, &x)),
            _ => (from, x),
        };
        let (t, p, notes) = (ty(stored), &address.pointer, &address.notes);
        let plain = format!("store {t} {x}, ptr {p}, align 1{notes}");
        let Some(mask) = mask else { return self.line(plain) };
        let mask = self.text(mask);
        let masked = |this: &mut Self| {
            let function = format!("llvm.masked.store.{}.p0", mangled(stored));
            let mask_ty = vector("i1", stored.lanes);
            let arguments = [(t.as_str(), x.as_str()), ("ptr", p), ("i32", "1"), (&mask_ty, &mask)];
            this.call("void", &function, &arguments, notes);
        };
        if stored.lanes > 1 && self.masks_memory(stored.elem) {
            return masked(self);
        }
        let [whole, some, join] = self.labels(["whole", "some", "join"]);
        let all = self.all_lanes(stored.lanes, &mask);
        self.branch(&all, &whole, &some);
        self.begin(&whole);
        self.line(plain);
        self.jump(&join);
        self.begin(&some);
        if stored.lanes > 1 {
            masked(self);
        }
        self.jump(&join);
        self.begin(&join);
    }
}

/// Zero in every lane of a float.
fn zero(ty: ValueType) -> String {
    if ty.lanes == 1 { "0.0".into() } else { "zeroinitializer".into() }
}
