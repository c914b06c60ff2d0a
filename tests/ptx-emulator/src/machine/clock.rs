//! Who knows what: vector clocks of threads and of asynchronous operations.
//!
//! Every thread of a cluster is a component, and so is everything that completes by itself: a barrier object, the
//! copies and products of a thread or warpgroup. Threads of other clusters are kept apart, as they are rarely heard
//! of. Each clock exists three times: for what is known at all, and for what also passed a proxy fence of shared or
//! of global memory. Lanes that know the same share it, so a barrier of a thousand threads makes one new clock.

use std::collections::BTreeMap;
use std::rc::Rc;

/// A component of a cluster's clocks.
pub(crate) type Component = u32;

/// What must lie between two accesses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Level {
    Known = 0,
    FencedShared = 1,
    FencedGlobal = 2,
}

pub(crate) const LEVELS: usize = 3;

/// A vector clock.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Vector {
    local: Vec<u32>,
    foreign: BTreeMap<u32, Vec<u32>>,
}

fn join(a: &mut Vec<u32>, b: &[u32]) {
    if a.len() < b.len() {
        a.resize(b.len(), 0);
    }
    for (x, y) in a.iter_mut().zip(b) {
        *x = (*x).max(*y);
    }
}

impl Vector {
    /// Up to when a component is known.
    pub(crate) fn at(&self, own: u32, cluster: u32, component: Component) -> u32 {
        let times = if cluster == own { Some(&self.local) } else { self.foreign.get(&cluster) };
        times.and_then(|t| t.get(component as usize)).copied().unwrap_or(0)
    }

    pub(crate) fn raise(&mut self, component: Component, time: u32) {
        let index = component as usize;
        if self.local.len() <= index {
            self.local.resize(index + 1, 0);
        }
        self.local[index] = self.local[index].max(time);
    }

    pub(crate) fn join(&mut self, other: &Vector) {
        join(&mut self.local, &other.local);
        for (cluster, times) in &other.foreign {
            join(self.foreign.entry(*cluster).or_default(), times);
        }
    }

    /// Joins what another cluster knows.
    fn join_foreign(&mut self, own: u32, cluster: u32, other: &Vector) {
        if own == cluster {
            self.join(other);
            return;
        }
        join(self.foreign.entry(cluster).or_default(), &other.local);
        for (third, times) in &other.foreign {
            if *third == own {
                join(&mut self.local, times);
            } else {
                join(self.foreign.entry(*third).or_default(), times);
            }
        }
    }
}

/// What was released to an object that others acquire.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock {
    /// The cluster whose components `local` holds.
    pub cluster: u32,
    levels: [Vector; LEVELS],
}

impl Clock {
    pub(crate) fn new(cluster: u32) -> Clock {
        Clock { cluster, levels: Default::default() }
    }

    pub(crate) fn share(self) -> Shared {
        Shared(self.levels.map(Rc::new))
    }

    pub(crate) fn join(&mut self, other: &Clock) {
        for (mine, theirs) in self.levels.iter_mut().zip(&other.levels) {
            mine.join_foreign(self.cluster, other.cluster, theirs);
        }
    }

    /// Something that completed by itself is known, as an ordinary write.
    pub(crate) fn raise_known(&mut self, component: Component, time: u32) {
        self.levels[0].raise(component, time);
    }

    /// Something that completed by itself is known, and visible to every proxy.
    pub(crate) fn raise(&mut self, component: Component, time: u32) {
        for level in &mut self.levels {
            level.raise(component, time);
        }
    }
}

/// What a barrier released, for all who met there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared([Rc<Vector>; LEVELS]);

/// What one lane knows of others.
#[derive(Clone, Debug)]
pub(crate) struct View {
    levels: [Rc<Vector>; LEVELS],
    /// Up to when its own writes passed a proxy fence, of shared and of global memory.
    own: [u32; 2],
}

impl View {
    pub(crate) fn new() -> View {
        let nothing = Rc::new(Vector::default());
        View { levels: [nothing.clone(), nothing.clone(), nothing], own: [0; 2] }
    }
}

/// The views of a warp's lanes, and its time.
#[derive(Clone, Debug)]
pub(crate) struct Views {
    pub cluster: u32,
    /// The component of lane 0.
    pub first: Component,
    /// The time of all lanes; it moves on when one of them releases.
    pub now: u32,
    lanes: Vec<View>,
}

fn lanes_of(mask: u32) -> impl Iterator<Item = u32> {
    (0..32).filter(move |l| mask >> l & 1 == 1)
}

impl Views {
    pub(crate) fn new(cluster: u32, first: Component) -> Views {
        Views { cluster, first, now: 1, lanes: vec![View::new(); 32] }
    }

    /// Whether an event of a component is before everything that a lane does now.
    pub(crate) fn knows(&self, lane: u32, level: Level, cluster: u32, component: Component, time: u32) -> bool {
        let view = &self.lanes[lane as usize];
        if cluster == self.cluster && component == self.first + lane {
            return match level {
                Level::Known => true,
                Level::FencedShared => time <= view.own[0],
                Level::FencedGlobal => time <= view.own[1],
            };
        }
        view.levels[level as usize].at(self.cluster, cluster, component) >= time
    }

    /// Lanes that know different things, one of each kind.
    pub(crate) fn distinct(&self) -> Vec<usize> {
        let mut found: Vec<usize> = Vec::new();
        for (lane, view) in self.lanes.iter().enumerate() {
            let same = |other: &usize| {
                let other = &self.lanes[*other];
                view.levels.iter().zip(&other.levels).all(|(a, b)| Rc::ptr_eq(a, b))
            };
            if !found.iter().any(same) {
                found.push(lane);
            }
        }
        found
    }

    /// Adds what some lanes know to a clock.
    pub(crate) fn release(&mut self, mask: u32, clock: &mut Clock) {
        for level in 0..LEVELS {
            let mut seen: Option<&Rc<Vector>> = None;
            for lane in lanes_of(mask) {
                let view = &self.lanes[lane as usize];
                let vector = &view.levels[level];
                if !seen.is_some_and(|s| Rc::ptr_eq(s, vector)) {
                    clock.levels[level].join_foreign(clock.cluster, self.cluster, vector);
                    seen = Some(vector);
                }
            }
        }
        if clock.cluster == self.cluster {
            self.raise_own(mask, &mut clock.levels);
        } else {
            let mut own: [Vector; LEVELS] = Default::default();
            self.raise_own(mask, &mut own);
            for (into, from) in clock.levels.iter_mut().zip(&own) {
                into.join_foreign(clock.cluster, self.cluster, from);
            }
        }
        self.now += 1;
    }

    /// The times of some lanes themselves.
    fn raise_own(&self, mask: u32, levels: &mut [Vector; LEVELS]) {
        for lane in lanes_of(mask) {
            let own = self.lanes[lane as usize].own;
            for (level, time) in [self.now, own[0], own[1]].into_iter().enumerate() {
                levels[level].raise(self.first + lane, time);
            }
        }
    }

    /// Adds what a lane knew at some time to a clock.
    pub(crate) fn release_view(&self, lane: u32, view: &View, time: u32, clock: &mut Clock) {
        for (level, own) in [time, view.own[0], view.own[1]].into_iter().enumerate() {
            let mut vector = (*view.levels[level]).clone();
            vector.raise(self.first + lane, own);
            clock.levels[level].join_foreign(clock.cluster, self.cluster, &vector);
        }
    }

    pub(crate) fn view(&self, lane: u32) -> View {
        self.lanes[lane as usize].clone()
    }

    /// Some lanes learn what a clock holds.
    pub(crate) fn acquire(&mut self, mask: u32, clock: &Clock) {
        for level in 0..LEVELS {
            // Lanes that shared a view share the new one.
            let mut made: Vec<(Rc<Vector>, Rc<Vector>)> = Vec::new();
            for lane in lanes_of(mask) {
                let old = self.lanes[lane as usize].levels[level].clone();
                let new = match made.iter().find(|(o, _)| Rc::ptr_eq(o, &old)) {
                    Some((_, new)) => new.clone(),
                    None => {
                        let mut joined = (*old).clone();
                        joined.join_foreign(self.cluster, clock.cluster, &clock.levels[level]);
                        let same = made.iter().find(|(_, n)| **n == joined).map(|(_, n)| n.clone());
                        let new = same.unwrap_or_else(|| Rc::new(joined));
                        made.push((old, new.clone()));
                        new
                    }
                };
                self.lanes[lane as usize].levels[level] = new;
            }
        }
    }

    /// Some lanes share what they know, as a barrier of a warp has it.
    pub(crate) fn meet(&mut self, mask: u32) {
        let mut clock = Clock::new(self.cluster);
        self.release(mask, &mut clock);
        self.settle(mask, &clock.share());
    }

    /// Some lanes know what a barrier of their cluster released, themselves among those that released to it.
    pub(crate) fn settle(&mut self, mask: u32, shared: &Shared) {
        for lane in lanes_of(mask) {
            self.lanes[lane as usize].levels.clone_from(&shared.0);
        }
    }

    /// Some lanes learn what a barrier released, and keep what else they learnt since they arrived.
    pub(crate) fn learn(&mut self, mask: u32, shared: &Shared) {
        let levels = [0, 1, 2].map(|level: usize| (*shared.0[level]).clone());
        self.acquire(mask, &Clock { cluster: self.cluster, levels });
    }

    /// A proxy fence: what some lanes know is in order for the asynchronous proxy too.
    pub(crate) fn fence(&mut self, mask: u32, shared: bool, global: bool) {
        for lane in lanes_of(mask) {
            let view = &mut self.lanes[lane as usize];
            for (level, wanted) in [(1, shared), (2, global)] {
                if wanted {
                    view.levels[level] = view.levels[0].clone();
                    view.own[level - 1] = self.now;
                }
            }
        }
        self.now += 1;
    }

    /// Some lanes learn that an asynchronous operation completed.
    pub(crate) fn completed(&mut self, mask: u32, component: Component, time: u32) {
        let mut clock = Clock::new(self.cluster);
        clock.raise(component, time);
        self.acquire(mask, &clock);
    }
}
