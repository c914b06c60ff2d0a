//! The commands of a compiled file.
