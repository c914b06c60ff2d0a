//! Drafts of a block of tokens, compared row by row: the entries `draft_fill`, `draft` and `markov`.

use super::{Given, Run, argmax, floats, join, of};
use crate::failure::Failure;
use bytemuck::{bytes_of, cast_slice};
use hadal_ir::Tensor;
use hadal_types::DType;

impl Run<'_> {
    /// For every token of `greedy`, the draft that follows when it is the newest one.
    pub(super) fn drafts(&mut self, greedy: &[u32], rows: &Given) -> Result<(), Failure> {
        let mut session = self.session()?;
        let Some(block) = self.golden.tensor("dspark_ids").and_then(|t| t.shape.last().copied()) else { return Ok(()) };
        let (Ok(_), Some(hidden)) = (session.entry("draft"), of(rows, "hidden")) else { return Ok(()) };
        let hidden = floats(hidden);
        let (width, chunk) = (hidden.len() / self.ids.len(), self.chunk());
        for (ids, hidden) in self.ids.chunks(chunk).zip(hidden.chunks(chunk * width)) {
            self.call(&mut session, "draft_fill", ids.len(), &[cast_slice(hidden)])?;
            self.call(&mut session, "logits", ids.len(), &[cast_slice(ids)])?;
        }
        let mut ids = Vec::new();
        let (mut logits, mut confidence): (Option<Tensor>, Option<Tensor>) = (None, None);
        let keep = |all: &mut Option<Tensor>, part: &Tensor| match all {
            Some(all) => join(all, part.clone()),
            None => *all = Some(part.clone()),
        };
        for (k, newest) in greedy.iter().enumerate() {
            if k > 0 {
                let step = self.call(&mut session, "decode", 1, &[cast_slice(&greedy[k - 1..k])])?;
                let Some(hidden) = of(&step, "hidden") else { return Ok(()) };
                self.call(&mut session, "draft_fill", 1, &[cast_slice(&floats(hidden))])?;
            }
            let draft = self.call(&mut session, "draft", 1, &[bytes_of(newest)])?;
            let (Some(drafted), Some(states)) = (of(&draft, "logits"), of(&draft, "states")) else { return Ok(()) };
            let (drafted, states) = (floats(drafted), floats(states));
            let mut before = *newest;
            for (row, state) in drafted.chunks(drafted.len() / block).zip(states.chunks(states.len() / block)) {
                let inputs: [&[u8]; 3] = [bytes_of(&before), cast_slice(row), cast_slice(state)];
                let given = self.call(&mut session, "markov", 1, &inputs)?;
                let (Some(row), Some(sure)) = (of(&given, "logits"), of(&given, "confidence")) else { return Ok(()) };
                before = argmax(row.reals()) as u32;
                ids.push(i64::from(before));
                keep(&mut logits, row);
                keep(&mut confidence, sure);
            }
        }
        self.check("dspark_ids", &Tensor::int(DType::I64, &[greedy.len(), block], ids))?;
        if let Some(t) = logits {
            let shape = [greedy.len(), block, t.len() / (greedy.len() * block)];
            self.check("dspark_logits", &Tensor { shape: shape.to_vec(), ..t })?;
        }
        let confidence = confidence.map(|t| Tensor { shape: vec![greedy.len(), block], ..t });
        confidence.map_or(Ok(()), |t| self.check("dspark_confidence", &t))
    }
}
