//! The subcommands.

pub mod compile;
pub mod demo;
pub mod dump;
pub mod eval;
pub mod inspect;
pub mod opt;
pub mod run;
pub mod verify;
