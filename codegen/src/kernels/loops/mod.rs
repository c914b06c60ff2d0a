//! The general loop generator: compiles every kernel function.
//!
//! The function is decomposed into primitives. Each result becomes a loop nest whose body computes one element from
//! the buffers (`nodes`); views are index arithmetic, elementwise operations are inlined, reductions are loops
//! inside. Values that would be computed again and again are held in scratch memory (`held`), each by a nest of its
//! own before those that read it. Leading axes shared by all results form the grid, as many as can be without doing
//! any reduction more than once; where no reduction is in the way, the next axis is cut into chunks so that a single
//! long row is shared by all workers. `lower` turns nests into kernel IR, eight elements at a time where memory is
//! read in order.
//!
//! Sums run in an order fixed by the kernel's text. Results do not depend on how the grid is cut.

mod held;
mod largest;
mod lower;
mod maps;
mod nodes;

use super::index::{Atom, Expr, Var};
use super::{Error, Generated, Target};
use hadal_ir::builder::decompose_func;
use hadal_ir::kernel::UnaryOp;
use hadal_ir::ops::{Op, Tier};
use hadal_ir::{Func, FuncKind, InstKind, ValueId};
use hadal_types::{DType, Dim};
use nodes::{Id, Node, Nodes, Part, Source, Wish};
use std::collections::{BTreeMap, BTreeSet};

/// What a nest fills.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dest {
    /// A result, by position.
    Result(usize),
    /// Scratch.
    Held(ValueId),
}

/// What a nest computes.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// One element, and where it goes.
    Element { index: Vec<Expr>, root: Id },
    /// The indices of the `k` largest of `n` elements, of which `root` is the one at `var`; they go to `index` and on.
    Largest { index: Vec<Expr>, root: Id, var: Var, n: Dim, k: i64 },
    /// Truth at `index` and on, for each value of `root` over `var` that is below `len`.
    Mark { index: Vec<Expr>, root: Id, var: Var, len: Dim },
}

/// Loops that fill a buffer, in parts.
pub(crate) struct Nest {
    dest: Dest,
    parts: Vec<Part<Work>>,
}

/// How the grid is laid over the results.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Grid {
    /// Leading axes that are grid dimensions.
    axes: usize,
    /// Elements of the next axis that one grid index takes; none where it takes all.
    chunk: Option<i64>,
}

/// One grid dimension.
pub(crate) struct GridDim {
    extent: Dim,
    /// The variable that stands for it; none for a single index.
    var: Option<Var>,
}

/// A result: what is computed and where its rows begin in the buffer.
struct Sink {
    value: ValueId,
    shape: Vec<Dim>,
    /// Rows of the buffer that stay as they are.
    skip: Dim,
}

/// A held value's buffer: the axes that vary while it is in use.
pub(crate) struct Scratch {
    kept: Vec<bool>,
    shape: Vec<Dim>,
}

/// A kernel as nests of loops.
pub(crate) struct Draft<'a> {
    func: &'a Func,
    nodes: Nodes<'a>,
    grid: Vec<GridDim>,
    /// Variables that end early in the last chunk, with what is left.
    limits: BTreeMap<Var, Expr>,
    nests: Vec<Nest>,
    scratch: BTreeMap<ValueId, Scratch>,
}

/// What to do about a draft.
enum Verdict {
    Good,
    /// This value is computed once per iteration of a loop it does not depend on.
    Hold(ValueId),
    /// This one cannot be held: its size is no affine form.
    Release(ValueId),
    /// A reduction is done by several grid indices, or joined tensors are told apart element by element.
    Coarser,
}

/// Simple operations a chunk should hold.
const CHUNK: i64 = 4096;

/// Compiles any kernel function.
pub fn emit(func: &Func, target: &Target) -> Result<Generated, Error> {
    let pure = func.weights.is_empty() && func.states.is_empty() && func.kind == FuncKind::Kernel;
    if !pure || func.insts.iter().any(|i| matches!(i.kind, InstKind::Call(_))) {
        return Err(Error::NotAKernel { func: func.name.clone() });
    }
    let func = &decompose_func(func, |_| true);
    for inst in &func.insts {
        if let InstKind::Op(op) = &inst.kind
            && op.tier() != Tier::Primitive
        {
            return Err(Error::NoPrimitives { func: func.name.clone(), op: op.mnemonic() });
        }
    }
    let sinks = sinks(func);
    let packed = packed(func, &sinks);
    let refused = || {
        let dtype = func.results.iter().map(|(_, v)| func.ty(*v).dtype).find(|d| d.is_packed());
        Error::PackedResult { func: func.name.clone(), dtype: dtype.unwrap_or(DType::U8) }
    };
    let mut grids = grids(func, &sinks);
    if let Some(rows) = packed.rank {
        // Two elements share a byte, so nothing cuts a row.
        grids.retain(|g| g.axes < rows && g.chunk.is_none());
    }
    for grid in &grids {
        let held = &mut held::held(func);
        held.extend(&packed.held);
        let mut released = BTreeSet::new();
        let grid = *grid;
        let coarsest = grid.axes == 0 && grid.chunk.is_none();
        loop {
            let draft = draft(func, held, &sinks, grid)?;
            match judge(&draft, held, &released, grid, coarsest)? {
                Verdict::Hold(v) => {
                    held.insert(v);
                }
                Verdict::Release(v) if packed.held.contains(&v) => return Err(refused()),
                Verdict::Release(v) => {
                    held.remove(&v);
                    released.insert(v);
                }
                Verdict::Coarser => break,
                Verdict::Good => {
                    let schedule = describe(&draft, grid);
                    let kernel = lower::lower(&draft, &sinks, target).ok_or_else(refused)?;
                    return Ok(Generated { kernel, generator: "loops", schedule });
                }
            }
        }
    }
    Err(Error::NotAKernel { func: func.name.clone() })
}

/// What results of packed elements ask for.
struct PackedResults {
    /// The least number of axes that one has.
    rank: Option<usize>,
    /// What they are converted from: rows of it are held, so that they are read in order and several elements are
    /// stored at once, however they are computed.
    held: BTreeSet<ValueId>,
}

fn packed(func: &Func, sinks: &[Sink]) -> PackedResults {
    let defs = func.definitions();
    let mut out = PackedResults { rank: None, held: BTreeSet::new() };
    for ((_, v), sink) in func.results.iter().zip(sinks).filter(|((_, v), _)| func.ty(*v).dtype.is_packed()) {
        let rank = func.ty(*v).rank();
        out.rank = Some(out.rank.map_or(rank, |r| r.min(rank)));
        let inst = defs[sink.value.index()].map(|i| &func.insts[i]);
        out.held.extend(match inst.map(|i| (&i.kind, &i.args[..])) {
            Some((InstKind::Op(Op::Cast(_)), [from])) if func.ty(sink.value).dtype.is_packed() => {
                defs[from.index()].map(|_| *from)
            }
            Some(_) if !func.ty(sink.value).dtype.is_packed() => Some(sink.value),
            _ => None,
        });
    }
    out
}

/// The results: of an append to a parameter, only the new rows. What is appended to something computed here is written
/// whole, as there are no old rows in memory.
fn sinks(func: &Func) -> Vec<Sink> {
    let defs = func.definitions();
    let sink = |v: &ValueId| {
        let inst = defs[v.index()].map(|i| &func.insts[i]);
        match inst.map(|i| (&i.kind, &i.args[..])) {
            Some((InstKind::Op(Op::Append(_)), [old, new])) if func.params.contains(old) => {
                Sink { value: *new, shape: func.ty(*new).shape.clone(), skip: func.ty(*old).shape[0].clone() }
            }
            _ => Sink { value: *v, shape: func.ty(*v).shape.clone(), skip: 0.into() },
        }
    };
    func.results.iter().map(|(_, v)| sink(v)).collect()
}

/// Grids to try, the best first; the last one always does.
fn grids(func: &Func, sinks: &[Sink]) -> Vec<Grid> {
    let common = |n: usize| sinks.iter().all(|s| s.shape.get(n).is_some() && s.shape[n] == sinks[0].shape[n]);
    let mut axes = 0;
    while !sinks.is_empty() && common(axes) {
        axes += 1;
    }
    // Elements that make up enough work, and what the axes inside hold.
    let enough = (CHUNK / work_per_element(func)).max(8);
    let inner = |n: usize| {
        let size = |d: &Dim| d.as_const().unwrap_or(i64::MAX).max(1);
        let product = |s: &Sink| s.shape[n..].iter().map(size).fold(1i64, i64::saturating_mul);
        sinks.iter().map(product).max().unwrap_or(1)
    };
    let mut cut = axes;
    while cut > 0 && inner(cut) < enough && sinks[0].shape[cut - 1].as_const().is_some() {
        cut -= 1;
    }
    let mut grids = Vec::new();
    if cut < axes
        && let Some(size) = sinks[0].shape[cut].as_const()
    {
        let chunk = chunk(size, (enough / inner(cut + 1)).max(1));
        if chunk < size {
            grids.push(Grid { axes: cut, chunk: Some(chunk) });
        }
    }
    grids.extend((0..=cut).rev().map(|axes| Grid { axes, chunk: None }));
    grids
}

/// A chunk of about `wish` elements of `size`: a divisor where there is one nearby.
fn chunk(size: i64, wish: i64) -> i64 {
    let fits = |c: &i64| size % c == 0 && (c % 8 == 0 || wish < 8);
    let divisor = (wish / 2..=wish.saturating_mul(2)).rev().filter(|c| *c > 0).find(fits);
    divisor.unwrap_or(if wish < 8 { wish.max(1) } else { wish / 8 * 8 })
}

/// The longest reduction behind one element, where symbols count as a few hundred.
fn work_per_element(func: &Func) -> i64 {
    let size = |d: &Dim| d.as_const().unwrap_or(256).max(1);
    let work = func.insts.iter().filter_map(|inst| match &inst.kind {
        InstKind::Op(Op::Reduce(op)) => {
            let shape = &func.ty(inst.args[0]).shape;
            Some(op.axes.iter().map(|a| size(&shape[*a])).fold(1i64, i64::saturating_mul))
        }
        InstKind::Op(Op::Contract(op)) => {
            let types: Vec<_> = inst.args.iter().map(|a| func.ty(*a).clone()).collect();
            let sizes = op.sizes(&types);
            Some(op.summed().chars().map(|c| size(sizes[&c])).fold(1i64, i64::saturating_mul))
        }
        _ => None,
    });
    work.max().unwrap_or(4).max(4)
}

/// The nests of a function for a grid and a choice of held values.
fn draft<'a>(func: &'a Func, held: &'a BTreeSet<ValueId>, sinks: &[Sink], grid: Grid) -> Result<Draft<'a>, Error> {
    let mut nodes = Nodes::new(func, held);
    let mut dims = Vec::new();
    let mut limits = BTreeMap::new();
    let mut lead = Vec::new();
    let mut dim = |nodes: &mut Nodes, extent: Dim| {
        let (index, var) = nodes.loop_over(extent.clone());
        nodes.fixed.extend(&var);
        dims.push(GridDim { extent, var: var.first().copied() });
        index
    };
    for n in 0..grid.axes {
        lead.push(dim(&mut nodes, sinks[0].shape[n].clone()));
    }
    let chunk = grid.chunk.map(|chunk| {
        let size = sinks[0].shape[grid.axes].as_const().unwrap_or(0);
        let start = dim(&mut nodes, (size.max(0) as u64).div_ceil(chunk as u64).into_dim());
        (chunk, size, start.checked_times(&chunk.into()).unwrap_or_default())
    });
    let mut nests = Vec::new();
    for (i, sink) in sinks.iter().enumerate() {
        let mut index = lead.clone();
        let mut vars = Vec::new();
        if let Some((chunk, size, start)) = &chunk {
            let (at, var) = nodes.loop_over((*chunk).into());
            if size % chunk != 0 {
                let left = start.checked_times(&Dim::from(-1i64)).unwrap_or_default().offset(&(*size).into());
                limits.extend(var.iter().map(|v| (*v, left.clone())));
                nodes.fixed.extend(&var);
            }
            index.push(start.plus(&at));
            vars.extend(var);
        }
        let (rest, more) = nodes.loops_over(&sink.shape[index.len()..]);
        index.extend(rest);
        vars.extend(more);
        let format = func.ty(func.results[i].1).dtype;
        let parts = nodes.nest(&index, vars, |nodes, at| {
            let root = nodes.eval(sink.value, at, None);
            Work::Element { root: nodes.stored(root, format), index: at.to_vec() }
        });
        nests.push(Nest { dest: Dest::Result(i), parts });
    }
    // What the nests so far read decides the next one; readers come before what they read.
    let mut scratch = BTreeMap::new();
    for inst in func.insts.iter().rev() {
        let v = inst.results[0];
        if !held.contains(&v) {
            continue;
        }
        let reads = reads(&nodes, &nests, v);
        let Some(first) = reads.first() else { continue };
        let pinned = |a: usize| {
            let same = reads.iter().all(|r| r[a] == first[a]);
            let fixed =
                nodes.index_deps(&first[a..=a]).iter().all(|v| nodes.fixed.contains(v) && !limits.contains_key(v));
            same && fixed && !has_data(&first[a])
        };
        let shape = &func.ty(v).shape;
        let kept: Vec<bool> = (0..shape.len()).map(|a| !pinned(a)).collect();
        let mut op = None;
        if let InstKind::Op(o) = &inst.kind {
            op = Some(o);
        }
        let mut index = first.clone();
        let mut vars = Vec::new();
        let inner = match op {
            Some(Op::TopK(_) | Op::Member(_)) => shape.len() - 1,
            _ => shape.len(),
        };
        for a in 0..inner {
            if kept[a] {
                let (at, var) = nodes.loop_over(shape[a].clone());
                index[a] = at;
                vars.extend(var);
            }
        }
        let parts = match op {
            Some(Op::TopK(top)) => {
                let n = &func.ty(inst.args[0]).shape[inner];
                let k = top.k as i64;
                index[inner] = Expr::default();
                let var = nodes.space.var(n.clone());
                nodes.nest(&index, vars, |nodes, at| {
                    let mut from = at.to_vec();
                    from[inner] = Expr::var(var);
                    let root = nodes.eval(inst.args[0], &from, None);
                    Work::Largest { index: at.to_vec(), root, var, n: n.clone(), k }
                })
            }
            Some(Op::Member(member)) => {
                // All false, then what occurs is marked: as many steps as positions and indices, not their product.
                let (mut fill, mut outer) = (index.clone(), vars.clone());
                let (at, position) = nodes.loop_over(member.len.clone());
                fill[inner] = at;
                outer.extend(position);
                let mut parts = nodes.nest(&fill, outer, |nodes, at| Work::Element {
                    root: nodes.number(0.0, DType::Bool),
                    index: at.to_vec(),
                });
                index[inner] = Expr::default();
                let var = nodes.space.var(func.ty(inst.args[0]).shape[inner].clone());
                parts.extend(nodes.nest(&index, vars, |nodes, at| {
                    let mut from = at.to_vec();
                    from[inner] = Expr::var(var);
                    let root = nodes.eval(inst.args[0], &from, None);
                    Work::Mark { index: at.to_vec(), root, var, len: member.len.clone() }
                }));
                parts
            }
            Some(Op::Constant(c)) => (0..c.values.len() as i64)
                .map(|i| {
                    let index = vec![Expr::from(Dim::from(i))];
                    Part { vars: vec![], built: Work::Element { root: nodes.define(v, &index, None), index } }
                })
                .collect(),
            _ => nodes
                .nest(&index, vars, |nodes, at| Work::Element { root: nodes.define(v, at, None), index: at.to_vec() }),
        };
        let mut kept = kept;
        if matches!(op, Some(Op::TopK(_) | Op::Member(_) | Op::Constant(_))) {
            *kept.last_mut().expect("selections and vectors have an axis") = true;
        }
        let shape = shape.iter().zip(&kept).filter(|(_, k)| **k).map(|(d, _)| d.clone()).collect();
        scratch.insert(v, Scratch { kept, shape });
        nests.push(Nest { dest: Dest::Held(v), parts });
    }
    nests.reverse();
    match nodes.error.take() {
        Some(error) => Err(error),
        None => Ok(Draft { func, nodes, grid: dims, limits, nests, scratch }),
    }
}

/// How a held value is read by the nests there are.
fn reads(nodes: &Nodes, nests: &[Nest], v: ValueId) -> Vec<Vec<Expr>> {
    let roots: Vec<Id> = nests.iter().flat_map(|n| &n.parts).map(|p| p.built.root()).collect();
    let reads = nodes.reachable(&roots).into_iter().filter_map(|id| match nodes.node(id) {
        Node::Load { from: Source::Held(h), index, .. } if *h == v => Some(index.clone()),
        _ => None,
    });
    reads.collect()
}

fn has_data(e: &Expr) -> bool {
    let mut found = false;
    e.visit(&mut |a| found |= matches!(a, Atom::Data(..)));
    found
}

impl Work {
    fn root(&self) -> Id {
        match self {
            Work::Element { root, .. } | Work::Largest { root, .. } | Work::Mark { root, .. } => *root,
        }
    }
}

/// A number of chunks as a size.
trait IntoDim {
    fn into_dim(self) -> Dim;
}

impl IntoDim for u64 {
    fn into_dim(self) -> Dim {
        Dim::from(i64::try_from(self).unwrap_or(i64::MAX))
    }
}

/// Whether a draft will do.
fn judge(
    draft: &Draft,
    held: &BTreeSet<ValueId>,
    released: &BTreeSet<ValueId>,
    grid: Grid,
    coarsest: bool,
) -> Result<Verdict, Error> {
    let nodes = &draft.nodes;
    for (v, scratch) in &draft.scratch {
        let symbolic = scratch.shape.iter().filter(|d| d.as_const().is_none()).count();
        if symbolic > 1 {
            let defined = draft.func.definitions()[v.index()].map(|i| &draft.func.insts[i].kind);
            return match defined {
                Some(InstKind::Op(Op::TopK(_) | Op::Member(_))) => {
                    Err(Error::Scratch { func: draft.func.name.clone(), shape: scratch.shape.clone() })
                }
                _ => Ok(Verdict::Release(*v)),
            };
        }
    }
    let grid_vars: BTreeSet<Var> = draft.grid.iter().filter_map(|d| d.var).collect();
    for part in draft.nests.iter().flat_map(|n| &n.parts) {
        if let Work::Largest { index, .. } | Work::Mark { index, .. } = &part.built
            && !nodes.index_deps(index).is_superset(&grid_vars)
        {
            return Ok(Verdict::Coarser);
        }
        let mut order: Vec<Var> = part.vars.clone();
        order.extend(match &part.built {
            Work::Largest { var, .. } | Work::Mark { var, .. } => Some(*var),
            Work::Element { .. } => None,
        });
        let mut bodies = vec![(part.built.root(), order)];
        while let Some((root, order)) = bodies.pop() {
            for id in nodes.reachable(&[root]) {
                let deps = nodes.deps(id);
                let dear = match nodes.node(id) {
                    Node::Reduce { vars, body, .. } => {
                        if !coarsest && !deps.is_superset(&grid_vars) {
                            return Ok(Verdict::Coarser);
                        }
                        let mut inner = order.clone();
                        inner.retain(|v| deps.contains(v));
                        inner.extend(vars);
                        bodies.push((*body, inner));
                        true
                    }
                    Node::Unary(op, _) => {
                        use UnaryOp::*;
                        matches!(op, Exp | Log | Sin | Cos | Tanh | Erf)
                    }
                    _ => false,
                };
                let last = order.iter().rposition(|v| deps.contains(v)).map_or(0, |p| p + 1);
                let again = order[..last].iter().any(|v| !deps.contains(v));
                let v = nodes.origin(id);
                if dear && again && !held.contains(&v) && !released.contains(&v) {
                    return Ok(Verdict::Hold(v));
                }
            }
        }
    }
    if coarsest {
        return Ok(Verdict::Good);
    }
    // Cuts that only the grid prevents.
    let fixed = |v: &Var| nodes.fixed.contains(v);
    if nodes.wishes.iter().any(|w| matches!(w, Wish::Break(v, _) if fixed(v))) {
        return Ok(Verdict::Coarser);
    }
    // A chunk would compute what is held for all of them.
    let whole = |v: &ValueId| !matches!(draft.func.ty(*v).shape.len(), 0);
    if grid.chunk.is_some() && draft.scratch.keys().any(whole) {
        return Ok(Verdict::Coarser);
    }
    Ok(Verdict::Good)
}

/// The schedule in words.
fn describe(draft: &Draft, grid: Grid) -> String {
    let mut text = format!("{} axes in the grid", grid.axes);
    if let Some(chunk) = grid.chunk {
        text += &format!(", the next in chunks of {chunk}");
    }
    let loops: usize = draft.nests.iter().map(|n| n.parts.len()).sum();
    text += &format!(", {loops} nests");
    if !draft.scratch.is_empty() {
        let held: Vec<String> = draft.scratch.iter().map(|(v, s)| format!("%{}{:?}", v.0, s.shape)).collect();
        text += &format!(", holding {}", held.join(" "));
    }
    text
}
