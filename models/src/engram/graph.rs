//! The graph of the demonstration: embedding, equal streams, layers whose attention and experts are the identity, and
//! the first stream to the head, without a norm.
//!
//! Asked for what layers compute, the entry `logits` also gives what each table makes: `hash_I`, the numbers within the
//! heads' parts, and `engram_I`, what is added to the streams.

use super::Config;
use crate::blocks::assembly::{Architecture, Assembly, Frame, Rows};
use crate::blocks::engram::{Chosen, choose, mixed, ngrams};
use crate::ngram::Hashing;
use hadal_ir::builder::BuildError;
use hadal_ir::module::Func;
use hadal_types::Sym;

impl Architecture for Config {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn hashing(&self) -> Option<&Hashing> {
        Some(&self.hashing)
    }

    fn assemble(&self, a: &mut Assembly<'_>) -> Result<(), Box<BuildError>> {
        let primes = self.hashing.primes();
        let rows = primes.iter().map(|p| p.iter().sum::<u64>() as usize);
        let memories = rows.zip(&self.hashing.layers).map(|(of, l)| self.memory(a, *l, of));
        let memories = memories.collect::<Result<Vec<_>, _>>()?;
        let all = self.main(a, "main_all", &memories, Rows::All)?;
        let last = self.main(a, "main", &memories, Rows::Last)?;
        a.main_entries(&all, &last);
        Ok(())
    }
}

impl Config {
    /// The table of layer `l`: streams and rows to what is added to the streams.
    fn memory(&self, a: &mut Assembly<'_>, l: usize, of: usize) -> Result<Func, Box<BuildError>> {
        let mut f = a.block("engram", &prefix(l));
        let streams = f.rows("streams", &[self.streams, self.frame.hidden]);
        let chosen = Chosen::param(&mut f, "rows", &self.hashing, of);
        let y = f.within("engram", |f| mixed(f, &self.engram, streams, chosen));
        f.result("y", y);
        a.share(f)
    }

    fn main(&self, a: &mut Assembly<'_>, name: &str, memories: &[Func], rows: Rows) -> Result<Func, Box<BuildError>> {
        let (vocab, d) = (self.frame.vocab, self.frame.hidden);
        let mut f = a.block(name, "");
        let tokens = f.tokens();
        let ngrams = ngrams(&mut f, &self.hashing, vocab, tokens);
        let x = f.embed("embedding", tokens, [vocab, d]);
        let mut x = f.broadcast(x, &[Sym::T.into(), self.streams.into(), d.into()], &[0, 2]);
        let mut seen = Vec::new();
        for l in 0..self.frame.layers {
            if let Some(index) = self.hashing.layers.iter().position(|of| *of == l) {
                let chosen = choose(&mut f, &self.hashing, index, &ngrams);
                let y = f.call(&memories[index], &prefix(l), &[x, chosen.rows])[0];
                x = f.add(x, y);
                seen.push((l, chosen.hashes, y));
            }
            // Attention, then experts: x + x each.
            x = f.mul_scalar(x, 4.0);
        }
        if rows == Rows::Last {
            x = f.last_row(x);
        }
        let first = f.slice(x, 1, 0, 1, 1);
        let shape = [f.shape(first)[0].clone(), d.into()];
        let first = f.reshape(first, &shape);
        let logits = f.linear(first, "head", vocab, true);
        f.result("logits", logits);
        if rows == Rows::All && a.bounds.inner {
            for (l, hashes, y) in seen {
                f.result(&format!("hash_{l}"), hashes);
                f.result(&format!("engram_{l}"), y);
            }
        }
        a.add(f)
    }
}

fn prefix(layer: usize) -> String {
    format!("layers.{layer}.")
}
