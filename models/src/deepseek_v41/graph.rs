//! The DeepSeek-V4.1 graph (sheet `deepseek-v41`, "Forward pass").
//!
//! ```text
//! h = E[tokens] in every stream;   p = (1, 0, …)
//! h = h + memory(h)                                                    in few layers
//! (p', post, comb) = mixes(h);   h = post attention(norm(p h)) + comb h
//! (p, post, comb) = mixes(h);    h = post experts(norm(p' h)) + comb h
//! logits = norm(p h) Wᵀ
//! ```
//!
//! What the streams are joined by at a site was computed at the site before it. All this is the frame of
//! [`streams`](crate::blocks::streams); what layers attend to beside their windows is in `attention`.

use super::config::Config;
use crate::blocks::Block;
use crate::blocks::assembly::{Architecture, Assembly, Frame, Named};
use crate::blocks::selection::{Blocks, Compressed};
use crate::blocks::shared_kv::Set;
use crate::blocks::sharing::Candidates;
use crate::blocks::streams::{Body, Place, Streamed, Trunk};
use crate::ngram::Hashing;
use hadal_ir::builder::BuildError;
use hadal_ir::module::ValueId;
use hadal_types::{DType, Dim};

impl Architecture for Config {
    fn frame(&self) -> &Frame {
        &self.trunk.frame
    }

    fn passed_over(&self) -> &'static [&'static str] {
        // The image tower, and the bias of the experts of images.
        &["vision.*", "aligner.*", "image_*", "*.gate.bias_vl"]
    }

    fn hashing(&self) -> Option<&Hashing> {
        self.trunk.memory.as_ref().map(|m| &m.hashing)
    }

    fn assemble(&self, a: &mut Assembly<'_>) -> Result<(), Box<BuildError>> {
        Body::new(self, a)?.entries(a)
    }
}

impl Streamed for Config {
    fn trunk(&self) -> &Trunk {
        &self.trunk
    }

    fn kind(&self, layer: usize) -> String {
        let part = match self.shared[layer] {
            Some(s) if s.rows == layer => "source",
            Some(s) if s.selection == layer => "selecting",
            _ => "reading",
        };
        format!("{part}_layer_by_{}", self.trunk.ratios[layer])
    }

    fn far(&self, a: &mut Assembly<'_>, f: &mut Block<'_>, at: Place<'_>, x: ValueId, latent: ValueId) -> Set {
        let shared = self.shared[at.layer].expect("layers with compressed rows share some");
        let blocks = self.candidates(a, at.layer, at.rows);
        self.compressed(f, at, shared, blocks, x, latent)
    }

    /// Which rows a layer selects (`kept_l`), and the rows of the blocks that it chooses (`candidates`).
    fn show(&self, a: &mut Assembly<'_>, f: &mut Block<'_>, layer: usize, named: &Named) {
        let Some((shared, rows)) = self.shared[layer].zip(self.trunk.rows(a, layer)) else { return };
        let bytes = |f: &mut Block<'_>, name: &str, seen: ValueId| {
            let seen = f.cast(seen, DType::U8);
            f.result(name, seen);
        };
        if shared.selection == layer {
            let kept = f.member(named["selection"], rows.counter.all());
            bytes(f, &format!("kept_{layer}"), kept);
        }
        if let (Candidates::Chosen, Some((blocks, count))) = (shared.candidates, self.candidates(a, layer, rows)) {
            let chosen = blocks.rows(f, named["candidates"], &count, rows);
            bytes(f, "candidates", chosen);
        }
    }
}

impl Config {
    /// The candidate blocks that `rows` make, and how many they are, where `layer` chooses some or keeps to some.
    fn candidates(&self, a: &mut Assembly<'_>, layer: usize, rows: Compressed) -> Option<(Blocks, Dim)> {
        let shared = self.shared[layer].filter(|s| s.candidates != Candidates::Apart);
        let blocks = shared.and(self.blocks)?;
        Some((blocks, blocks.count(&mut a.module, rows)))
    }
}
