//! Weights of few bits: codes with scales for groups of a row, as tensors of their own.
//!
//! A stored weight `NAME` that is packed can be read in two ways: as one tensor of reals under its own name, or as its
//! *planes*, which a graph dequantises: `NAME.codes`, `NAME.scales`, perhaps `NAME.offsets`; and where scales or
//! offsets are scaled themselves, `NAME.scales.scales`.

use hadal_types::DType;

/// How a weight `[…, rows, columns]` is packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packed {
    /// Format of the codes.
    pub codes: DType,
    /// Columns that share a scale.
    pub group: usize,
    /// The scales, `[…, rows, columns / group]`.
    pub scales: Level,
    /// What is added, of the same shape.
    pub offsets: Option<Level>,
}

/// Scales or offsets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Level {
    /// Their format.
    pub dtype: DType,
    /// What they are multiplied with.
    pub over: Option<Over>,
}

/// Scales of scales.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Over {
    /// Their format.
    pub dtype: DType,
    /// Rows and columns of scales that share one.
    pub block: [usize; 2],
}

/// One of the tensors that a packed weight is made of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Plane {
    /// One for each element.
    Codes,
    /// One for each group.
    Scales,
    /// What multiplies scales.
    ScalesOver,
    /// One for each group.
    Offsets,
    /// What multiplies offsets.
    OffsetsOver,
}

impl Plane {
    /// What follows the weight's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Plane::Codes => ".codes",
            Plane::Scales => ".scales",
            Plane::ScalesOver => ".scales.scales",
            Plane::Offsets => ".offsets",
            Plane::OffsetsOver => ".offsets.scales",
        }
    }
}

impl Packed {
    /// Its planes with their formats, and their shapes for a weight of `rows` and `columns`.
    pub fn planes(&self, [rows, columns]: [usize; 2]) -> Vec<(Plane, DType, [usize; 2])> {
        let groups = [rows, columns.div_ceil(self.group)];
        let mut out = vec![(Plane::Codes, self.codes, [rows, columns])];
        let levels =
            [(Some(self.scales), Plane::Scales, Plane::ScalesOver), (self.offsets, Plane::Offsets, Plane::OffsetsOver)];
        for (level, plane, over) in levels {
            let Some(level) = level else { continue };
            out.push((plane, level.dtype, groups));
            if let Some(o) = level.over {
                out.push((over, o.dtype, [groups[0].div_ceil(o.block[0]), groups[1].div_ceil(o.block[1])]));
            }
        }
        out
    }
}
