//! What `hadal report` and plots are drawn with, and the report itself.

pub mod chart;
pub mod curves;
pub mod facts;
pub mod graph;
pub mod json;
pub mod layout;
pub mod page;
pub mod sections;
pub mod svg;
