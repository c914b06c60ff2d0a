//! Growing an e-graph by laws, phase by phase, until nothing is new or a limit is met.
//!
//! In each round every law of the phase looks at every node, all that they find is added, and equal things are united.
//! A class is only looked at again where something that was seen from it has changed since.

use super::space::{Heritage, Space};
use super::view::{View, id, v};
use super::{Graph, Head, Node, PhaseReport, Stop};
use crate::canonicalise::Fired;
use crate::rule::{Rule, Term, V};
use crate::rules::Phase;
use crate::watch::Watched;
use egg::Id;
use std::cell::OnceCell;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{Hash, Hasher};
use std::time::Instant;

/// Something that a law says.
struct Found {
    rule: &'static Rule,
    class: Id,
    term: Term,
    heritage: Heritage,
}

/// What laws have said in a phase, so that it is only followed once. Only ever looked up, so its order does not matter.
type Said = HashSet<(&'static str, Id, Term)>;

/// What a class looked like from its nodes when it was last looked at.
struct Looked {
    /// Classes that were seen, itself included.
    seen: BTreeSet<Id>,
    /// Whether a law asked who uses a value: any change may concern that.
    anything: bool,
}

impl Space<'_> {
    /// Applies the laws of all phases.
    pub fn saturate(&mut self, phases: &'static [Phase]) -> Vec<PhaseReport> {
        let mut out = Vec::new();
        for phase in phases {
            let rules = phase.themes.iter().flat_map(|t| t.rules);
            let rules: Vec<&'static Rule> = rules.filter(|r| self.context.laws.allows(r)).collect();
            if !rules.is_empty() {
                out.push(self.phase(phase, rules));
            }
        }
        out
    }

    fn phase(&mut self, phase: &'static Phase, mut rules: Vec<&'static Rule>) -> PhaseReport {
        let start = Instant::now();
        let (mut fired, mut banned) = (Fired::new(), Vec::new());
        let most_nodes = self.context.limits.nodes.min(self.graph.total_size() + phase.limits.nodes);
        let most_rounds = self.context.limits.rounds.min(phase.limits.rounds);
        let mut looked: BTreeMap<Id, Looked> = BTreeMap::new();
        let (mut before, mut said): (BTreeMap<Id, u64>, Said) = Default::default();
        let (mut rounds, mut stop) = (0, Stop::Rounds);
        while rounds < most_rounds {
            rounds += 1;
            let now = fingerprints(&self.graph);
            let changed: BTreeSet<Id> =
                now.iter().filter(|(id, f)| before.get(id) != Some(f)).map(|(c, _)| *c).collect();
            let mut found = self.look(&rules, &changed, &mut looked, &mut said);
            before = now;
            for rule in eager(&found, phase.limits.matches) {
                banned.push(rule);
                rules.retain(|r| r.name != rule);
                found.retain(|f| f.rule.name != rule);
            }
            let (new, full) = self.unite(found, most_nodes, &mut fired);
            if full {
                stop = Stop::Nodes;
                break;
            }
            if !new {
                stop = Stop::Saturated;
                break;
            }
        }
        PhaseReport {
            phase: phase.name,
            nodes: self.graph.total_number_of_nodes(),
            classes: self.graph.number_of_classes(),
            rounds,
            stop,
            banned,
            fired,
            time: start.elapsed(),
        }
    }

    /// What the laws say about every class from which something changed can be seen, in order of classes and nodes.
    fn look(
        &self,
        rules: &[&'static Rule],
        changed: &BTreeSet<Id>,
        looked: &mut BTreeMap<Id, Looked>,
        said: &mut Said,
    ) -> Vec<Found> {
        let readers = OnceCell::new();
        let view = View { graph: &self.graph, bounds: self.context.bounds, readers: &readers };
        let mut out = Vec::new();
        let mut order: Vec<Id> = self.graph.classes().map(|c| c.id).collect();
        order.sort_unstable();
        for class in order {
            let settled = |l: &Looked| {
                let same = |s: &Id| !changed.contains(&self.graph.find(*s));
                if l.anything { changed.is_empty() } else { l.seen.iter().all(same) }
            };
            if looked.get(&class).is_some_and(settled) {
                continue;
            }
            let mut memory = Looked { seen: BTreeSet::from([class]), anything: false };
            for node in &self.graph[class].nodes {
                let Head::Op(op) = &node.head else { continue };
                let args: Vec<V> = node.args.iter().map(|a| v(*a)).collect();
                for rule in rules {
                    let miss = |reason| _ = self.misses.borrow_mut().insert((rule.name, class, reason));
                    let listener = self.context.explain.then_some(&miss as &dyn Fn(String));
                    let site = Watched::new(&view, listener);
                    let terms = (rule.apply)(&site, op, &args).into_iter();
                    let new = |t: &Term| said.insert((rule.name, class, t.clone())) && t.ty(&view).is_some();
                    let terms: Vec<Term> = terms.filter(new).collect();
                    memory.anything |= site.asked_for_readers();
                    let seen = site.seen();
                    for term in terms {
                        let heritage = self.heritage(rule, class, node, &term, &seen);
                        out.push(Found { rule, class, term, heritage });
                    }
                    memory.seen.extend(seen.into_iter().map(id));
                }
            }
            looked.insert(class, memory);
        }
        out
    }

    /// Adds what was found. Whether anything was new, and whether there are too many nodes now.
    fn unite(&mut self, found: Vec<Found>, most_nodes: usize, fired: &mut Fired) -> (bool, bool) {
        let (mut new, mut full) = (false, false);
        for Found { rule, class, term, heritage } in found {
            let before = self.graph.total_size();
            let made = self.add(&term, &heritage, fired);
            let types = (&self.graph[made].data.ty, &self.graph[class].data.ty);
            assert_eq!(types.0, types.1, "law `{}` changes the type", rule.name);
            if self.graph.union(made, class) || self.graph.total_size() > before {
                *fired.entry(rule.name).or_default() += 1;
                self.fired_at.insert((rule.name, class));
                new = true;
            }
            if self.graph.total_size() > most_nodes {
                full = true;
                break;
            }
        }
        self.rebuild();
        (new, full)
    }
}

/// Laws with more matches than their share, by name.
fn eager(found: &[Found], share: usize) -> Vec<&'static str> {
    let mut matches: BTreeMap<&'static str, usize> = BTreeMap::new();
    found.iter().for_each(|f| *matches.entry(f.rule.name).or_default() += 1);
    matches.into_iter().filter(|(_, n)| *n > share).map(|(name, _)| name).collect()
}

/// A number per class that changes with what laws can see of it.
fn fingerprints(graph: &Graph) -> BTreeMap<Id, u64> {
    let of = |nodes: &[Node], constant: bool| {
        let mut hasher = DefaultHasher::new();
        (nodes, constant).hash(&mut hasher);
        hasher.finish()
    };
    graph.classes().map(|c| (c.id, of(&c.nodes, c.data.constant))).collect()
}
