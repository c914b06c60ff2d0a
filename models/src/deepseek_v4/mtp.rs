//! Multi-token prediction from streams (sheet `deepseek-v4`, "MTP"): row `i` joins the streams of token `i` with the
//! embedding of token `i + 1`, passes one more layer, and predicts token `i + 2`.
//!
//! ```text
//! x_j = e_proj enorm(E[t]) + h_proj hnorm(h_j)
//! ```

use super::config::Config;
use crate::blocks::assembly::{Assembly, Built, Named, Rows};
use crate::blocks::mhc::Streams;
use crate::blocks::streams::layer;

impl Config {
    /// The function of one depth. With `rows` of the last one alone it also gives the streams that the next draft goes
    /// on from, in the place of the main model's; without any it only keeps what it has seen.
    pub(super) fn mtp(&self, a: &mut Assembly<'_>, name: &str, depth: usize, rows: Option<Rows>) -> Built {
        let t = &self.trunk;
        let (n, d, eps) = (t.hyper.streams, t.frame.hidden, t.frame.eps);
        let number = t.frame.layers + depth;
        let (func, prefix) = (layer(self, a, number)?, t.prefix(number));
        let mut f = a.block(name, "");
        let tokens = f.tokens();
        let hidden = f.rows("hidden", &[n, d]);
        // The releases leave the layer's copies of embedding and head out; some conversions have them.
        let copy = |part: &str, main: &str| match format!("{prefix}{part}") {
            own if a.formats.oracle.dtype(&format!("{own}.weight")).is_some() => own,
            _ => main.to_owned(),
        };
        let e = f.embed(&copy("emb.tok_emb", "embed"), tokens, [t.frame.vocab, d]);
        let e = f.norm(e, &format!("{prefix}enorm"), eps);
        let e = f.linear(e, &format!("{prefix}e_proj"), d, false);
        let h = f.norm(hidden, &format!("{prefix}hnorm"), eps);
        let shape = f.shape(h).to_vec();
        let h = f.reshape(h, &[shape[0].clone() * n as i64, d.into()]);
        let h = f.linear(h, &format!("{prefix}h_proj"), d, false);
        let h = f.reshape(h, &shape);
        let e = f.broadcast(e, &shape, &[0, 2]);
        let x = f.add(e, h);
        let head = copy("head", "head");
        let mut named = Named::from([("tokens".into(), tokens), ("streams".into(), x)]);
        t.turns(a, &mut f, [number], &mut named);
        f.call_named(&func, &prefix, &mut named);
        let Some(rows) = rows else { return a.add(f) };
        let x = Streams::named(&named);
        let x = if rows == Rows::Last { x.last_row(&mut f) } else { x };
        let y = t.hyper.joined(&mut f, &prefix, x);
        let logits = t.logits(&mut f, y, &format!("{prefix}norm"), &head);
        f.result("logits", logits);
        if rows == Rows::Last {
            f.result("next", x.all);
        }
        a.add(f)
    }
}
