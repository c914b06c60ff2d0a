//! Words by which people ask for what laws do, where it has a name that no single law carries.

/// A word, what is meant by it, and the laws that it comes from.
pub struct Word {
    /// The word; forms of it begin with the same five letters.
    pub word: &'static str,
    /// What is meant.
    pub meaning: &'static str,
    /// The laws.
    pub laws: &'static [&'static str],
}

/// The words.
pub const WORDS: &[Word] = &[
    Word {
        word: "absorb",
        meaning: "a projection of keys or values is multiplied into the queries or the output instead, so that attention \
                  reads the rows it was made from: the order of contractions changed",
        laws: &["gather-contractions", "nest-contractions"],
    },
    Word {
        word: "flash",
        meaning: "softmax-weighted values without a score matrix in memory",
        laws: &["select-attention", "select-attention-with-sink"],
    },
    Word {
        word: "sparse",
        meaning: "a query reads only the rows that were selected for it",
        laws: &["mask-by-selection", "selection-implies-causal", "selection-of-everything"],
    },
    Word {
        word: "window",
        meaning: "a query reads an interval of rows, or several kinds of rows in one softmax",
        laws: &["mask-by-interval", "sets-of-joined-rows"],
    },
    Word { word: "sink", meaning: "a score that stands for no row", laws: &["select-attention-with-sink"] },
    Word {
        word: "dispatch",
        meaning: "a token is rounded once and then handed to all its experts, not once for each",
        laws: &["function-before-gather", "map-of-broadcast", "cast-of-broadcast", "reduce-of-broadcast"],
    },
];

/// What `word` means here, in any of its forms.
pub fn meaning(word: &str) -> Option<&'static Word> {
    // Five letters tell them apart: `absorption` is `absorb`.
    let stem = |w: &'static str| &w[..w.len().min(5)];
    WORDS.iter().find(|w| word.starts_with(stem(w.word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_leads_to_laws_that_are_there() {
        for word in WORDS {
            let unknown: Vec<_> = word.laws.iter().filter(|l| crate::rules::law(l).is_none()).collect();
            assert!(!word.laws.is_empty() && unknown.is_empty(), "{}: {unknown:?}", word.word);
        }
        assert_eq!(meaning("absorption").map(|w| w.word), Some("absorb"));
        assert_eq!(meaning("sinks").map(|w| w.word), Some("sink"));
        assert!(meaning("abs").is_none() && meaning("").is_none());
    }
}
