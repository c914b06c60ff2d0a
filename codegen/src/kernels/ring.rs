//! Places in shared memory that some warps of a block fill with copies and others use, one after the other in a ring.
//!
//! A place is `full` when all that fill it have what they copied, and `empty` when all that use it are done with it. Each
//! warp goes through places in turn and knows by the parity of its rounds which of the two it waits for. What is copied
//! is announced when about half of the places are under way behind it.

use hadal_ir::kernel::{Buf, Builder, LoopKind, TeamOp, Value};

/// The barriers of a ring.
#[derive(Clone, Copy)]
pub struct Ring {
    full: Buf,
    empty: Buf,
    places: i64,
}

/// Where a warp is on its way through the places: which one, and how many rounds it has made.
#[derive(Clone, Copy)]
pub struct Turn {
    /// The place.
    pub place: Value,
    round: Value,
}

impl Turn {
    /// At the first place.
    pub fn start(b: &mut Builder) -> Turn {
        Turn { place: b.const_i64(0), round: b.const_i64(0) }
    }

    /// From values that a loop carries.
    pub fn of(values: &[Value]) -> Turn {
        Turn { place: values[0], round: values[1] }
    }

    /// Values for a loop to carry.
    pub fn values(self) -> [Value; 2] {
        [self.place, self.round]
    }
}

impl Ring {
    /// So many places, for so many warps that fill them, and that use them.
    pub fn new(b: &mut Builder, places: i64, fill: i64, using: i64) -> Ring {
        Ring { full: b.barriers("full", places, fill as u32), empty: b.barriers("empty", places, using as u32), places }
    }

    /// Waits until a place is full.
    pub fn wait(self, b: &mut Builder, turn: Turn) {
        b.wait(self.full, turn.place, turn.round);
    }

    /// Says that this warp is done with a place.
    pub fn free(self, b: &mut Builder, place: Value) {
        b.arrive(self.empty, place);
    }

    /// The next place.
    pub fn next(self, b: &mut Builder, turn: Turn) -> Turn {
        let (place, wraps) = self.after(b, turn.place);
        let one = b.const_i64(1);
        let more = b.add(turn.round, one);
        Turn { place, round: b.select(wraps, more, turn.round) }
    }

    fn after(self, b: &mut Builder, place: Value) -> (Value, Value) {
        let (zero, one, all) = (b.const_i64(0), b.const_i64(1), b.const_i64(self.places));
        let next = b.add(place, one);
        let wraps = b.eq(next, all);
        (b.select(wraps, zero, next), wraps)
    }

    /// How many groups of copies are under way before a place is said to be full.
    fn ahead(self) -> i64 {
        (self.places / 2).max(1)
    }

    /// What a warp that fills places carries from one to the next: its turn, which place is announced next, and how many
    /// places there have been.
    pub fn start(self, b: &mut Builder) -> Vec<Value> {
        let (turn, zero) = (Turn::start(b), b.const_i64(0));
        vec![turn.place, turn.round, zero, zero]
    }

    /// Waits until a place is empty and copies to it.
    pub fn fill(self, b: &mut Builder, at: &[Value], copy: impl FnOnce(&mut Builder, Value)) -> Vec<Value> {
        let (one, behind) = (b.const_i64(1), b.const_i64(self.ahead()));
        let turn = Turn::of(at);
        let before = b.add(turn.round, one);
        b.wait(self.empty, turn.place, before);
        copy(b, turn.place);
        b.team_op(TeamOp::Commit);
        let late = b.ge(at[3], behind);
        let announced = b.if_else(
            late,
            |b| {
                b.team_op(TeamOp::AwaitCopies(self.ahead() as u32));
                vec![self.announce(b, at[2])]
            },
            |_| vec![at[2]],
        );
        let next = self.next(b, turn);
        vec![next.place, next.round, announced[0], b.add(at[3], one)]
    }

    /// Announces the last places.
    pub fn finish(self, b: &mut Builder, at: &[Value]) {
        let (zero, behind) = (b.const_i64(0), b.const_i64(self.ahead()));
        b.team_op(TeamOp::AwaitCopies(0));
        let left = b.min(at[3], behind);
        b.for_loop(zero, left, 1, LoopKind::Serial, &[at[2]], |b, _, place| vec![self.announce(b, place[0])]);
    }

    /// Says that a place is full; gives the next one.
    fn announce(self, b: &mut Builder, place: Value) -> Value {
        b.team_op(TeamOp::FenceAsync);
        b.arrive(self.full, place);
        self.after(b, place).0
    }
}
