//! What a law looked at: a site that remembers which values a law looked through, and passes on what it missed.

use crate::rule::{Site, Term, V};
use hadal_ir::{Dim, Op, TensorType};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

/// A site under observation.
pub(crate) struct Watched<'a> {
    site: &'a dyn Site,
    listener: Option<&'a dyn Fn(String)>,
    seen: RefCell<Vec<V>>,
    asked: Cell<bool>,
}

impl<'a> Watched<'a> {
    /// Watches `site`; reasons why a law does not apply go to `listener`.
    pub fn new(site: &'a dyn Site, listener: Option<&'a dyn Fn(String)>) -> Self {
        Watched { site, listener, seen: RefCell::default(), asked: Cell::new(false) }
    }

    /// The values looked through, each once, in order.
    pub fn seen(self) -> Vec<V> {
        self.seen.into_inner()
    }

    /// Whether the law asked who uses a value: then it depends on more than the values seen.
    pub fn asked_for_readers(&self) -> bool {
        self.asked.get()
    }
}

impl Site for Watched<'_> {
    fn ty(&self, v: V) -> &TensorType {
        self.site.ty(v)
    }

    fn forms(&self, v: V) -> Vec<(&Op, Vec<V>)> {
        let mut seen = self.seen.borrow_mut();
        if !seen.contains(&v) {
            seen.push(v);
        }
        self.site.forms(v)
    }

    fn readers(&self, v: V) -> Vec<(V, &Op, Vec<V>)> {
        self.asked.set(true);
        self.site.readers(v)
    }

    fn constant(&self, v: V) -> bool {
        self.site.constant(v)
    }

    fn upper(&self, size: &Dim) -> Option<i64> {
        self.site.upper(size)
    }

    fn lower(&self, size: &Dim) -> Option<i64> {
        self.site.lower(size)
    }

    fn chosen(&self, v: V) -> bool {
        self.site.chosen(v)
    }

    fn miss(&self, reason: &dyn Fn() -> String) {
        if let Some(listener) = self.listener {
            listener(reason());
        }
    }
}

/// The values that a term takes as they are.
pub(crate) fn leaves(term: &Term) -> BTreeSet<V> {
    match term {
        Term::Old(v) => BTreeSet::from([*v]),
        Term::New(_, args) => args.iter().flat_map(leaves).collect(),
    }
}

/// Adds the name of a law to a chain, unless it is there.
pub(crate) fn extend(laws: &mut Vec<String>, name: &str) {
    if !laws.iter().any(|l| l == name) {
        laws.push(name.to_owned());
    }
}
