//! Tensors that a checkpoint does not hold as they are wanted: taken apart, put in another order, decoded or rounded
//! while they are written. Nothing is kept: a recipe reads its rows from the mapped files, a few at a time.

use super::Store;
use super::blocks::{BlockFormat, Unpacked};
use super::packed::Plane;
use super::rounding::WeightOnly;
use hadal_ir::tensor::Tensor;
use hadal_types::DType;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Elements made at a time.
const CHUNK: usize = 1 << 16;

/// Elements that a core rounds at once.
const PART: usize = 1 << 20;

/// A matrix in a file, whose rows can be read.
#[derive(Clone, PartialEq, Debug)]
pub struct Matrix {
    /// The file, by its number.
    pub file: usize,
    /// Its bytes there: exactly those that `layout`, `rows` and `columns` need.
    pub range: Range<usize>,
    /// How elements are stored.
    pub layout: Layout,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Which stored row is which.
    pub order: Order,
}

/// How the elements of a row are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// One after the other.
    Plain(DType),
    /// In blocks.
    Blocks(BlockFormat),
}

/// The order of rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// As stored.
    Kept,
    /// Of each head of so many rows, even ones first: pairs that turn together are stored as neighbours, and wanted
    /// half a head apart.
    EvenFirst(usize),
}

impl Order {
    fn stored(self, row: usize) -> usize {
        match self {
            Order::Kept => row,
            Order::EvenFirst(head) => {
                let (start, at) = (row / head * head, row % head);
                start + at % (head / 2) * 2 + at / (head / 2)
            }
        }
    }
}

impl Layout {
    /// Bytes of a row, if it is a whole number of them.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        match self {
            Layout::Plain(d) => {
                let bits = (columns as u64).checked_mul(d.bits())?;
                usize::try_from(bits / 8).ok().filter(|_| bits.is_multiple_of(8))
            }
            Layout::Blocks(f) => {
                let shape = f.shape();
                columns.is_multiple_of(shape.elements).then_some(())?;
                (columns / shape.elements).checked_mul(shape.bytes)
            }
        }
    }
}

impl Matrix {
    fn row<'a>(&self, files: &'a [Store], row: usize) -> &'a [u8] {
        let bytes = &files[self.file].bytes[self.range.clone()];
        let size = bytes.len() / self.rows.max(1);
        &bytes[self.order.stored(row) * size..][..size]
    }

    /// Appends the elements of a row as reals.
    fn read(&self, files: &[Store], row: usize, out: &mut Vec<f32>) {
        let bytes = self.row(files, row);
        match self.layout {
            Layout::Blocks(format) => format.decode(bytes, out),
            Layout::Plain(DType::BF16) => {
                out.extend(bytes.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()));
            }
            Layout::Plain(DType::F32) => out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
            Layout::Plain(dtype) => {
                let row = Tensor::from_bytes(dtype, &[self.columns], bytes).expect("the size was checked");
                out.extend((0..self.columns).map(|i| row.at(i) as f32));
            }
        }
    }
}

/// A matrix of reals, with the scales that belong to it.
#[derive(Clone, PartialEq, Debug)]
pub struct Reals {
    /// The elements.
    pub matrix: Matrix,
    /// What blocks of so many rows and columns are multiplied with.
    pub scales: Option<(Matrix, [usize; 2])>,
}

impl Reals {
    fn read(&self, files: &[Store], row: usize, out: &mut Vec<f32>) {
        let start = out.len();
        self.matrix.read(files, row, out);
        if let Some((scales, [rows, columns])) = &self.scales {
            let mut by = Vec::with_capacity(scales.columns);
            scales.read(files, row / rows, &mut by);
            for (part, scale) in out[start..].chunks_mut(*columns).zip(by) {
                part.iter_mut().for_each(|x| *x *= scale);
            }
        }
    }
}

/// How a tensor is made.
#[derive(Clone, PartialEq, Debug)]
pub enum Recipe {
    /// The rows as they are stored.
    Rows(Matrix),
    /// The elements as f32.
    Values(Matrix),
    /// One divided by the elements, as f32.
    Inverse(Matrix),
    /// A plane of what is stored in blocks.
    Plane(Matrix, BlockFormat, Plane),
    /// Of each head, the rows of `[heads · rank, nope]` the other way round, then its rows of `[heads · value, rank]`;
    /// as f32.
    KeysAndValues {
        /// From latent rows to keys, `nope` columns of `rank` rows for each head.
        keys: Matrix,
        /// From latent rows to values.
        values: Matrix,
        /// Heads.
        heads: usize,
    },
    /// A plane of a matrix that is rounded to few bits, with scales that its other plane may have found already.
    Rounded(Reals, WeightOnly, Plane, KeptScales),
}

/// Scales of a rounded matrix from when the first of its planes was written until the second is: finding them is most
/// of the work, and they are far fewer than codes. Equal to any other, as they follow from what is rounded.
#[derive(Clone, Debug, Default)]
pub struct KeptScales(Arc<Mutex<Option<Vec<half::f16>>>>);

impl PartialEq for KeptScales {
    fn eq(&self, _: &KeptScales) -> bool {
        true
    }
}

impl KeptScales {
    fn slot(&self) -> MutexGuard<'_, Option<Vec<half::f16>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recipe {
    /// The bytes of rows from it, where messages say that it lies.
    pub fn source(&self) -> &Matrix {
        match self {
            Recipe::Rows(m) | Recipe::Values(m) | Recipe::Inverse(m) | Recipe::Plane(m, ..) => m,
            Recipe::KeysAndValues { keys, .. } => keys,
            Recipe::Rounded(reals, ..) => &reals.matrix,
        }
    }

    /// All that it reads.
    pub fn matrices(&mut self) -> impl Iterator<Item = &mut Matrix> {
        let (one, other) = match self {
            Recipe::Rows(m) | Recipe::Values(m) | Recipe::Inverse(m) | Recipe::Plane(m, ..) => (m, None),
            Recipe::KeysAndValues { keys, values, .. } => (keys, Some(values)),
            Recipe::Rounded(reals, ..) => (&mut reals.matrix, reals.scales.as_mut().map(|(m, _)| m)),
        };
        std::iter::once(one).chain(other)
    }

    /// Writes the tensor, little-endian and row-major.
    pub fn write(&self, files: &[Store], out: &mut dyn Write) -> io::Result<()> {
        match self {
            Recipe::Rows(m) => (0..m.rows).try_for_each(|row| out.write_all(m.row(files, row))),
            Recipe::Values(m) => in_chunks(m.rows, m.columns, out, |row, reals| m.read(files, row, reals)),
            Recipe::Inverse(m) => in_chunks(m.rows, m.columns, out, |row, reals| {
                let start = reals.len();
                m.read(files, row, reals);
                reals[start..].iter_mut().for_each(|x| *x = 1.0 / *x);
            }),
            Recipe::Plane(m, format, plane) => {
                let mut bytes = Vec::with_capacity(m.columns);
                (0..m.rows).try_for_each(|row| {
                    bytes.clear();
                    plane_of_row(*format, m.row(files, row), *plane, &mut bytes);
                    out.write_all(&bytes)
                })
            }
            Recipe::KeysAndValues { keys, values, heads } => {
                let (rank, value) = (keys.rows / heads, values.rows / heads);
                for head in 0..*heads {
                    let mut of_keys = Vec::with_capacity(rank * keys.columns);
                    (0..rank).for_each(|r| keys.read(files, head * rank + r, &mut of_keys));
                    in_chunks(keys.columns, rank, out, |row, reals| {
                        reals.extend((0..rank).map(|r| of_keys[r * keys.columns + row]));
                    })?;
                    in_chunks(value, rank, out, |row, reals| values.read(files, head * value + row, reals))?;
                }
                Ok(())
            }
            Recipe::Rounded(reals, to, plane, kept) => {
                let (rows, columns) = (reals.matrix.rows, reals.matrix.columns);
                let groups = columns.div_ceil(to.group);
                let (known, mut found) = (kept.slot().take(), Vec::new());
                if let (Plane::Scales, Some(known)) = (plane, &known) {
                    return out.write_all(&bytes_of(known));
                }
                let part = |rows: Range<usize>| -> io::Result<Rounded> {
                    let (mut reals_of_row, mut made) = (Vec::with_capacity(columns), Rounded::default());
                    for row in rows {
                        reals_of_row.clear();
                        reals.read(files, row, &mut reals_of_row);
                        let start = made.scales.len();
                        match &known {
                            Some(known) => made.scales.extend(&known[row * groups..][..groups]),
                            None => to.scales_of_row(&reals_of_row, &mut made.scales)?,
                        }
                        if *plane != Plane::Scales {
                            to.codes_of_row(&reals_of_row, &made.scales[start..], &mut made.codes);
                        }
                    }
                    Ok(made)
                };
                by_all_cores(rows, PART.div_ceil(columns.max(1)), &part, &mut |part| {
                    found.extend(&part.scales);
                    match plane {
                        Plane::Scales => out.write_all(&bytes_of(&part.scales)),
                        _ => out.write_all(&part.codes),
                    }
                })?;
                *kept.slot() = known.is_none().then_some(found);
                Ok(())
            }
        }
    }
}

fn bytes_of(scales: &[half::f16]) -> Vec<u8> {
    scales.iter().flat_map(|s| s.to_le_bytes()).collect()
}

/// Some rows of a rounded matrix.
#[derive(Default)]
struct Rounded {
    scales: Vec<half::f16>,
    codes: Vec<u8>,
}

/// Does something with what `part` makes of rows, so many at a time on each core, in their order. While it does, the
/// cores make the next ones.
fn by_all_cores<T: Send>(
    rows: usize,
    step: usize,
    part: &(impl Fn(Range<usize>) -> io::Result<T> + Sync),
    then: &mut dyn FnMut(T) -> io::Result<()>,
) -> io::Result<()> {
    let parts = rows.div_ceil(step);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get()).min(parts);
    std::thread::scope(|scope| {
        let work = |core: usize| {
            let (sender, receiver) = sync_channel(1);
            scope.spawn(move || {
                let own = (core..parts).step_by(cores).map(|i| i * step..rows.min((i + 1) * step));
                // Nobody listens any more where one has failed.
                own.map(part).try_for_each(|made| sender.send(made)).ok()
            });
            receiver
        };
        let made: Vec<_> = (0..cores).map(work).collect();
        (0..parts).try_for_each(|i| then(made[i % cores].recv().expect("parts return their errors")?))
    })
}

/// Writes rows of f32 that `read` appends, some at a time.
fn in_chunks(
    rows: usize,
    columns: usize,
    out: &mut dyn Write,
    mut read: impl FnMut(usize, &mut Vec<f32>),
) -> io::Result<()> {
    let most = CHUNK.max(columns);
    let (mut reals, mut bytes) = (Vec::new(), Vec::new());
    for row in 0..rows {
        read(row, &mut reals);
        if reals.len() + columns > most || row + 1 == rows {
            bytes.clear();
            bytes.extend(reals.drain(..).flat_map(f32::to_le_bytes));
            out.write_all(&bytes)?;
        }
    }
    Ok(())
}

/// Appends what a row of blocks has in a plane.
fn plane_of_row(format: BlockFormat, row: &[u8], plane: Plane, out: &mut Vec<u8>) {
    let shape = format.shape();
    let mut unpacked = Unpacked::default();
    for block in row.chunks_exact(shape.bytes) {
        format.unpack(block, &mut unpacked);
        let groups = shape.elements / shape.group;
        let whole = |bytes: [u8; 2]| bytes.into_iter().take(shape.scale.bits() as usize / 8);
        let small = |of: &[i8]| of[..groups].iter().map(|s| *s as u8).collect::<Vec<u8>>();
        match (plane, shape.inner.is_some()) {
            (Plane::Codes, _) => push_codes(shape.codes, &unpacked.codes[..shape.elements], out),
            (Plane::Scales, true) => out.extend(small(&unpacked.scales)),
            (Plane::Offsets, true) => out.extend(small(&unpacked.offsets)),
            (Plane::Scales, false) | (Plane::ScalesOver, _) => out.extend(whole(unpacked.scale)),
            (Plane::Offsets, false) | (Plane::OffsetsOver, _) => out.extend(unpacked.offset),
        }
    }
}

/// Appends codes as they are stored: two a byte where they have four bits.
pub(super) fn push_codes(dtype: DType, codes: &[i8], out: &mut Vec<u8>) {
    match dtype.is_packed() {
        true => out.extend(codes.chunks(2).map(|c| (c[0] & 15) as u8 | (c.get(1).unwrap_or(&0) << 4) as u8)),
        false => out.extend(codes.iter().map(|c| *c as u8)),
    }
}
