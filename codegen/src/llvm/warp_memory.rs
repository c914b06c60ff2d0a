//! How the lanes of a warp load and store: as many neighbours of a lane at once as alignment allows, each by itself under a
//! mask, runs where their indices say.

use super::emit::Emitter;
use super::memory::Address;
use super::multiples::gcd;
use super::types::*;
use super::warp::{SHARED, WARP};
use hadal_ir::kernel::*;
use hadal_types::DType;

/// Runs of neighbours of each lane.
struct Runs {
    /// Where each begins.
    starts: Vec<String>,
    /// Its elements.
    each: usize,
    /// Elements that are accessed at once.
    together: usize,
    /// The buffer.
    address: Address,
}

impl Emitter<'_> {
    /// Where this lane finds its element of a part, and for packed elements how far up its bits are.
    fn lane_address(&mut self, address: &Address, ty: ValueType, part: usize) -> (String, Option<String>) {
        let (pointer, space) = (&address.pointer, address.space);
        let element = self.element(ty.lanes, part);
        let element = match element.starts_with('%') {
            true => self.def(format!("zext i32 {element} to i64")),
            false => element,
        };
        if let Some(flat) = &address.flat {
            let flat = self.def(format!("add i64 {flat}, {element}"));
            let byte = self.def(format!("ashr i64 {flat}, 1"));
            let at = self.def(format!("getelementptr i8, {space} {}, i64 {byte}", address.base));
            let odd = self.def(format!("trunc i64 {flat} to i8"));
            let odd = self.def(format!("and i8 {odd}, 1"));
            return (at, Some(self.def(format!("shl i8 {odd}, 2"))));
        }
        if element == "0" {
            let pointer = pointer.clone();
            return (self.unit(address, pointer), None);
        }
        let unit = ty.elem.bits() / 8;
        let bytes = self.def(format!("mul i64 {element}, {}", unit.max(1)));
        let at = self.def(format!("getelementptr i8, {space} {pointer}, i64 {bytes}"));
        (self.unit(address, at), None)
    }

    /// Where what is at an address lies, which is within a unit of 16 bytes: exchanged with others of its row, if the buffer
    /// is swizzled.
    fn unit(&mut self, address: &Address, at: String) -> String {
        if !address.swizzled {
            return at;
        }
        let number = self.def(format!("ptrtoint {SHARED} {at} to i32"));
        let number = self.swizzled(&number);
        self.def(format!("inttoptr i32 {number} to {SHARED}"))
    }

    /// How an access of n > 1 neighbours a lane is made: elements of each, of which a power of two is as many as
    /// alignment and 16 bytes allow. Nothing where elements are accessed one by one.
    fn together(&self, place: &Place, ty: ValueType) -> Option<usize> {
        let (count, bits) = (self.split(ty).1, ty.elem.bits());
        let together = self.bits_together(place, ty, count);
        (count > 1 && together >= 8 && together > bits).then_some((together / bits) as usize)
    }

    /// How many bits of so many neighbours are accessed at once.
    pub(super) fn bits_together(&self, place: &Place, ty: ValueType, count: usize) -> u64 {
        let align = match place.buf {
            Buf::Param(i) => u64::from(self.k.params[i as usize].align),
            Buf::Alloc(i) => self.k.allocs[i as usize].align(),
        };
        // In bits, as elements may have four.
        let bits = ty.elem.bits();
        let known = gcd(gcd(8 * align, self.multiples.flat(self.k, place).saturating_mul(bits)), count as u64 * bits);
        (1 << known.trailing_zeros()).min(128).max(bits)
    }

    /// The parts of what is loaded.
    pub(super) fn load_parts(
        &mut self,
        place: &Place,
        result: ValueType,
        mask: Option<Value>,
        fill: Option<Value>,
    ) -> Vec<String> {
        if let Some(runs) = self.runs(place, result) {
            let [mask, fill] = [mask, fill].map(|v| v.map(|v| self.known(v).parts.clone()));
            return self.load_runs(&runs, result, mask.as_deref(), fill.as_deref());
        }
        let address = self.address(place);
        let [mask, fill] = [mask, fill].map(|v| v.map(|v| self.known(v).parts.clone()));
        let Some(each) = self.together(place, result) else {
            return self.load_each(&address, result, mask.as_deref(), fill.as_deref());
        };
        let Some(mask) = mask else { return self.load_together(&address, result, each) };
        let all = self.all_on(&mask);
        let t = ty(ValueType::scalar(result.elem));
        let [whole, some, join] = self.labels(["whole", "some", "join"]);
        self.branch(&all, &whole, &some);
        self.begin(&whole);
        let loaded = self.load_together(&address, result, each);
        let from_whole = self.label.clone();
        self.jump(&join);
        self.begin(&some);
        let others = self.load_each(&address, result, Some(&mask), fill.as_deref());
        let from_some = self.label.clone();
        self.jump(&join);
        self.begin(&join);
        let pairs = loaded.iter().zip(&others);
        pairs.map(|(a, b)| self.def(format!("phi {t} [ {a}, %{from_whole} ], [ {b}, %{from_some} ]"))).collect()
    }

    /// Whether this lane's part of a mask is on as a whole.
    fn all_on(&mut self, mask: &[String]) -> String {
        let mut all = mask[0].clone();
        for on in &mask[1..] {
            all = self.def(format!("and i1 {all}, {on}"));
        }
        all
    }

    /// Where the runs of a lane begin, and how many elements are accessed at once; nothing where there is one run.
    fn runs(&mut self, place: &Place, ty: ValueType) -> Option<Runs> {
        let last = place.index.last().filter(|v| self.k.ty(**v).lanes > 1)?;
        let starts = self.known(*last).parts.clone();
        // Verified: elements of whole bytes.
        let (bits, each) = (ty.elem.bits(), self.split(ty).1 / starts.len());
        let together = self.bits_together(place, ty, each);
        let rest = Place { buf: place.buf, index: place.index[..place.index.len() - 1].to_vec() };
        let address = self.address(&rest);
        let starts = starts.iter().map(|start| {
            let bytes = self.def(format!("mul i64 {start}, {}", bits / 8));
            self.def(format!("getelementptr i8, {} {}, i64 {bytes}", address.space, address.pointer))
        });
        Some(Runs { starts: starts.collect(), each, together: (together / bits) as usize, address })
    }

    /// Loads runs, under a mask element by element.
    fn load_runs(
        &mut self,
        runs: &Runs,
        result: ValueType,
        mask: Option<&[String]>,
        fill: Option<&[String]>,
    ) -> Vec<String> {
        let (part, bytes) = (self.split(result).0, result.elem.bits() as usize / 8);
        let together = if mask.is_some() { 1 } else { runs.together };
        let mut out = Vec::new();
        for start in &runs.starts {
            for first in (0..runs.each).step_by(together) {
                let (space, offset) = (runs.address.space, first * bytes);
                let at = self.def(format!("getelementptr i8, {space} {start}, i64 {offset}"));
                let at = self.unit(&runs.address, at);
                match mask {
                    None => out.extend(self.load_elements(&runs.address, &at, result, together)),
                    Some(mask) => {
                        let fill = fill.map(|fill| &fill[out.len()][..]);
                        out.push(self.load_if(&mask[out.len()], part, &runs.address, (&at, None), fill));
                    }
                }
            }
        }
        out
    }

    /// Stores runs, under a mask element by element.
    fn store_runs(&mut self, runs: &Runs, from: ValueType, parts: &[String], mask: Option<&[String]>) {
        let bytes = from.elem.bits() as usize / 8;
        let together = if mask.is_some() { 1 } else { runs.together };
        for (start, run) in runs.starts.iter().zip(0..) {
            for first in (0..runs.each).step_by(together) {
                let (space, offset, number) = (runs.address.space, first * bytes, run * runs.each + first);
                let at = self.def(format!("getelementptr i8, {space} {start}, i64 {offset}"));
                let at = self.unit(&runs.address, at);
                let group = &parts[number..number + together];
                let Some(mask) = mask else {
                    self.store_group(&runs.address, &at, from, group);
                    continue;
                };
                let [some, join] = self.labels(["some", "join"]);
                self.branch(&mask[number], &some, &join);
                self.begin(&some);
                self.store_group(&runs.address, &at, from, group);
                self.jump(&join);
                self.begin(&join);
            }
        }
    }

    /// Loads an element where a mask is on.
    fn load_if(
        &mut self,
        on: &str,
        part: ValueType,
        address: &Address,
        (at, shift): (&str, Option<&str>),
        fill: Option<&str>,
    ) -> String {
        let zero = match part.elem {
            DType::F32 | DType::F64 => "0.0".to_string(),
            _ => int(part, 0),
        };
        let [some, join] = self.labels(["some", "join"]);
        let before = self.label.clone();
        self.branch(on, &some, &join);
        self.begin(&some);
        let loaded = self.load_lane(part, (address.space, at), shift, &address.notes);
        self.jump(&join);
        self.begin(&join);
        let fill = fill.unwrap_or(&zero);
        self.def(format!("phi {} [ {loaded}, %{some} ], [ {fill}, %{before} ]", ty(part)))
    }

    /// Loads all parts, so many elements at once.
    fn load_together(&mut self, address: &Address, result: ValueType, each: usize) -> Vec<String> {
        let count = self.split(result).1;
        let mut out = Vec::new();
        for first in (0..count).step_by(each) {
            let at = self.piece(address, result, first);
            out.extend(self.load_elements(address, &at, result, each));
        }
        out
    }

    /// Loads so many elements at once.
    fn load_elements(&mut self, address: &Address, at: &str, result: ValueType, each: usize) -> Vec<String> {
        let bits = result.elem.bits() as usize;
        let words = self.load_words(address.space, at, each * bits, &address.notes);
        if bits == 64 {
            let whole = self.joined(&words, 32, 64);
            let real = result.elem == DType::F64;
            let cast = |x: String| if real { self.def(format!("bitcast i64 {x} to double")) } else { x };
            return whole.into_iter().map(cast).collect();
        }
        let width = (each * bits).min(32);
        words.iter().flat_map(|word| self.elements_of(word, width as u32, result.elem)).collect()
    }

    /// Where this lane's elements from part `first` on lie; the first of them begins a byte.
    fn piece(&mut self, address: &Address, ty: ValueType, first: usize) -> String {
        let element = self.element(ty.lanes, first);
        let element = self.def(format!("zext i32 {element} to i64"));
        let bits = ty.elem.bits();
        let bytes = match bits {
            4 => self.def(format!("lshr i64 {element}, 1")),
            _ => self.def(format!("mul i64 {element}, {}", bits / 8)),
        };
        let at = self.def(format!("getelementptr i8, {} {}, i64 {bytes}", address.space, address.pointer));
        self.unit(address, at)
    }

    /// Loads so many bits as words of 32, or as one smaller word.
    fn load_words(&mut self, space: &str, at: &str, bits: usize, notes: &str) -> Vec<String> {
        let align = bits / 8;
        match bits / 32 {
            0 => vec![self.def(format!("load i{bits}, {space} {at}, align {align}{notes}"))],
            1 => vec![self.def(format!("load i32, {space} {at}, align {align}{notes}"))],
            n => {
                let all = self.def(format!("load <{n} x i32>, {space} {at}, align {align}{notes}"));
                (0..n).map(|i| self.def(format!("extractelement <{n} x i32> {all}, i64 {i}"))).collect()
            }
        }
    }

    /// The elements that lie in a word.
    fn elements_of(&mut self, word: &str, width: u32, dtype: DType) -> Vec<String> {
        match (dtype, dtype.bits() as u32) {
            (DType::F32, _) => vec![self.def(format!("bitcast i32 {word} to float"))],
            (DType::Bool, _) => {
                let bytes = self.cut_or_whole(word, width, 8);
                bytes.iter().map(|b| self.def(format!("icmp ne i8 {b}, 0"))).collect()
            }
            (_, 4) => {
                let bytes = self.cut_or_whole(word, width, 8);
                let nibbles =
                    |e: &mut Self, b: &str| [e.def(format!("and i8 {b}, 15")), e.def(format!("lshr i8 {b}, 4"))];
                bytes.iter().flat_map(|b| nibbles(self, b)).collect()
            }
            (_, bits) => self.cut_or_whole(word, width, bits),
        }
    }

    fn cut_or_whole(&mut self, word: &str, width: u32, bits: u32) -> Vec<String> {
        if width == bits { vec![word.to_owned()] } else { self.cut(word, width, bits) }
    }

    /// Loads each part by itself.
    fn load_each(
        &mut self,
        address: &Address,
        result: ValueType,
        mask: Option<&[String]>,
        fill: Option<&[String]>,
    ) -> Vec<String> {
        let (part, count) = self.split(result);
        (0..count)
            .map(|i| {
                let (at, shift) = self.lane_address(address, result, i);
                let at = (&at[..], shift.as_deref());
                match mask {
                    None => self.load_lane(part, (address.space, at.0), at.1, &address.notes),
                    Some(mask) => self.load_if(&mask[i], part, address, at, fill.map(|f| &f[i][..])),
                }
            })
            .collect()
    }

    fn load_lane(&mut self, part: ValueType, (space, at): (&str, &str), shift: Option<&str>, notes: &str) -> String {
        let bits = part.elem.bits();
        match (part.elem, shift) {
            (_, Some(shift)) => {
                let byte = self.def(format!("load i8, {space} {at}, align 1{notes}"));
                let moved = self.def(format!("lshr i8 {byte}, {shift}"));
                self.def(format!("and i8 {moved}, 15"))
            }
            (DType::Bool, None) => {
                let byte = self.def(format!("load i8, {space} {at}, align 1{notes}"));
                self.def(format!("icmp ne i8 {byte}, 0"))
            }
            _ => self.def(format!("load {}, {space} {at}, align {}{notes}", ty(part), bits / 8)),
        }
    }

    pub(super) fn store_parts(&mut self, place: &Place, value: Value, mask: Option<Value>) {
        let (from, parts) = self.of(value);
        if let Some(runs) = self.runs(place, from) {
            let mask = mask.map(|m| self.known(m).parts.clone());
            return self.store_runs(&runs, from, &parts, mask.as_deref());
        }
        let address = self.address(place);
        let mask = mask.map(|m| self.known(m).parts.clone());
        let Some(each) = self.together(place, from) else {
            return self.store_each(&address, from, &parts, mask.as_deref());
        };
        let Some(mask) = mask else { return self.store_together(&address, from, &parts, each) };
        let all = self.all_on(&mask);
        let [whole, some, join] = self.labels(["whole", "some", "join"]);
        self.branch(&all, &whole, &some);
        self.begin(&whole);
        self.store_together(&address, from, &parts, each);
        self.jump(&join);
        self.begin(&some);
        self.store_each(&address, from, &parts, Some(&mask));
        self.jump(&join);
        self.begin(&join);
    }

    /// Stores all parts, so many elements at once.
    fn store_together(&mut self, address: &Address, from: ValueType, parts: &[String], each: usize) {
        for (i, group) in parts.chunks(each).enumerate() {
            let at = self.piece(address, from, i * each);
            self.store_group(address, &at, from, group);
        }
    }

    /// Stores neighbours at once.
    fn store_group(&mut self, address: &Address, at: &str, from: ValueType, group: &[String]) {
        let bits = from.elem.bits() as u32;
        let (words, width) = match from.elem {
            DType::F32 => (group.iter().map(|x| self.def(format!("bitcast float {x} to i32"))).collect(), 32),
            DType::F64 => (group.iter().map(|x| self.def(format!("bitcast double {x} to i64"))).collect(), 64),
            DType::Bool => (group.iter().map(|x| self.def(format!("zext i1 {x} to i8"))).collect(), 8),
            _ if bits == 4 => (self.pairs_of_nibbles(group), 8),
            _ => (group.to_vec(), bits),
        };
        let all = words.len() as u32 * width;
        let words: Vec<String> = match (width, all.min(32)) {
            (64, _) => words.iter().flat_map(|x| self.cut(x, 64, 32)).collect(),
            (have, want) if have == want => words,
            (have, want) => self.joined(&words, have, want),
        };
        let (space, notes, align) = (address.space, &address.notes, all / 8);
        if let [word] = &words[..] {
            self.line(format!("store i{} {word}, {space} {at}, align {align}{notes}", all.min(32)));
            return;
        }
        let n = words.len();
        let mut vector = "poison".to_owned();
        for (i, word) in words.iter().enumerate() {
            vector = self.def(format!("insertelement <{n} x i32> {vector}, i32 {word}, i64 {i}"));
        }
        self.line(format!("store <{n} x i32> {vector}, {space} {at}, align {align}{notes}"));
    }

    /// Stores each part by itself.
    fn store_each(&mut self, address: &Address, from: ValueType, parts: &[String], mask: Option<&[String]>) {
        if from.elem.is_packed() && parts.len() > 1 {
            // Pairs are on or off together.
            let bytes = self.pairs_of_nibbles(parts);
            let pairs =
                mask.map(|m| m.chunks_exact(2).map(|m| self.def(format!("or i1 {}, {}", m[0], m[1]))).collect());
            let mask: Option<Vec<String>> = pairs;
            let as_bytes = ValueType::vector(DType::U8, from.lanes / 2);
            let plain = Address { flat: None, ..address.clone() };
            return self.store_each(&plain, as_bytes, &bytes, mask.as_deref());
        }
        for (i, x) in parts.iter().enumerate() {
            // Elements are there several times where they are fewer than lanes.
            let mut wanted =
                (from.lanes < WARP as u32).then(|| self.def(format!("icmp ult i32 {}, {}", self.lane, from.lanes)));
            let mut x = x.clone();
            let mut on = mask.map(|m| m[i].clone());
            let (stored, bits) = match from.elem {
                DType::Bool => {
                    x = self.def(format!("zext i1 {x} to i8"));
                    ("i8", 8)
                }
                // The even lane of a pair stores both.
                d if d.is_packed() => {
                    let high = self.shuffle(d, &x, "bfly", "1");
                    let high = self.def(format!("shl i8 {high}, 4"));
                    x = self.def(format!("or i8 {x}, {high}"));
                    on = on.map(|on| {
                        let other = self.shuffle(DType::Bool, &on, "bfly", "1");
                        self.def(format!("or i1 {on}, {other}"))
                    });
                    let odd = self.def(format!("trunc i32 {} to i1", self.lane));
                    let even = self.def(format!("xor i1 {odd}, true"));
                    on = Some(on.map_or_else(|| even.clone(), |on| self.def(format!("and i1 {on}, {even}"))));
                    ("i8", 8)
                }
                d => (elem(d), d.bits()),
            };
            wanted = match (wanted, on) {
                (Some(a), Some(b)) => Some(self.def(format!("and i1 {a}, {b}"))),
                (a, b) => a.or(b),
            };
            let (at, _) = self.lane_address(address, from, i);
            let store = format!("store {stored} {x}, {} {at}, align {}{}", address.space, bits / 8, address.notes);
            let Some(wanted) = wanted else {
                self.line(store);
                continue;
            };
            let [some, join] = self.labels(["some", "join"]);
            self.branch(&wanted, &some, &join);
            self.begin(&some);
            self.line(store);
            self.jump(&join);
            self.begin(&join);
        }
    }
}
