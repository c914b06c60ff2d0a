//! DeepSeek-V4.1: few layers compress the text and select from it for all others, residual streams are mixed in one pass,
//! n-grams of the text are looked up in large tables, and blocks of tokens are drafted (sheet `deepseek-v41`).
//!
//! # Entries
//!
//! | entry | takes | gives |
//! |---|---|---|
//! | `logits` | `tokens` `i32 [T]` | `logits` `[T, V]`, `hidden` `[T, n d]` |
//! | `prefill` | `tokens` | `logits` `[1, V]` of the last one, `hidden` `[T, n d]` |
//! | `decode` | `tokens` of a step, `i32 [T]` | `logits` `[T, V]`, `hidden` `[T, n d]` |
//! | `draft_fill` | `hidden` `[T, n d]` | nothing; the draft stages' windows move on by `T` |
//! | `draft` | `tokens` `i32 [1]`: the newest one, which the main model has not seen yet | `logits` `[b, V]`, `states` `[b, d]` |
//! | `markov` | `tokens` `i32 [1]`; `drafted` `[1, V]` and `state` `[1, d]`, a row of what `draft` gave | `logits` `[1, V]`, `confidence` `[1, 1]` |
//!
//! `hidden` is there where the model has a draft head: what `n` of its layers are given, side by side. A draft of `b` tokens
//! follows `P` tokens that `draft_fill` has been given: `draft` says what it makes of the newest token and of the places
//! after it, all at once, and changes nothing. The tokens are then chosen one after the other: `markov` adds to row `i`
//! what the token before it (for row 0 the newest one) asks for, and says how sure the model is of the row.
//! Rejected tokens are taken back from the windows as from other states, by `truncate`.

mod attention;
mod config;
mod draft;
mod graph;
mod plan;

pub use config::Config;
pub(crate) use config::is_reference;
