//! Well-formedness.
