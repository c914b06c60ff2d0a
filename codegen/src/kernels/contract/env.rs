//! What generators emit with: values of variables, loads behind accesses, loops over vectors.

use super::desc::Flat;
use super::epilogue::{Along, along};
use super::schedule::STEP_LANES;
use super::view::{Access, Affine, Var, VarKind, Vars};
use hadal_ir::kernel::{Buf, Builder, LoopKind, Value};
use hadal_types::{DType, Dim};

/// One vector step of the summed letter: where it is, which lanes are valid, what is carried.
pub type Step<'f> = &'f dyn Fn(&mut Builder, Value, Option<Value>, &[Value]) -> Vec<Value>;

/// Values of variables while emitting.
#[derive(Clone)]
pub struct Env<'a> {
    /// What the variables mean.
    pub vars: &'a Vars,
    /// Buffers by parameter.
    pub bufs: &'a [Buf],
    pub(super) bound: Vec<Option<Value>>,
    /// The list of rows and the letter that runs over it.
    pub(super) listed: Option<(Var, Buf)>,
}

impl<'a> Env<'a> {
    /// Nothing bound yet.
    pub fn new(vars: &'a Vars, bufs: &'a [Buf]) -> Env<'a> {
        Env { vars, bufs, bound: vec![None; vars.list.len()], listed: None }
    }

    /// With a letter bound.
    pub fn with(&self, var: Var, value: Value) -> Env<'a> {
        let mut env = self.clone();
        env.bound[var] = Some(value);
        env
    }

    /// With the letter of rows bound and, where rows are listed, all that says where this one is.
    pub fn row(&self, b: &mut Builder, rows: Var, value: Value) -> Env<'a> {
        let mut env = self.with(rows, value);
        let Some((_, list)) = self.listed.filter(|(letter, _)| *letter == rows) else { return env };
        for (var, info) in self.vars.list.iter().enumerate() {
            env.bound[var] = match &info.kind {
                VarKind::Listed(_) => {
                    let row = b.load(list, &[value], 1);
                    Some(b.cast(row, DType::I64))
                }
                VarKind::Div(of, _) | VarKind::Rem(of, _)
                    if of.terms.keys().all(|v| env.bound[*v].is_some() && env.vars.depends(&Affine::var(*v), rows)) =>
                {
                    Some(env.var(b, var))
                }
                _ => continue,
            };
        }
        env
    }

    /// The value of a variable; letters that are not bound are zero.
    fn var(&self, b: &mut Builder, var: Var) -> Value {
        if let Some(value) = self.bound[var] {
            return value;
        }
        match &self.vars.list[var].kind {
            VarKind::Letter(_) | VarKind::Listed(_) => b.const_i64(0),
            VarKind::Gather { index, last } => self.clamped(b, index, last),
            VarKind::Div(of, by) => {
                let (of, by) = (self.at(b, of), b.const_i64(*by));
                b.div(of, by)
            }
            VarKind::Rem(of, by) => {
                let (of, by) = (self.at(b, of), b.const_i64(*by));
                b.rem(of, by)
            }
        }
    }

    /// The value of a form where a letter is a vector, in as many lanes: of other letters it has what they are bound
    /// to.
    pub fn lanes_at(&self, b: &mut Builder, form: &Affine, letter: (Var, Value)) -> Value {
        let lanes = b.ty(letter.1).lanes;
        let (mut one, mut many) = (Affine::from(form.offset.clone()), None);
        for (var, k) in &form.terms {
            if !self.vars.depends(&Affine::var(*var), letter.0) {
                one.terms.insert(*var, k.clone());
                continue;
            }
            let (v, k) = (self.lanes_of(b, *var, letter), b.dim(k));
            let k = b.splat(k, lanes);
            let term = b.mul(v, k);
            many = Some(many.map_or(term, |sum| b.add(sum, term)));
        }
        let one = self.at(b, &one);
        let one = b.splat(one, lanes);
        many.map_or(one, |many| b.add(many, one))
    }

    /// The values of a variable that a letter moves.
    fn lanes_of(&self, b: &mut Builder, var: Var, letter: (Var, Value)) -> Value {
        let lanes = b.ty(letter.1).lanes;
        let constant = |b: &mut Builder, n: i64| {
            let n = b.const_i64(n);
            b.splat(n, lanes)
        };
        match &self.vars.list[var].kind {
            VarKind::Listed(_) => match self.listed {
                Some((_, list)) => {
                    let row = b.load(list, &[letter.1], lanes);
                    b.cast(row, DType::I64)
                }
                None => letter.1,
            },
            VarKind::Div(of, by) => {
                let (of, by) = (self.lanes_at(b, of, letter), constant(b, *by));
                b.div(of, by)
            }
            VarKind::Rem(of, by) => {
                let (of, by) = (self.lanes_at(b, of, letter), constant(b, *by));
                b.rem(of, by)
            }
            VarKind::Gather { index, last } => {
                let at = self.lanes_at(b, &index.at, letter);
                let loaded = b.load(self.bufs[index.param], &[at], lanes);
                let (loaded, last) = (b.cast(loaded, DType::I64), b.dim(last));
                let (zero, last) = (constant(b, 0), b.splat(last, lanes));
                let low = b.max(loaded, zero);
                b.min(low, last)
            }
            VarKind::Letter(_) => letter.1,
        }
    }

    /// Elements with their scales where a letter is a vector; one where it moves nothing.
    pub(super) fn read_lanes(&self, b: &mut Builder, access: &Access, letter: (Var, Value)) -> Value {
        let at = match self.vars.depends(&access.at, letter.0) {
            true => self.lanes_at(b, &access.at, letter),
            false => self.at(b, &access.at),
        };
        let lanes = b.ty(at).lanes;
        let x = b.load(self.bufs[access.param], &[at], lanes);
        let mut x = b.cast(x, DType::F32);
        if let Some(scale) = &access.scale {
            let scale = self.read_lanes(b, scale, letter);
            let lanes = lanes.max(b.ty(scale).lanes);
            let (whole, scale) = (b.splat(x, lanes), b.splat(scale, lanes));
            x = b.mul(whole, scale);
        }
        x
    }

    /// An integer in memory, or the nearest that is one of an axis with this last element.
    pub(super) fn clamped(&self, b: &mut Builder, index: &Access, last: &Dim) -> Value {
        let (loaded, zero, last) = (self.index(b, index), b.const_i64(0), b.dim(last));
        let low = b.max(loaded, zero);
        b.min(low, last)
    }

    /// An integer in memory.
    pub fn index(&self, b: &mut Builder, access: &Access) -> Value {
        let at = self.at(b, &access.at);
        let loaded = b.load(self.bufs[access.param], &[at], 1);
        b.cast(loaded, DType::I64)
    }

    /// Whether all gathers behind an access chose something that is there; `None` where there are none.
    pub(super) fn found(&self, b: &mut Builder, access: &Access) -> Option<Value> {
        let mut all = None;
        for var in self.vars.gathers(access) {
            let VarKind::Gather { index, last } = &self.vars.list[var].kind else { continue };
            let inside = self.inside(b, index, last);
            all = Some(all.map_or(inside, |a| b.and(a, inside)));
        }
        all
    }

    /// Whether an index is one of an axis with this last element.
    pub(super) fn inside(&self, b: &mut Builder, index: &Access, last: &Dim) -> Value {
        let (chosen, zero, last) = (self.index(b, index), b.const_i64(0), b.dim(last));
        let (low, high) = (b.ge(chosen, zero), b.le(chosen, last));
        b.and(low, high)
    }

    /// Elements, or zero where `access` is of something that is not there.
    pub(super) fn or_zero(&self, b: &mut Builder, access: &Access, x: Value) -> Value {
        let Some(found) = self.found(b, access) else { return x };
        let lanes = b.ty(x).lanes;
        let none = b.const_f32(0.0);
        let (found, none) = (b.splat(found, lanes), b.splat(none, lanes));
        b.select(found, x, none)
    }

    /// The value of a form.
    pub fn at(&self, b: &mut Builder, form: &Affine) -> Value {
        let mut sum = b.dim(&form.offset);
        for (var, k) in &form.terms {
            let (v, k) = (self.var(b, *var), b.dim(k));
            let term = b.mul(v, k);
            sum = b.add(sum, term);
        }
        sum
    }

    /// Consecutive elements as f32, `lanes` of them or as many as the mask has; without their scale.
    pub fn load(&self, b: &mut Builder, access: &Access, lanes: u32, mask: Option<Value>) -> Value {
        let at = self.at(b, &access.at);
        load_f32(b, self.bufs[access.param], at, lanes, mask)
    }

    /// The scale of an access, one f32; `None` where it has none.
    pub fn scale(&self, b: &mut Builder, access: &Access) -> Option<Value> {
        access.scale.as_ref().map(|s| self.part(b, s))
    }

    /// The offset of an access, one f32; `None` where it has none.
    pub(super) fn offset(&self, b: &mut Builder, access: &Access) -> Option<Value> {
        access.offset.as_ref().map(|m| self.part(b, m))
    }

    /// A scale or offset, which may be scaled itself.
    fn part(&self, b: &mut Builder, access: &Access) -> Value {
        let x = self.load(b, access, 1, None);
        match self.scale(b, access) {
            Some(scale) => b.mul(x, scale),
            None => x,
        }
    }

    /// Elements with the one scale and offset that they share.
    pub(super) fn scaled(&self, b: &mut Builder, access: &Access, x: Value) -> Value {
        let Some(scale) = self.scale(b, access) else { return x };
        match self.offset(b, access) {
            Some(offset) => b.fma(x, scale, offset),
            None => b.mul(x, scale),
        }
    }

    /// Elements with their scale, along `lane` if it moves them.
    pub(super) fn read(
        &self,
        b: &mut Builder,
        access: &Access,
        lane: Option<(Var, u32)>,
        mask: Option<Value>,
    ) -> Value {
        let lanes = match lane {
            Some((var, lanes)) if along(self.vars, access, var) == Along::Consecutive => lanes,
            _ => 1,
        };
        let x = self.load(b, access, lanes, mask.filter(|_| lanes > 1));
        let x = self.scaled(b, access, x);
        self.or_zero(b, access, x)
    }
}

/// Consecutive elements as f32.
pub fn load_f32(b: &mut Builder, buf: Buf, at: Value, lanes: u32, mask: Option<Value>) -> Value {
    let x = match mask {
        Some(mask) => b.load_masked(buf, &[at], mask, None),
        None => b.load(buf, &[at], lanes),
    };
    b.cast(x, DType::F32)
}

/// Declares the buffers, in order.
pub fn declare(b: &mut Builder, params: &[Flat]) -> Vec<Buf> {
    params.iter().map(|p| b.param(p.name.clone(), p.dtype, p.shape.clone(), p.rights)).collect()
}

/// Runs `lo..hi` (`length` elements, where known) in vectors, two at a time where there are registers for it; a last
/// one is masked. `step` gets the position, the mask and what is carried.
pub fn in_vectors(
    b: &mut Builder,
    lanes: u32,
    (lo, hi, length): (Value, Value, Option<i64>),
    init: Vec<Value>,
    step: Step<'_>,
) -> Vec<Value> {
    let mask_lanes = lanes;
    let lanes = i64::from(lanes);
    let mut sums = init;
    let mut at = lo;
    // Long vectors are several registers each: two of them at once leave too few.
    let pair = if mask_lanes >= STEP_LANES { lanes } else { 2 * lanes };
    let units = if pair > lanes { &[pair, lanes][..] } else { &[lanes] };
    for unit in units.iter().copied() {
        // What is left for this unit: all of it, then less than two vectors.
        let left = |n: i64| if unit == pair { n } else { n % pair };
        let vectors = |b: &mut Builder, from: Value, sums: &[Value]| {
            let mut sums = sums.to_vec();
            for i in 0..unit / lanes {
                let offset = b.const_i64(i * lanes);
                let k = b.add(from, offset);
                sums = step(b, k, None, &sums);
            }
            sums
        };
        match length.map(|n| left(n) / unit) {
            Some(0) => continue,
            // No loop for one round: blocks that share a scale are often that short.
            Some(1) => {
                sums = vectors(b, at, &sums);
                let size = b.const_i64(unit);
                at = b.add(at, size);
                continue;
            }
            _ => {}
        }
        let (left, size) = (b.sub(hi, at), b.const_i64(unit));
        let whole = b.div(left, size);
        let whole = b.mul(whole, size);
        let end = b.add(at, whole);
        sums = b.for_loop(at, end, unit, LoopKind::Serial, &sums, vectors);
        at = end;
    }
    let tail = |b: &mut Builder, sums: &[Value]| {
        let mask = b.lanes_below(at, hi, mask_lanes);
        step(b, at, Some(mask), sums)
    };
    match length.map(|n| n % lanes) {
        Some(0) => sums,
        Some(_) => tail(b, &sums),
        None => {
            let more = b.lt(at, hi);
            b.if_else(more, |b| tail(b, &sums), |_| sums.clone())
        }
    }
}
