//! The indices of the largest elements: `top_k`.
//!
//! A few are found one after the other, by as many passes. Many are found by bisection: 32 passes narrow down the
//! smallest one taken, one pass collects what is not below it, in order of indices, and then each counts how many come
//! before it. That is `34 n + k²` steps on vectors instead of `2 k n`.

use super::super::index::{Expr, Var};
use super::lower::Lower;
use super::nodes::Id;
use hadal_ir::kernel::{Buf, Builder, LoopKind, ReduceOp, Value};
use hadal_types::{DType, Dim};

/// From how many on bisection pays.
const MANY: i64 = 32;

/// A choice of the `k` largest of `n` elements: `root` is the one at `var`, and indices go to `buf` from `at` on.
#[derive(Clone, Copy)]
pub(super) struct Choice<'a> {
    pub needed: &'a [Id],
    pub root: Id,
    pub var: Var,
    pub n: &'a Dim,
    pub k: i64,
    pub buf: Buf,
    pub at: &'a [Expr],
}

impl Choice<'_> {
    fn width(&self, lower: &Lower) -> u32 {
        if lower.vectors(self.var, self.needed) { lower.width } else { 1 }
    }
}

impl Lower<'_> {
    /// Chooses.
    pub(super) fn largest(&mut self, b: &mut Builder, choice: &Choice<'_>) {
        match choice.k >= MANY && self.nodes.ty(choice.root) == DType::F32 {
            true => self.by_bisection(b, choice),
            false => self.by_passes(b, choice),
        }
    }

    /// Selects by `k` passes. Each takes the best of what comes after the one before in the order of selection, so
    /// nothing is marked or moved, and equal elements come out in order of their indices.
    fn by_passes(&mut self, b: &mut Builder, choice: &Choice<'_>) {
        let Choice { needed, root, var, n, k, buf, at } = *choice;
        let ty = self.nodes.ty(root);
        let real = ty == DType::F32;
        // Indices that f32 holds exactly are compared as such: as many lanes as the elements.
        let index_ty = if real && n.as_const().is_some_and(|n| n < 1 << 24) { DType::F32 } else { DType::I64 };
        let number = |b: &mut Builder, ty: DType, x: i64| match ty {
            DType::F32 => b.const_f32(x as f32),
            _ => b.const_i64(x),
        };
        let (top, bottom) = match real {
            true => (b.const_f32(f32::INFINITY), b.const_f32(f32::NEG_INFINITY)),
            false => (b.const_i64(i64::MAX), b.const_i64(i64::MIN)),
        };
        let before = number(b, index_ty, -1);
        let size = b.dim(n);
        let after = b.cast(size, index_ty);
        let width = choice.width(self);
        let (zero, count) = (b.const_i64(0), b.const_i64(k));
        let mut base: Vec<Value> = at.iter().map(|e| self.expr(b, e)).collect();
        b.for_loop(zero, count, 1, LoopKind::Serial, &[top, before], |b, j, last| {
            let (last_x, last_i) = (last[0], last[1]);
            // Whether an element comes after the last one taken, and its index.
            let candidate = |this: &mut Self, b: &mut Builder, i: Value| {
                this.ready(b, needed);
                let x = this.value(root);
                let lanes = this.lanes.map_or(1, |(_, l)| l);
                let x = b.splat(x, lanes);
                let mut index = b.cast(i, index_ty);
                if lanes > 1 {
                    let iota = b.iota(DType::I64, lanes);
                    let iota = b.cast(iota, index_ty);
                    index = b.add(iota, index);
                }
                let less = b.lt(x, last_x);
                let same = b.eq(x, last_x);
                let later = b.gt(index, last_i);
                let tie = b.and(same, later);
                let open = b.or(less, tie);
                // Minus infinity is never taken, nor what is not a number.
                let counts = b.gt(x, bottom);
                (x, index, if real { b.and(open, counts) } else { open })
            };
            let best = self.fold(b, var, width, ReduceOp::Max, bottom, |this, b, i, acc| {
                let (x, _, open) = candidate(this, b, i);
                let x = b.select(open, x, bottom);
                b.max(x, acc)
            });
            let place = self.fold(b, var, width, ReduceOp::Min, after, |this, b, i, acc| {
                let (x, index, open) = candidate(this, b, i);
                let equal = b.eq(x, best);
                let hit = b.and(open, equal);
                let index = b.select(hit, index, after);
                b.min(index, acc)
            });
            // Places that are left over hold -1.
            let (whole, over) = (b.cast(place, DType::I64), b.eq(place, after));
            let none = b.const_i64(-1);
            let whole = b.select(over, none, whole);
            if let Some(last) = base.last_mut() {
                *last = j;
            }
            b.store(buf, &base, whole);
            vec![best, place]
        });
    }

    /// An integer that orders reals as they are; the least one for what is never taken.
    fn rank_key(&mut self, b: &mut Builder, choice: &Choice<'_>) -> Value {
        self.ready(b, choice.needed);
        let lanes = self.lanes.map_or(1, |(_, lanes)| lanes);
        let x = self.value(choice.root);
        let x = b.splat(x, lanes);
        let wide = |b: &mut Builder, x: Value| b.splat(x, lanes);
        let (zero, bottom, lowest) = (b.const_f32(0.0), b.const_f32(f32::NEG_INFINITY), b.const_i32(i32::MIN));
        let (sign, rest) = (b.const_i32(31), b.const_i32(i32::MAX));
        let (zero, bottom, lowest) = (wide(b, zero), wide(b, bottom), wide(b, lowest));
        let (sign, rest) = (wide(b, sign), wide(b, rest));
        let counts = b.gt(x, bottom);
        // Zeros of both signs are equal.
        let x = b.add(x, zero);
        let bits = b.bitcast(x, DType::I32);
        let negative = b.shr(bits, sign);
        let turned = b.and(negative, rest);
        let key = b.xor(bits, turned);
        b.select(counts, key, lowest)
    }

    /// How many elements have a key of at least `least`, an i64.
    fn count_from(&mut self, b: &mut Builder, choice: &Choice<'_>, least: Value) -> Value {
        let (none, width) = (b.const_i32(0), choice.width(self));
        let least = b.cast(least, DType::I32);
        let count = self.fold(b, choice.var, width, ReduceOp::Add, none, |this, b, _, sum| {
            let key = this.rank_key(b, choice);
            let lanes = this.lanes.map_or(1, |(_, lanes)| lanes);
            let (one, none) = (b.const_i32(1), b.const_i32(0));
            let (one, none, least) = (b.splat(one, lanes), b.splat(none, lanes), b.splat(least, lanes));
            let taken = b.ge(key, least);
            let more = b.select(taken, one, none);
            b.add(sum, more)
        });
        b.cast(count, DType::I64)
    }

    fn by_bisection(&mut self, b: &mut Builder, choice: &Choice<'_>) {
        let Choice { var, k, buf, at, .. } = *choice;
        let keys = b.alloc(format!("keys{}", choice.root), DType::I32, [k]);
        let places = b.alloc(format!("places{}", choice.root), DType::I64, [k]);
        let (zero, one, count) = (b.const_i64(0), b.const_i64(1), b.const_i64(k));
        let (low, high) = (b.const_i64(i64::from(i32::MIN) + 1), b.const_i64(i64::from(i32::MAX)));
        let rounds = b.const_i64(32);
        // The largest key such that at least `k` elements have it or a larger one; the least where there are fewer.
        let bounds = b.for_loop(zero, rounds, 1, LoopKind::Serial, &[low, high], |b, _, bounds| {
            let (low, high) = (bounds[0], bounds[1]);
            let span = b.sub(high, low);
            let up = b.add(span, one);
            let half = b.shr(up, one);
            let middle = b.add(low, half);
            let found = self.count_from(b, choice, middle);
            let enough = b.ge(found, count);
            let below = b.sub(middle, one);
            vec![b.select(enough, middle, low), b.select(enough, high, below)]
        });
        let least = bounds[0];
        let above = b.add(least, one);
        // Where that is the largest key there is none above it, and no number for it either.
        let top = b.eq(least, high);
        let next = b.select(top, least, above);
        let larger = self.count_from(b, choice, next);
        let larger = b.select(top, zero, larger);
        let ties = b.sub(count, larger);
        let limit = b.cast(least, DType::I32);
        let mut taken = vec![zero, zero];
        for segment in self.segments(b, var, 1) {
            taken = self.step(b, var, &segment, &taken, |this, b, taken| {
                let key = this.rank_key(b, choice);
                let (greater, equal) = (b.gt(key, limit), b.eq(key, limit));
                let room = b.lt(taken[1], ties);
                let tie = b.and(equal, room);
                let take = b.or(greater, tie);
                let i = this.vars[&var];
                b.if_then(take, |b| {
                    b.store(keys, &[taken[0]], key);
                    b.store(places, &[taken[0]], i);
                });
                let (more, tied) = (b.select(take, one, zero), b.select(tie, one, zero));
                vec![b.add(taken[0], more), b.add(taken[1], tied)]
            });
        }
        let taken = taken[0];
        let base: Vec<Value> = at.iter().map(|e| self.expr(b, e)).collect();
        let place = |rank: Value| {
            let mut place = base.clone();
            if let Some(last) = place.last_mut() {
                *last = rank;
            }
            place
        };
        b.for_each(zero, taken, 1, LoopKind::Serial, |b, j| {
            let key = b.load(keys, &[j], 1);
            let lanes = 8;
            let none = b.const_i32(0);
            let init = b.splat(none, lanes);
            let mine = b.splat(key, lanes);
            let before = |b: &mut Builder, from: Value, to: Value, equal: bool| {
                let sums = b.for_loop(from, to, i64::from(lanes), LoopKind::Serial, &[init], |b, i, sum| {
                    let mask = b.lanes_below(i, to, lanes);
                    let other = b.load_masked(keys, &[i], mask, None);
                    let first = if equal { b.ge(other, mine) } else { b.gt(other, mine) };
                    let first = b.and(first, mask);
                    let one = b.const_i32(1);
                    let one = b.splat(one, lanes);
                    let more = b.select(first, one, init);
                    vec![b.add(sum[0], more)]
                });
                let sum = b.reduce_lanes(ReduceOp::Add, sums[0]);
                b.cast(sum, DType::I64)
            };
            // Those with lower indices come first where keys are equal.
            let (lower, after) = (before(b, zero, j, true), b.add(j, one));
            let higher = before(b, after, taken, false);
            let rank = b.add(lower, higher);
            let index = b.load(places, &[j], 1);
            b.store(buf, &place(rank), index);
        });
        b.for_each(taken, count, 1, LoopKind::Serial, |b, j| {
            let none = b.const_i64(-1);
            b.store(buf, &place(j), none);
        });
    }
}
