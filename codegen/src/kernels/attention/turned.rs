//! Scores of many rows: the keys of a block are written anew, column by column, so that lanes are keys. Then a score is
//! a multiply-add for each column, and no lanes are added to each other; what turning costs is shared by all rows.

use super::block::Block;
use super::emit::{Cell, padded};
use super::schedule::KEYS;
use crate::kernels::contract::emit::{in_vectors, load_f32};
use hadal_ir::kernel::{Buf, Builder, LoopKind, Value};

/// Columns between two tests whether all are done; query rows are multiples of it.
const UNROLL: i64 = 4;

impl<'a> Cell<'a> {
    /// All scores of a block.
    pub(super) fn scores_by_column(&self, b: &mut Builder, turned: Buf, block: Block<'a>) {
        self.turn_keys(b, turned, block);
        let zero = b.const_i64(0);
        b.for_each(zero, self.at.rows, self.at.s.tiles.rows, LoopKind::Serial, |b, r| {
            self.score_columns(b, r, turned, block.layout.query_width)
        });
    }

    /// Writes the columns of a block's keys, `KEYS` neighbours each, those that fill up a vector as zeros.
    fn turn_keys(&self, b: &mut Builder, turned: Buf, block: Block<'a>) {
        let lanes = i64::from(self.at.s.tiles.lanes);
        let (zero, one, keys) = (b.const_i64(0), b.const_i64(1), b.const_i64(KEYS));
        let last = b.sub(block.count, one);
        for (term, (column, staged)) in block.layout.set.terms.iter().zip(&block.layout.terms) {
            b.for_each(zero, keys, lanes, LoopKind::Serial, |b, first| {
                // Beyond the last key there is only room for scores.
                let place = |b: &mut Builder, i: i64| {
                    let i = b.const_i64(i);
                    let j = b.add(first, i);
                    let j = b.min(j, last);
                    self.place(b, block, (term, *staged), j)
                };
                let places: Vec<(Buf, Value)> = (0..lanes).map(|i| place(b, i)).collect();
                // What is staged is filled up with zeros.
                let size = if staged.is_some() { padded(term.key.size, lanes) } else { term.key.size };
                let end = b.const_i64(size);
                in_vectors(b, lanes as u32, (zero, end, Some(size)), Vec::new(), &|b, k, mask, _| {
                    let load = |b: &mut Builder, (buf, base): &(Buf, Value)| {
                        let at = b.add(*base, k);
                        load_f32(b, *buf, at, lanes as u32, mask)
                    };
                    let rows = places.iter().map(|place| load(b, place)).collect();
                    let column = b.const_i64(*column);
                    let column = b.add(column, k);
                    let at = b.mul(column, keys);
                    let at = b.add(at, first);
                    for (i, x) in b.transpose(rows).into_iter().enumerate() {
                        let i = b.const_i64(i as i64 * KEYS);
                        let at = b.add(at, i);
                        b.store(turned, &[at], x);
                    }
                    Vec::new()
                });
            });
        }
    }

    /// Scores of a tile of rows with all keys of the block, by so many columns.
    fn score_columns(&self, b: &mut Builder, first: Value, turned: Buf, columns: i64) {
        let (lanes, vectors) = (self.at.s.tiles.lanes, KEYS / i64::from(self.at.s.tiles.lanes));
        let (zero, width, none) = (b.const_i64(0), b.const_i64(self.query_width), b.const_f32(0.0));
        let columns = b.const_i64(columns);
        let none = b.splat(none, lanes);
        let rows: Vec<Value> = (0..self.at.s.tiles.rows)
            .map(|i| {
                let i = b.const_i64(i);
                b.add(first, i)
            })
            .collect();
        let queries: Vec<Value> = rows.iter().map(|r| b.mul(*r, width)).collect();
        let column = |b: &mut Builder, k: Value, sums: Vec<Value>| -> Vec<Value> {
            let keys = b.const_i64(KEYS);
            let base = b.mul(k, keys);
            let load = |b: &mut Builder, i: i64| {
                let i = b.const_i64(i * i64::from(lanes));
                let at = b.add(base, i);
                b.load(turned, &[at], lanes)
            };
            let keys: Vec<Value> = (0..vectors).map(|i| load(b, i)).collect();
            let mut sums = sums.into_iter();
            let mut out = Vec::new();
            for q in &queries {
                let at = b.add(*q, k);
                let q = b.load(self.query, &[at], 1);
                let q = b.splat(q, lanes);
                out.extend(keys.iter().zip(&mut sums).map(|(key, sum)| b.fma(q, *key, sum)));
            }
            out
        };
        let init = vec![none; queries.len() * vectors as usize];
        let sums = b.for_loop(zero, columns, UNROLL, LoopKind::Serial, &init, |b, k, sums| {
            (0..UNROLL).fold(sums.to_vec(), |sums, i| {
                let i = b.const_i64(i);
                let k = b.add(k, i);
                column(b, k, sums)
            })
        });
        for (row, sums) in rows.iter().zip(sums.chunks(vectors as usize)) {
            for (i, sum) in sums.iter().enumerate() {
                let at = self.score_at(b, *row, zero, i as i64 * i64::from(lanes));
                b.store(self.scores, &[at], *sum);
            }
        }
    }
}
