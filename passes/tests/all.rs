//! All tests of this folder in one program: linked once, and no core waits for the last test of a file.

mod absorption;
mod batch;
mod common;
mod core_work;
mod coverage;
mod gap;
mod laws;
mod moe_fp8;
mod mutation;
mod panels;
mod parts;
mod pipeline;
mod plan;
mod random;
mod rules;
mod sparse;
mod subsets;
mod versions;
