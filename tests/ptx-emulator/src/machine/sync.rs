//! Barriers of blocks and clusters, fences, and what lanes of a warp exchange.

use super::Machine;
use super::clock::Clock;
use super::warp::{Outcome, Wait, Warp, lanes};
use crate::fault::{FaultKind, Run, trouble};
use crate::program::{AtomicOp, Bool, Op, Scope, ShuffleMode, Src, VoteMode};
use crate::types::sign_extend;

impl Machine<'_> {
    pub(super) fn synchronise(&mut self, warp: &mut Warp, op: &Op, active: u32, _group: usize) -> Run<Outcome> {
        match op {
            Op::Fence { scope } => self.fence(warp, *scope, active),
            Op::FenceAsync { shared, global } => warp.views.fence(active, *shared, *global),
            Op::FenceBarrierInit => {
                let cluster = warp.views.cluster;
                for barrier in self.blocks[warp.slot].mbarriers.values_mut() {
                    let lane = barrier.init.who.wrapping_sub(warp.views.first);
                    if barrier.init.cluster == cluster && lane < 32 && active >> lane & 1 == 1 {
                        barrier.fenced = true;
                    }
                }
                self.fence(warp, Scope::Cluster, active);
            }
            Op::ActiveMask { d } => warp.write(*d, active, &[u64::from(active); 32]),
            Op::Barrier { id, count, wait, aligned } => {
                if *aligned && let Some(outcome) = warp.together(active) {
                    return Ok(outcome);
                }
                return self.barrier(warp, (*id, *count), (*wait, *aligned), active, 0);
            }
            Op::BarrierReduce { id, count, a, negate, .. } => {
                if let Some(outcome) = warp.together(active) {
                    return Ok(outcome);
                }
                let votes = lanes(active).filter(|&l| (warp.lane(*a, l) & 1 == 1) != *negate).count();
                return self.barrier(warp, (*id, *count), (true, true), active, votes as u32);
            }
            Op::ClusterArrive { relaxed } => {
                if let Some(outcome) = warp.together(active) {
                    return Ok(outcome);
                }
                return self.cluster_arrive(warp, *relaxed, active);
            }
            Op::ClusterWait => {
                if let Some(outcome) = warp.together(active) {
                    return Ok(outcome);
                }
                let mut generation = None;
                for lane in lanes(active) {
                    let Some(arrived) = warp.cluster_arrived[lane].take() else {
                        return trouble(
                            FaultKind::Barrier,
                            1 << lane,
                            "a wait at the cluster's barrier without arrival",
                        );
                    };
                    generation = Some(arrived);
                }
                return Ok(Outcome::Wait(Wait::Cluster { generation: generation.unwrap_or(0) }));
            }
            Op::Shuffle { mask, .. }
            | Op::Vote { mask, .. }
            | Op::Match { mask, .. }
            | Op::Reduce { mask, .. }
            | Op::Elect { mask, .. }
            | Op::WarpSync { mask } => return self.exchange(warp, op, *mask, active),
            _ => {}
        }
        Ok(Outcome::Next)
    }

    fn barrier(
        &mut self,
        warp: &mut Warp,
        (id, count): (Src, Option<Src>),
        (wait, aligned): (bool, bool),
        active: u32,
        votes: u32,
    ) -> Run<Outcome> {
        let fault = |message: String| trouble(FaultKind::Barrier, active, message);
        let id = warp.uniform(id, active, "the number of the barrier")?;
        if id > 15 {
            return fault(format!("barrier {id} of 16"));
        }
        let expected = match count {
            Some(count) => {
                let count = warp.uniform(count, active, "the number of threads")? as u32;
                if count == 0 || !count.is_multiple_of(32) {
                    return fault(format!("a barrier of {count} threads, which is no multiple of 32"));
                }
                Some(count)
            }
            None => None,
        };
        let block = &mut self.blocks[warp.slot];
        let live = block.live_lanes;
        let barrier = &mut block.barriers[id as usize];
        if barrier.arrived > 0 && barrier.expected != expected {
            let shown = |n: Option<u32>| n.map_or("all".into(), |n| n.to_string());
            let message = format!(
                "barrier {id} waits for {} threads, this arrival for {}",
                shown(barrier.expected),
                shown(expected)
            );
            return fault(message);
        }
        barrier.expected = expected;
        // With a number, whole warps count, ended lanes too.
        barrier.arrived += if aligned && expected.is_some() { 32 } else { active.count_ones() };
        barrier.votes += votes;
        warp.views.release(active, &mut barrier.clock);
        let generation = barrier.generation;
        let total = expected.unwrap_or(live);
        if barrier.arrived > total {
            return fault(format!("{} threads at barrier {id} of {total}", barrier.arrived));
        }
        if barrier.arrived == total {
            barrier.complete();
        }
        Ok(if wait { Outcome::Wait(Wait::Barrier { id: id as u32, generation }) } else { Outcome::Next })
    }

    /// The result of a barrier that reduces, for the lanes that it frees.
    pub(super) fn barrier_result(&mut self, warp: &mut Warp, group: usize, id: u32) {
        let (pc, mask) = (warp.groups[group].pc, warp.groups[group].mask);
        let Op::BarrierReduce { d, mode, .. } = &self.program.insts[pc as usize].op else { return };
        let (votes, threads) = self.blocks[warp.slot].barriers[id as usize].counted;
        let value = match mode {
            None => votes,
            Some(Bool::And) => u32::from(votes == threads),
            Some(_) => u32::from(votes > 0),
        };
        warp.write(*d, mask, &[u64::from(value); 32]);
    }

    fn cluster_arrive(&mut self, warp: &mut Warp, relaxed: bool, active: u32) -> Run<Outcome> {
        let cluster = &mut self.clusters[self.blocks[warp.slot].cluster];
        let barrier = &mut cluster.barrier;
        for lane in lanes(active) {
            if warp.cluster_arrived[lane].replace(barrier.generation).is_some() {
                return trouble(
                    FaultKind::Barrier,
                    1 << lane,
                    "a second arrival at the cluster's barrier without a wait",
                );
            }
            if relaxed && let Some((view, time)) = &warp.sync[lane].fenced[Scope::Cluster as usize] {
                warp.views.release_view(lane as u32, view, *time, &mut barrier.clock);
            }
        }
        if !relaxed {
            warp.views.release(active, &mut barrier.clock);
        }
        barrier.arrived += active.count_ones();
        if barrier.arrived >= cluster.live_lanes {
            barrier.complete();
        }
        Ok(Outcome::Next)
    }

    /// Instructions that name the lanes that take part; others of the group may name others.
    fn exchange(&mut self, warp: &mut Warp, op: &Op, mask: Src, active: u32) -> Run<Outcome> {
        let masks = warp.read(mask);
        let mut left = active;
        while left != 0 {
            let first = left.trailing_zeros() as usize;
            let mask = masks[first] as u32;
            let named = lanes(left).filter(|&l| masks[l] as u32 == mask).fold(0, |m, l| m | 1u32 << l);
            if mask >> first & 1 == 0 {
                let message = format!("a lane that is not in its own mask {mask:#010x}");
                return trouble(FaultKind::Divergence, 1 << first, message);
            }
            if mask & !warp.live != 0 {
                let message = format!("the mask {mask:#010x} names lanes that ended");
                return trouble(FaultKind::Divergence, mask & !warp.live, message);
            }
            if named != mask {
                // The others are on their way, or this never ends.
                if named == active {
                    return Ok(Outcome::Retry(Wait::Lanes(mask)));
                }
                if mask & left & !named != 0 {
                    let message = format!("lanes that name each other give different masks, {mask:#010x} one of them");
                    return trouble(FaultKind::Divergence, mask & left & !named, message);
                }
                return Ok(Outcome::Retry(Wait::Lanes(mask)));
            }
            left &= !named;
        }
        let mut left = active;
        while left != 0 {
            let mask = masks[left.trailing_zeros() as usize] as u32;
            self.exchanged(warp, op, mask)?;
            left &= !mask;
        }
        Ok(Outcome::Next)
    }

    fn exchanged(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Run<()> {
        match op {
            Op::WarpSync { .. } => warp.views.meet(mask),
            Op::Shuffle { mode, d, p, s, .. } => return self.shuffle(warp, *mode, (*d, *p), s, mask),
            Op::Vote { mode, d, a, negate, .. } => {
                let votes =
                    lanes(mask).filter(|&l| (warp.lane(*a, l) & 1 == 1) != *negate).fold(0, |m, l| m | 1u32 << l);
                let value = match mode {
                    VoteMode::All => u32::from(votes == mask),
                    VoteMode::Any => u32::from(votes != 0),
                    VoteMode::Uniform => u32::from(votes == 0 || votes == mask),
                    VoteMode::Ballot => votes,
                };
                warp.write(*d, mask, &[u64::from(value); 32]);
            }
            Op::Match { all, d, p, a, .. } => {
                let values = warp.read(*a);
                let mut found = [0; 32];
                let mut equal = true;
                for lane in lanes(mask) {
                    let same = lanes(mask).filter(|&l| values[l] == values[lane]).fold(0, |m, l| m | 1u32 << l);
                    equal &= same == mask;
                    found[lane] = u64::from(same);
                }
                if *all {
                    found = [if equal { u64::from(mask) } else { 0 }; 32];
                }
                warp.write(*d, mask, &found);
                if let Some(p) = p {
                    warp.write(*p, mask, &[u64::from(equal); 32]);
                }
            }
            Op::Reduce { op, signed, d, a, .. } => {
                let values = warp.read(*a);
                let value = lanes(mask).map(|l| values[l]).reduce(|x, y| match op {
                    AtomicOp::Add => (x as u32).wrapping_add(y as u32).into(),
                    AtomicOp::And => x & y,
                    AtomicOp::Or => x | y,
                    AtomicOp::Xor => x ^ y,
                    op => {
                        let less = if *signed { sign_extend(x, 32) < sign_extend(y, 32) } else { x < y };
                        if less == (*op == AtomicOp::Min) { x } else { y }
                    }
                });
                warp.write(*d, mask, &[value.unwrap_or(0); 32]);
            }
            Op::Elect { d, p, .. } => {
                let leader = mask.trailing_zeros();
                if let Some(d) = d {
                    warp.write(*d, mask, &[u64::from(leader); 32]);
                }
                let mut values = [0; 32];
                values[leader as usize & 31] = 1;
                warp.write(*p, mask, &values);
            }
            _ => {}
        }
        Ok(())
    }

    fn shuffle(
        &mut self,
        warp: &mut Warp,
        mode: ShuffleMode,
        to: (u32, Option<u32>),
        s: &[Src; 3],
        mask: u32,
    ) -> Run<()> {
        let [a, b, c] = [warp.read(s[0]), warp.read(s[1]), warp.read(s[2])];
        let (mut values, mut inside) = ([0; 32], [0; 32]);
        for lane in lanes(mask) {
            let l = lane as u32;
            let (by, clamp, segment) = (b[lane] as u32 & 31, c[lane] as u32 & 31, c[lane] as u32 >> 8 & 31);
            let most = (l & segment) | (clamp & !segment);
            let least = l & segment;
            let (from, valid) = match mode {
                ShuffleMode::Up => (l.wrapping_sub(by), l as i32 - by as i32 >= most as i32),
                ShuffleMode::Down => (l + by, l + by <= most),
                ShuffleMode::Butterfly => (l ^ by, (l ^ by) <= most),
                ShuffleMode::Index => {
                    let from = least | (by & !segment);
                    (from, from <= most)
                }
            };
            let from = if valid { from & 31 } else { l };
            if mask >> from & 1 == 0 {
                let message = format!("a shuffle from lane {from}, which takes no part");
                return trouble(FaultKind::Divergence, 1 << lane, message);
            }
            values[lane] = a[from as usize];
            inside[lane] = u64::from(valid);
        }
        warp.write(to.0, mask, &values);
        if let Some(p) = to.1 {
            warp.write(p, mask, &inside);
        }
        Ok(())
    }

    /// A clock of this warp's cluster.
    pub(super) fn new_clock(&self, warp: &Warp) -> Clock {
        Clock::new(warp.views.cluster)
    }
}
