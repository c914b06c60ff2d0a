//! `config.json` of `NSAForCausalLM`: a dense decoder's keys, and the sizes of the three branches under `nsa`.

use crate::blocks::assembly::Frame;
use crate::blocks::attention::Attention;
use crate::blocks::rope::AttnFactor;
use crate::config_reader::Object;
use crate::error::Result;
use crate::llama;
use hadal_ir::module::Counter;
use hadal_types::{Definition, Dim, Sym};

/// A model with native sparse attention.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub(super) frame: Frame,
    /// Heads `H`, groups `G` and size `h` of a head, the same in every branch.
    pub(super) attention: Attention,
    pub(super) branches: Branches,
    pub(super) mlp_width: usize,
}

/// Sizes of the branches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Branches {
    /// Tokens `l` of a block that is compressed to one row.
    pub block: usize,
    /// Tokens `d` from one such block to the next.
    pub stride: usize,
    /// Features inside what compresses them.
    pub hidden: usize,
    /// Tokens `s` of a block that is selected.
    pub selected: usize,
    /// Blocks that a query selects.
    pub count: usize,
    /// Of those, always the first ones,
    pub initial: usize,
    /// and the newest ones, the query's own included.
    pub local: usize,
    /// Tokens that the window shows, the query's own included.
    pub window: usize,
}

/// Most tokens that a block, a stride or a selection may have: far more than a block that anything is gained by.
const MAX_BLOCK: usize = 1 << 14;

impl Config {
    /// Reads it strictly.
    pub fn read(o: &Object<'_>, attn_factor: AttnFactor) -> Result<Config> {
        let frame = Frame::read(o)?;
        for key in ["attention_bias", "mlp_bias"] {
            if o.bool_or(key, false)? {
                return Err(o.error(key, "false, as no such model was published"));
            }
        }
        let n = o.require_object("nsa")?;
        Ok(Config {
            attention: llama::attention(o, &frame, attn_factor, [false, false], None)?,
            branches: Branches {
                block: n.require_usize_in("compress_block", 1..=MAX_BLOCK)?,
                stride: n.require_usize_in("compress_stride", 1..=MAX_BLOCK)?,
                hidden: n.require_usize_in("compress_hidden", 1..=1 << 20)?,
                selected: n.require_usize_in("select_block", 1..=MAX_BLOCK)?,
                count: n.require_usize_in("select_count", 1..=1 << 20)?,
                initial: n.require_usize_in("select_initial", 0..=1 << 20)?,
                local: n.require_usize_in("select_local", 0..=1 << 20)?,
                window: n.require_usize_in("window", 1..=1 << 20)?,
            },
            mlp_width: o.require_usize_in("intermediate_size", 1..=1 << 20)?,
            frame,
        })
    }
}

impl Branches {
    /// Strides `m = ⌈l/d⌉` that a block reaches over.
    pub fn reach(&self) -> usize {
        self.block.div_ceil(self.stride)
    }

    /// Tokens by which a block ends before its last stride does.
    pub fn short(&self) -> usize {
        self.reach() * self.stride - self.block
    }

    /// Compressed rows held, and those that a call adds. Row `g` is that of the block that ends at token `(g+1) d -
    /// short`; the first `m - 1` rows would begin before the first token, and are of nothing.
    pub fn rows(&self) -> Counter {
        match self.stride {
            1 => Counter { held: Sym::P, new: Sym::T },
            d => Counter { held: symbol('C', d), new: symbol('N', d) },
        }
    }

    /// Blocks `⌈S/s⌉` to select from.
    pub fn blocks(&self) -> Dim {
        match self.selected {
            1 => Dim::from(Sym::P) + Sym::T,
            s => symbol('K', s).into(),
        }
    }

    /// How the symbols above follow from `P` and `T`.
    pub fn definitions(&self) -> Vec<(Sym, Definition)> {
        let mut out = Vec::new();
        if self.stride > 1 {
            let Counter { held, new } = self.rows();
            let of = Dim::from(Sym::P) + self.short();
            out.push((held, Definition::Quotient { of, by: self.stride as i64 }));
            out.push((new, Definition::Growth { of: held }));
        }
        if self.selected > 1 {
            let of = Dim::from(Sym::P) + Sym::T + (self.selected - 1);
            out.push((symbol('K', self.selected), Definition::Quotient { of, by: self.selected as i64 }));
        }
        out
    }
}

fn symbol(letter: char, n: usize) -> Sym {
    Sym::new(&format!("{letter}{n}")).expect("a letter and at most five digits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hadal_types::{Bindings, Definitions};

    /// Rows and blocks, counted one by one.
    #[test]
    fn rows_are_counted_for_any_block_and_stride() {
        for (block, stride, selected) in [(8, 4, 8), (4, 4, 4), (7, 3, 5), (3, 5, 10), (1, 1, 1), (16, 4, 6), (5, 7, 2)]
        {
            let b = Branches { block, stride, hidden: 1, selected, count: 1, initial: 0, local: 0, window: 1 };
            let definitions: Definitions = b.definitions().into_iter().collect();
            for (held, new) in (0..40).flat_map(|p| (1..20).map(move |t| (p, t))) {
                let at = definitions.complete(&Bindings::from([(Sym::P, held), (Sym::T, new)]));
                let ended = |s: i64| (0..).take_while(|i| i * stride as i64 + block as i64 <= s).count() as i64;
                // The first rows are of blocks that would begin before the first token.
                let rows = |s: i64| {
                    (-(b.reach() as i64 - 1)..0).filter(|i| i * stride as i64 + block as i64 <= s).count() as i64
                        + ended(s)
                };
                let Counter { held: before, new: more } = b.rows();
                assert_eq!(at[&before], rows(held), "{b:?} {held}");
                assert_eq!(at[&more], rows(held + new) - rows(held), "{b:?} {held} {new}");
                let blocks = b.blocks().eval(&at).unwrap();
                assert_eq!(blocks, (held + new + selected as i64 - 1) / selected as i64, "{b:?} {held} {new}");
            }
        }
    }
}
