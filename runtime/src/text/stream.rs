//! Text while it is being generated: a token may end in the middle of a character, whose rest comes with later tokens.

use super::Text;

/// Turns tokens into text piece by piece, never splitting a character. All pieces together are the text of all tokens.
pub struct Stream<'t> {
    text: &'t Text,
    /// The bytes of a character that is not complete.
    pending: Vec<u8>,
    piece: String,
}

impl<'t> Stream<'t> {
    /// Nothing yet.
    pub fn new(text: &'t Text) -> Stream<'t> {
        Stream { text, pending: Vec::with_capacity(256), piece: String::with_capacity(256) }
    }

    /// The text that `token` completes; empty where it ends inside a character. Bytes that cannot become one are given
    /// as U+FFFD.
    pub fn push(&mut self, token: u32) -> &str {
        self.piece.clear();
        self.pending.extend_from_slice(self.text.bytes(token));
        let mut start = 0;
        loop {
            match std::str::from_utf8(&self.pending[start..]) {
                Ok(rest) => {
                    self.piece.push_str(rest);
                    self.pending.clear();
                    break;
                }
                Err(e) => {
                    let valid = &self.pending[start..start + e.valid_up_to()];
                    self.piece.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    start += e.valid_up_to();
                    match e.error_len() {
                        Some(n) => {
                            self.piece.push(char::REPLACEMENT_CHARACTER);
                            start += n;
                        }
                        None => {
                            self.pending.drain(..start);
                            break;
                        }
                    }
                }
            }
        }
        &self.piece
    }

    /// What is left at the end: U+FFFD where the last character is not complete.
    pub fn finish(&mut self) -> &str {
        self.piece.clear();
        if !self.pending.is_empty() {
            self.pending.clear();
            self.piece.push(char::REPLACEMENT_CHARACTER);
        }
        &self.piece
    }
}
