//! Why kernels are as they are: questions to what the passes remember.

use crate::report::facts::{Kernel, Optimised, Version};
use hadal_ir::module::FuncKind;
use hadal_ir::{InstKind, Module, text};
use hadal_passes::explain::{Explanation, Form, LawUse};
use hadal_passes::rule::Rule;
use hadal_passes::rules::{self, words};
use std::collections::BTreeSet;

/// What the passes said of each function, in the pipeline's order.
pub fn explanations(optimised: &Optimised) -> Vec<&Explanation> {
    optimised.fused.reports.iter().flat_map(|r| &r.details.explanations).collect()
}

/// A function, and the sizes it was costed for.
pub fn at(e: &Explanation) -> String {
    let sizes: Vec<String> = e.bindings.iter().map(|(s, n)| format!("{s} = {n}")).collect();
    if sizes.is_empty() { format!("@{}", e.func) } else { format!("@{} ({})", e.func, sizes.join(", ")) }
}

/// Seconds more of the function that another form would take, and that as a part of what it takes.
pub fn more(e: &Explanation, other: f64) -> (f64, f64) {
    (other - e.cost, if e.cost > 0.0 { other / e.cost - 1.0 } else { 0.0 })
}

/// How a law is used: in the search, or wherever it applies.
pub fn role(law: &str) -> &'static str {
    let canonical = rules::CANONICAL.iter().any(|theme| theme.rules.iter().any(|r| r.name == law));
    if canonical { "applied wherever its pattern is" } else { "opens an alternative, chosen by cost" }
}

/// The theme of a law.
pub fn theme(law: &str) -> &'static str {
    rules::themes().find(|t| t.rules.iter().any(|r| r.name == law)).map_or("", |t| t.name)
}

/// The kernels that `name` means: the one called so, or all whose names hold it.
pub fn kernels<'a>(optimised: &'a Optimised, name: &str) -> Vec<&'a str> {
    let name = name.trim_start_matches('@');
    let all = optimised.program.module.funcs.iter().filter(|f| f.kind == FuncKind::Kernel).map(|f| f.name.as_str());
    let all: Vec<&str> = all.collect();
    match all.iter().find(|k| **k == name) {
        Some(exact) => vec![exact],
        None => all.into_iter().filter(|k| k.contains(name)).collect(),
    }
}

/// The functions that launch a kernel.
pub fn callers<'a>(module: &'a Module, kernel: &str) -> BTreeSet<&'a str> {
    let calls = |f: &&hadal_ir::Func| f.insts.iter().any(|i| matches!(&i.kind, InstKind::Call(c) if c.func == kernel));
    module.funcs.iter().filter(calls).map(|f| f.name.as_str()).collect()
}

/// The chosen forms that ended in a kernel, with the function they were chosen in.
pub fn forms_of<'a>(optimised: &'a Optimised, kernel: &Kernel) -> Vec<(&'a Explanation, &'a Form)> {
    let callers = callers(&optimised.fused.module, &kernel.func.name);
    let all = explanations(optimised).into_iter().filter(|e| callers.contains(e.func.as_str()));
    let inside = |form: &Form| {
        kernel.func.insts.iter().any(|i| match &i.kind {
            InstKind::Op(op) => {
                form.text.contains(op.mnemonic()) && form.origin == i.origin && form.laws.iter().eq(i.laws.iter())
            }
            InstKind::Call(_) => false,
        })
    };
    all.flat_map(|e| e.forms.iter().filter(|f| inside(f)).map(move |f| (e, f))).collect()
}

/// The kernel in every version that launches it.
pub fn uses<'a>(
    optimised: &'a Optimised,
    versions: &'a [Version<'a>],
    name: &str,
) -> Vec<(&'a Version<'a>, Kernel<'a>)> {
    let one = |v: &'a Version<'a>| {
        let kernel = v.kernels(&optimised.program).into_iter().find(|k| k.func.name == name)?;
        Some((v, kernel))
    };
    versions.iter().filter_map(one).collect()
}

/// The kernel's text.
pub fn kernel_text(kernel: &Kernel) -> String {
    text::print_func(kernel.func)
}

/// What a question with `--why` is about.
#[derive(Default)]
pub struct Topic {
    /// The word and what it means, where it is not the name of something.
    pub meaning: Option<&'static words::Word>,
    /// Laws.
    pub laws: Vec<&'static Rule>,
    /// Kernels with such a name, from such a place, or made by such a law.
    pub kernels: BTreeSet<String>,
}

/// What `word` may mean: a law, a theme, a common word for what laws do, a kernel, a place in the model.
pub fn topic(optimised: &Optimised, word: &str) -> Topic {
    let word = word.trim_start_matches('@').to_lowercase();
    let meaning = words::meaning(&word);
    let spoken = |r: &Rule| r.name.contains(&word) || theme(r.name) == word;
    let known = |r: &Rule| meaning.is_some_and(|m| m.laws.contains(&r.name));
    let laws: Vec<&'static Rule> = rules::all().filter(|r| known(r) || spoken(r)).collect();
    let mut kernels = BTreeSet::new();
    for f in optimised.program.module.funcs.iter().filter(|f| f.kind == FuncKind::Kernel) {
        let mut origins = f.insts.iter().flat_map(|i| &i.origin);
        let mut made = f.insts.iter().flat_map(|i| &i.laws);
        if f.name.to_lowercase().contains(&word)
            || origins.any(|o| o.to_lowercase().contains(&word))
            || made.any(|l| laws.iter().any(|r| r.name == l))
        {
            kernels.insert(f.name.clone());
        }
    }
    Topic { meaning, laws, kernels }
}

/// Why a law has no chosen form in a function.
#[derive(Clone, PartialEq, Debug)]
pub enum Verdict<'a> {
    /// It has.
    Chosen(&'a LawUse),
    /// It found something, but that costs more.
    Lost(&'a LawUse),
    /// It found its pattern, but not what else it needs.
    Failed(&'a LawUse),
    /// It found something that was there already, or that nothing needs.
    Idle(&'a LawUse),
    /// Its pattern is not there.
    NotMatched,
}

/// The verdict on a law in a function.
pub fn verdict<'a>(e: &'a Explanation, law: &str) -> Verdict<'a> {
    // One that took part in two searches: what speaks for it counts.
    let uses: Vec<&LawUse> = e.laws.iter().filter(|u| u.law == law).collect();
    let find = |f: &dyn Fn(&LawUse) -> bool| uses.iter().find(|u| f(u)).copied();
    if let Some(u) = find(&|u| u.chosen > 0) {
        return Verdict::Chosen(u);
    }
    if let Some(u) = find(&|u| u.lost.is_some()) {
        return Verdict::Lost(u);
    }
    if let Some(u) = find(&|u| u.fired > 0) {
        return Verdict::Idle(u);
    }
    find(&|u| !u.misses.is_empty()).map_or(Verdict::NotMatched, Verdict::Failed)
}
