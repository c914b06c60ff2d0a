//! What a sequence keeps between calls.
//!
//! Each state counts the tokens it has seen. Most keep a row for each, or for each group of them. A *window* keeps the
//! last rows only: it slides through its memory, kernels get the address of its oldest row, and when the end comes
//! near, its rows move back to the front. Some rows before it stay, so that a few tokens can be taken back.

use crate::region::Region;
use crate::{Device, Error};
use hadal_artifact::{ALIGN, State};
use hadal_types::{Bindings, DType, Definitions, Dim, Sym};
use std::borrow::Cow;
use std::sync::Arc;

/// Rows before a window that stay when it moves to the front: of the last tokens so many can always be taken back.
pub const TAKE_BACK: u64 = 16;

// A step is one token and its drafts, all of which may be wrong but the first.
const _: () = assert!(TAKE_BACK as usize > crate::speculate::LONGEST);

/// The states of one sequence.
pub(crate) struct States {
    all: Vec<Held>,
    memory: Region,
}

struct Held {
    name: String,
    /// Tokens seen.
    tokens: u64,
    /// First byte in the memory.
    offset: usize,
    row_bytes: usize,
    /// Rows as a function of the tokens.
    rows: Dim,
    window: Option<Window>,
}

struct Window {
    /// Rows kept.
    kept: usize,
    /// Rows there is room for.
    room: usize,
    /// The oldest row.
    front: usize,
}

/// What a session held at some time, as far as later calls overwrite it.
#[derive(Clone, Debug)]
pub struct Mark {
    tokens: Vec<u64>,
    /// The rows of each window; of other states nothing.
    windows: Vec<Vec<u8>>,
}

impl States {
    /// Memory for states, all of it zero, of a device or of this process.
    pub fn new(states: &[State], device: Option<&Arc<dyn Device>>) -> Result<States, Error> {
        let mut all = Vec::new();
        let mut total = 0u64;
        for s in states {
            let window = s.window().map(|kept| Window { kept: kept as usize, room: s.rows as usize, front: 0 });
            let (offset, row_bytes) = (total as usize, s.row_bytes().unwrap_or(0) as usize);
            all.push(Held { name: s.name.clone(), tokens: 0, offset, row_bytes, rows: s.held.clone(), window });
            total = total.saturating_add(s.bytes).checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX);
        }
        Ok(States { all, memory: Region::on(device, "states", total)? })
    }

    /// The first byte of a state.
    pub fn start(&self, state: usize) -> *mut u8 {
        self.memory.start().wrapping_add(self.all[state].offset)
    }

    /// Bytes of all.
    pub fn bytes(&self) -> usize {
        self.memory.bytes
    }

    /// Tokens that a state has seen.
    pub fn tokens(&self, state: usize) -> u64 {
        self.all[state].tokens
    }

    /// The oldest row of a window that has room for `new` rows behind it. Rows are moved to make that room.
    pub fn front(&mut self, state: usize, new: u64) -> Result<*mut u8, Error> {
        let Held { offset, row_bytes, window, .. } = &mut self.all[state];
        let Some(w) = window else { return Ok(self.start(state)) };
        if w.front + w.kept + new as usize > w.room {
            let before = w.front.min(TAKE_BACK as usize).min(w.room.saturating_sub(w.kept + new as usize));
            let (from, to) = (*offset + (w.front - before) * *row_bytes, *offset);
            self.memory.move_down(from..from + (before + w.kept) * *row_bytes, to)?;
            w.front = before;
        }
        let first = *offset + w.front * *row_bytes;
        Ok(self.memory.start().wrapping_add(first))
    }

    /// Counts `new` tokens, whose rows a call has written.
    pub fn advance(&mut self, state: usize, new: u64) {
        let held = &mut self.all[state];
        held.tokens += new;
        if let Some(w) = &mut held.window {
            // What was checked leaves room for them.
            w.front = (w.front + new as usize).min(w.room - w.kept);
        }
    }

    /// Forgets all but the first `tokens` tokens in some states, or changes nothing.
    pub fn truncate(&mut self, states: impl Iterator<Item = usize> + Clone, tokens: u64) -> Result<(), Error> {
        for s in states.clone().map(|i| &self.all[i]) {
            let back = s.tokens.saturating_sub(tokens);
            if let Some(w) = &s.window
                && tokens > 0
                && back > w.front as u64
            {
                let least = s.tokens - w.front as u64;
                return Err(Error::Forgotten { state: s.name.clone(), tokens, least });
            }
        }
        for i in states {
            let s = &mut self.all[i];
            let back = s.tokens.saturating_sub(tokens);
            s.tokens -= back;
            let Some(w) = &mut s.window else { continue };
            match tokens {
                0 => {
                    w.front = 0;
                    let bytes = w.kept * s.row_bytes;
                    self.memory.write(s.offset, &vec![0; bytes])?;
                }
                _ => w.front -= back as usize,
            }
        }
        Ok(())
    }

    /// What is held now.
    pub fn mark(&self) -> Result<Mark, Error> {
        let window = |s: &Held| s.kept().map_or(Ok(Vec::new()), |kept| Ok(self.memory.read(kept)?.into_owned()));
        let windows = self.all.iter().map(window).collect::<Result<_, Error>>()?;
        Ok(Mark { tokens: self.all.iter().map(|s| s.tokens).collect(), windows })
    }

    /// Goes back to what was held.
    pub fn rewind(&mut self, mark: &Mark) -> Result<(), Error> {
        for ((s, tokens), rows) in self.all.iter_mut().zip(&mark.tokens).zip(&mark.windows) {
            s.tokens = *tokens;
            if let Some(w) = &mut s.window {
                w.front = 0;
                self.memory.write(s.offset, rows)?;
            }
        }
        Ok(())
    }

    /// As if `tokens` tokens had been seen: rows of small random numbers.
    pub fn pretend(&mut self, tokens: u64, formats: &[State], definitions: &Definitions) -> Result<(), Error> {
        let mut rng = crate::Rng::new(tokens);
        for (i, state) in formats.iter().enumerate() {
            let held = &mut self.all[i];
            held.tokens = tokens;
            if let Some(w) = &mut held.window {
                w.front = 0;
            }
            let first = held.offset;
            let mut rows = vec![0; self.held(i, definitions).len()];
            let into = &mut rows[..];
            match state.dtype {
                DType::F32 | DType::BF16 | DType::F16 => {
                    let size = into.len().min(state.dtype.bits() as usize / 8);
                    for element in into.chunks_exact_mut(size.max(1)) {
                        // A sign, an exponent of one eighth, and any fraction.
                        let r = rng.next_u64() as u32;
                        match state.dtype {
                            DType::F32 => element.copy_from_slice(&(0x3e00_0000 | r & 0x807f_ffff).to_le_bytes()),
                            DType::BF16 => element.copy_from_slice(&(0x3e00 | r as u16 & 0x807f).to_le_bytes()),
                            _ => element.copy_from_slice(&(0x3000 | r as u16 & 0x83ff).to_le_bytes()),
                        }
                    }
                }
                DType::F8E8M0 => into.fill(127),
                // Codes without the largest ones, among which are those of no number.
                _ => into.iter_mut().for_each(|b| *b = rng.next_u64() as u8 & 0xb7),
            }
            self.memory.write(first, &rows)?;
        }
        Ok(())
    }

    /// The rows that a state holds, as bytes.
    pub fn rows(&self, state: usize, definitions: &Definitions) -> Result<Cow<'_, [u8]>, Error> {
        self.memory.read(self.held(state, definitions))
    }

    /// Where these rows are.
    fn held(&self, state: usize, definitions: &Definitions) -> std::ops::Range<usize> {
        let s = &self.all[state];
        s.kept().unwrap_or_else(|| {
            let tokens = Bindings::from([(Sym::P, s.tokens as i64)]);
            let rows = s.rows.eval(&definitions.complete(&tokens)).unwrap_or(0).max(0) as usize;
            s.offset..s.offset + rows * s.row_bytes
        })
    }
}

impl Held {
    /// Where the rows of a window are.
    fn kept(&self) -> Option<std::ops::Range<usize>> {
        let w = self.window.as_ref()?;
        let first = self.offset + w.front * self.row_bytes;
        Some(first..first + w.kept * self.row_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(kept: u64, room: u64) -> States {
        let held = Dim::from(kept as i64);
        let (name, dtype, row_shape) = ("w".to_owned(), DType::I32, vec![1]);
        States::new(&[State { name, dtype, row_shape, held, rows: room, page_rows: room, bytes: 4 * room }], None)
            .unwrap()
    }

    /// Writes the numbers of `new` tokens, as a kernel would.
    fn call(s: &mut States, new: u64) {
        let start = s.front(0, new).unwrap().cast::<i32>();
        let kept = s.all[0].window.as_ref().unwrap().kept;
        for i in 0..new {
            // SAFETY: `front` has made room for as many rows behind those kept.
            unsafe { *start.add(kept + i as usize) = (s.tokens(0) + i) as i32 + 1 };
        }
        s.advance(0, new);
    }

    fn rows(s: &States) -> Vec<i32> {
        s.rows(0, &Definitions::new())
            .unwrap()
            .chunks_exact(4)
            .map(|b| i32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    fn last(tokens: i32, kept: i32) -> Vec<i32> {
        (tokens - kept + 1..=tokens).map(|i| i.max(0)).collect()
    }

    #[test]
    fn windows_slide() {
        for room in 9..40 {
            let mut s = window(5, room);
            assert_eq!(rows(&s), [0; 5]);
            for new in [1, 4, 2, 1, 1, 3, 4, 4, 4, 1, 2] {
                call(&mut s, new);
                assert_eq!(rows(&s), last(s.tokens(0) as i32, 5), "room for {room}");
            }
        }
    }

    #[test]
    fn some_tokens_can_be_taken_back() {
        let mut s = window(5, 5 + 4 + TAKE_BACK);
        for _ in 0..40 {
            call(&mut s, 3);
            let tokens = s.tokens(0);
            for back in (1..=tokens.min(TAKE_BACK)).rev() {
                let mark = s.mark().unwrap();
                s.truncate(0..1, tokens - back).unwrap();
                assert_eq!(rows(&s), last((tokens - back) as i32, 5));
                call(&mut s, 4.min(back));
                s.rewind(&mark).unwrap();
                assert_eq!((s.tokens(0), rows(&s)), (tokens, last(tokens as i32, 5)));
                // A mark does not know what was before, so that it is written again.
                s.truncate(0..1, 0).unwrap();
                (0..tokens).for_each(|_| call(&mut s, 1));
            }
        }
        let refused = s.truncate(0..1, 1).unwrap_err().to_string();
        assert!(refused.contains("`w`") && refused.contains("at least"), "{refused}");
        assert_eq!(rows(&s), last(120, 5));
        s.truncate(0..1, 0).unwrap();
        assert_eq!((s.tokens(0), rows(&s)), (0, vec![0; 5]));
    }
}
