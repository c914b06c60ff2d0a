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
//!
//! `hidden` is there where the model has a draft head, whose entries are in [`drafts`](crate::blocks::drafts).

mod attention;
mod config;
mod graph;

pub use config::Config;
pub(crate) use config::is_reference;
