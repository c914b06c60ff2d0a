//! Where the lanes of a warp have to wait for each other.
//!
//! Lanes are not in step, and what one has written another may read only behind a barrier; nor may it overwrite what
//! another has yet to read. So a barrier stands before an access that meets another one of the same buffer, of which one
//! writes, since the last barrier, on any way there. Two meet not where each lane keeps to *its own* elements: of every
//! 32·n in a row the same n neighbours, or only the first lane acts, or it is known which lane has which element. Of two
//! grid indices only allocations meet: no two write what the other sees.

use super::multiples::Multiples;
use super::warp::WARP;
use hadal_ir::kernel::*;
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

/// The statements of a kernel before which a barrier has to stand, by their addresses.
pub(super) fn before(kernel: &Kernel, multiples: &Multiples) -> HashSet<*const Stmt> {
    let mut finder = Finder { kernel, multiples, found: HashSet::new() };
    // Behind the end of a grid index comes the beginning of the next one.
    let mut state = State::default();
    loop {
        let mut next = state.clone();
        finder.block(&kernel.body, &mut next);
        next.0.retain(|buf, _| matches!(buf, Buf::Alloc(_)));
        next.join(&state);
        if next == state {
            return finder.found;
        }
        state = next;
    }
}

/// How lanes have accessed a buffer.
#[derive(Clone, PartialEq, Eq)]
enum Way {
    /// Each its own elements, so many in a row.
    Own(u32),
    /// The first lane alone: stores of scalars.
    First,
    /// Elements of which each has one lane.
    Places(Rc<BTreeMap<i64, usize>>),
    /// Anyhow.
    Any,
}

impl Way {
    /// What covers both.
    fn with(&self, other: &Way) -> Way {
        match (self, other) {
            (a, b) if a == b => a.clone(),
            (Way::Places(a), Way::Places(b)) if b.iter().all(|(at, lane)| a.get(at).is_none_or(|l| l == lane)) => {
                Way::Places(Rc::new(a.iter().chain(&**b).map(|(at, lane)| (*at, *lane)).collect()))
            }
            _ => Way::Any,
        }
    }
}

/// What covers two, either of which there may not be.
fn cover(a: &Option<Way>, b: &Option<Way>) -> Option<Way> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.with(b)),
        (a, b) => a.as_ref().or(b.as_ref()).cloned(),
    }
}

/// Reads and writes of each buffer since the last barrier, on any way to here.
#[derive(Clone, Default, PartialEq)]
struct State(BTreeMap<Buf, (Option<Way>, Option<Way>)>);

impl State {
    fn join(&mut self, other: &State) {
        for (buf, (read, written)) in &other.0 {
            let mine = self.0.entry(*buf).or_default();
            *mine = (cover(&mine.0, read), cover(&mine.1, written));
        }
    }

    /// Whether an access meets one before.
    fn meets(&self, buf: Buf, way: &Way, write: bool) -> bool {
        let Some((read, written)) = self.0.get(&buf) else { return false };
        let other = |before: &Option<Way>| before.as_ref().is_some_and(|before| before.with(way) == Way::Any);
        other(written) || write && other(read)
    }

    fn add(&mut self, buf: Buf, way: Way, write: bool) {
        let (read, written) = self.0.entry(buf).or_default();
        let slot = if write { written } else { read };
        *slot = cover(slot, &Some(way));
    }
}

struct Finder<'a> {
    kernel: &'a Kernel,
    multiples: &'a Multiples,
    found: HashSet<*const Stmt>,
}

impl Finder<'_> {
    fn block(&mut self, block: &Block, state: &mut State) {
        for stmt in &block.stmts {
            match stmt {
                Stmt::Let(value, Op::Load { place, .. }) => {
                    self.access(stmt, place, self.kernel.ty(*value), false, state);
                }
                Stmt::Store { place, value, .. } => self.access(stmt, place, self.kernel.ty(*value), true, state),
                // Before and behind it all warps wait.
                Stmt::For(l) if l.kind == LoopKind::Warp => {
                    *state = State::default();
                    self.block(&l.body, state);
                    *state = State::default();
                }
                Stmt::For(l) => {
                    self.repeated(stmt, &l.body, state);
                }
                Stmt::If(c) => {
                    let mut other = state.clone();
                    self.block(&c.then, state);
                    self.block(&c.otherwise, &mut other);
                    state.join(&other);
                }
                _ => {}
            }
        }
    }

    /// A loop: where one barrier before it spares some inside, it stands there.
    fn repeated(&mut self, stmt: &Stmt, body: &Block, state: &mut State) {
        if self.found.contains(&std::ptr::from_ref(stmt)) {
            *state = State::default();
        }
        let known = self.found.clone();
        let mut after = state.clone();
        self.until_nothing_changes(body, &mut after);
        if self.found.len() > known.len() {
            let inside = std::mem::replace(&mut self.found, known);
            let mut waited = State::default();
            self.until_nothing_changes(body, &mut waited);
            if self.found.len() < inside.len() {
                self.found.insert(stmt);
                after = waited;
            } else {
                self.found = inside;
            }
        }
        *state = after;
    }

    fn until_nothing_changes(&mut self, body: &Block, state: &mut State) {
        loop {
            let mut next = state.clone();
            self.block(body, &mut next);
            next.join(state);
            if next == *state {
                return;
            }
            *state = next;
        }
    }

    fn access(&mut self, stmt: &Stmt, place: &Place, ty: ValueType, write: bool, state: &mut State) {
        if matches!(place.buf, Buf::Param(i) if self.kernel.params[i as usize].access == Access::Read) {
            return;
        }
        let way = if write && ty.lanes == 1 { Way::First } else { self.way(place, ty) };
        if state.meets(place.buf, &way, write) {
            self.found.insert(stmt);
        }
        if self.found.contains(&std::ptr::from_ref(stmt)) {
            *state = State::default();
        }
        state.add(place.buf, way, write);
    }

    /// Whose the elements of runs are, where it is known where these begin.
    fn places(&self, runs: Value, lanes: usize) -> Option<Way> {
        let starts = self.multiples.constants(runs)?;
        let (each, run) = (lanes / WARP, lanes / starts.len());
        let mut places = BTreeMap::new();
        for element in 0..lanes {
            let at = starts[element / run].checked_add((element % run) as i64)?;
            if *places.entry(at).or_insert(element / each) != element / each {
                return None;
            }
        }
        Some(Way::Places(Rc::new(places)))
    }

    fn way(&self, place: &Place, ty: ValueType) -> Way {
        let (_, dtype, _) = self.kernel.buffer(place.buf);
        if (ty.lanes as usize) < WARP || dtype.is_packed() {
            return Way::Any;
        }
        if let [runs] = place.index[..]
            && self.kernel.ty(runs).lanes > 1
        {
            return self.places(runs, ty.lanes as usize).unwrap_or(Way::Any);
        }
        if place.index.iter().any(|v| self.kernel.ty(*v).lanes > 1) {
            return Way::Any;
        }
        let whole = self.multiples.flat(self.kernel, place).is_multiple_of(ty.lanes.into());
        if whole { Way::Own(ty.lanes / WARP as u32) } else { Way::Any }
    }
}
