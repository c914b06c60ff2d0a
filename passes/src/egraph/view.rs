//! What laws see of the e-graph.

use super::{Graph, Head, Node};
use crate::bounds::Bounds;
use crate::rule::{Site, V};
use egg::Id;
use hadal_ir::{Dim, Op, TensorType};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

/// Why laws that found their pattern did not apply: law, class and reason.
pub(super) type Misses = BTreeSet<(&'static str, Id, String)>;

/// Nodes by the classes that they use, with the classes that they are in.
pub(super) type Readers<'a> = BTreeMap<Id, Vec<(Id, &'a Node)>>;

/// The graph as it is in one round.
pub(super) struct View<'a> {
    pub graph: &'a Graph,
    pub bounds: &'a Bounds,
    /// Filled where a law asks for it.
    pub readers: &'a OnceCell<Readers<'a>>,
}

pub(super) fn id(v: V) -> Id {
    Id::from(v.0 as usize)
}

pub(super) fn v(id: Id) -> V {
    V(usize::from(id) as u32)
}

fn operands(node: &Node) -> Vec<V> {
    node.args.iter().map(|a| v(*a)).collect()
}

impl Site for View<'_> {
    fn ty(&self, at: V) -> &TensorType {
        &self.graph[id(at)].data.ty
    }

    fn forms(&self, at: V) -> Vec<(&Op, Vec<V>)> {
        let ops = self.graph[id(at)].nodes.iter().filter_map(|n| match &n.head {
            Head::Op(op) => Some((op, operands(n))),
            Head::Input(_) => None,
        });
        ops.collect()
    }

    fn readers(&self, at: V) -> Vec<(V, &Op, Vec<V>)> {
        let readers = self.readers.get_or_init(|| index(self.graph));
        let nodes = readers.get(&self.graph.find(id(at))).into_iter().flatten();
        let ops = nodes.filter_map(|(class, n)| match &n.head {
            Head::Op(op) => Some((v(*class), op, operands(n))),
            Head::Input(_) => None,
        });
        ops.collect()
    }

    fn constant(&self, at: V) -> bool {
        self.graph[id(at)].data.constant
    }

    fn upper(&self, size: &Dim) -> Option<i64> {
        self.bounds.upper(size)
    }

    fn lower(&self, size: &Dim) -> Option<i64> {
        self.bounds.lower(size)
    }

    fn chosen(&self, at: V) -> bool {
        let inputs = &self.graph.analysis.inputs;
        self.graph[id(at)].nodes.iter().any(|n| match &n.head {
            Head::Input(v) => inputs[v].chosen,
            Head::Op(_) => false,
        })
    }
}

/// Who uses what, in order of classes and their nodes.
fn index(graph: &Graph) -> Readers<'_> {
    let mut out = Readers::new();
    let mut classes: Vec<_> = graph.classes().collect();
    classes.sort_unstable_by_key(|c| c.id);
    for class in classes {
        for node in &class.nodes {
            let mut args: Vec<Id> = node.args.iter().map(|a| graph.find(*a)).collect();
            args.sort_unstable();
            args.dedup();
            args.into_iter().for_each(|a| out.entry(a).or_default().push((class.id, node)));
        }
    }
    out
}
