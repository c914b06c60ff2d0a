//! What `hadal report` and plots are drawn with, and the report itself.

pub mod chart;
pub mod curves;
pub mod page;
pub mod svg;
