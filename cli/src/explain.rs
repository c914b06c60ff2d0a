//! Why kernels are as they are: questions to what the passes remember.

use crate::report::facts::{Kernel, Optimised, Version};
use hadal_ir::{Func, InstKind, Module, text};
use hadal_passes::explain::{Explanation, Form, LawUse, RunnerUp};
use hadal_passes::rule::Rule;
use hadal_passes::rules::{self, words};
use std::collections::{BTreeMap, BTreeSet};

/// What the passes said of each function, in the pipeline's order.
pub fn explanations(optimised: &Optimised) -> Vec<&Explanation> {
    optimised.fused.reports.iter().flat_map(|r| &r.details.explanations).collect()
}

/// A function, and the sizes it was costed for.
pub fn at(e: &Explanation) -> String {
    let sizes = sizes(e);
    if sizes.is_empty() { format!("@{}", e.func) } else { format!("@{} ({sizes})", e.func) }
}

/// The sizes that a function was costed for, and how many sequences where there are several.
pub fn sizes(e: &Explanation) -> String {
    let sizes = e.bindings.iter().map(|(s, n)| format!("{s} = {n}"));
    sizes.chain((e.batch > 1).then(|| format!("{} sequences", e.batch))).collect::<Vec<_>>().join(", ")
}

/// The function of the source that a specialised one is a copy of.
pub fn source<'a>(module: &'a Module, name: &str) -> Option<&'a Func> {
    let stem = |n: usize| name.rsplitn(n + 1, '.').last().unwrap_or(name);
    (0..4).find_map(|n| module.func(stem(n)))
}

/// Seconds more of the function that another form would take, and that as a part of what it takes.
pub fn more(e: &Explanation, other: f64) -> (f64, f64) {
    (other - e.cost, if e.cost > 0.0 { other / e.cost - 1.0 } else { 0.0 })
}

/// What came second, where it reads otherwise than the choice.
pub fn runner_up(form: &Form) -> Option<&RunnerUp> {
    form.runner_up.as_ref().filter(|r| r.text != form.text)
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

/// The kernels that `name` means, of those launched in `versions`: the one called so, or all whose names hold it.
pub fn kernels<'a>(versions: &'a [Version<'a>], name: &str) -> Vec<&'a str> {
    let name = name.trim_start_matches('@');
    let launches = versions.iter().flat_map(|v| &v.plan.launches);
    let all: BTreeSet<&str> = launches.map(|l| l.kernel.as_str()).collect();
    match all.get(name) {
        Some(exact) => vec![exact],
        None => all.into_iter().filter(|k| k.contains(name)).collect(),
    }
}

/// The chosen forms that ended in a kernel, with the function they were chosen in: such an op, from such a place, by
/// such laws. Fusion and later passes add to what an op remembers, and take nothing away.
pub fn forms_of<'a>(optimised: &'a Optimised, kernel: &Kernel) -> Vec<(&'a Explanation, &'a Form)> {
    let mut out = Vec::new();
    for e in explanations(optimised) {
        let insts = optimised.fused.module.func(&e.func).map(|f| f.insts.as_slice()).unwrap_or_default();
        let calls = insts.iter().filter(|i| matches!(&i.kind, InstKind::Call(c) if c.func == kernel.func.name));
        let places: BTreeSet<&String> = calls.flat_map(|i| &i.origin).collect();
        let inside = |form: &&Form| {
            let word = form.text.split_whitespace().next().unwrap_or_default();
            kernel.ops().any(|op| op.mnemonic() == word)
                && form.origin.iter().all(|o| places.contains(o))
                && form.laws.iter().all(|l| kernel.laws.contains(&l.as_str()))
        };
        if !places.is_empty() {
            out.extend(e.forms.iter().filter(inside).map(|f| (e, f)));
        }
    }
    out
}

/// A place of the model, and what is chosen there in every version that has it.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    /// The function of the source.
    pub function: &'a str,
    /// Where in it.
    pub origin: &'a [String],
    /// The choices.
    pub choices: Vec<Choice<'a>>,
}

/// What is chosen at one place of the model in one version.
#[derive(Clone, Debug)]
pub struct Choice<'a> {
    /// The versions that share the function.
    pub versions: Vec<&'a str>,
    /// The function, and what was said of it.
    pub function: &'a Explanation,
    /// The op.
    pub form: &'a Form,
}

/// The places of a kernel's choices, and of each what is chosen there in every version that has it: the same op as near
/// as it stands, or another one that came from there.
pub fn by_version<'a>(optimised: &'a Optimised, versions: &'a [Version<'a>], kernel: &Kernel) -> Vec<Place<'a>> {
    let (module, model) = (&optimised.fused.optimised, &optimised.model.module);
    let stem = |e: &Explanation| source(model, &e.func).map(|f| f.name.as_str());
    let word = |f: &Form| f.text.split_whitespace().next().map(str::to_owned);
    let mut out = Vec::new();
    let mut first: BTreeMap<&str, &Explanation> = BTreeMap::new();
    for (own, form) in forms_of(optimised, kernel) {
        // Other copies of a function have the same places.
        let Some(name) = stem(own) else { continue };
        if !std::ptr::eq(*first.entry(name).or_insert(own), own) {
            continue;
        }
        let near = |f: &&Form| {
            let shared = f.origin.iter().filter(|o| form.origin.contains(o)).count();
            let all = f.origin.len() + form.origin.len() - shared;
            (shared > 0).then(|| (word(f) == word(form), shared as f64 / all as f64))
        };
        let mut choices: Vec<Choice> = Vec::new();
        for v in versions {
            let entries = module.entries.iter().filter(|e| e.name == v.plan.entry && module.ranges(e) == v.plan.ranges);
            let reached = module.reached(entries);
            let there = |e: &&Explanation| reached.contains(e.func.as_str()) && stem(e) == Some(name);
            for e in explanations(optimised).into_iter().filter(there) {
                if let Some(known) = choices.iter_mut().find(|c| std::ptr::eq(c.function, e)) {
                    known.versions.push(&v.label);
                    continue;
                }
                let nearest = e.forms.iter().filter_map(|f| Some((near(&f)?, f)));
                let nearest = nearest.max_by(|((a, x), _), ((b, y), _)| a.cmp(b).then(x.total_cmp(y)));
                choices.extend(nearest.map(|(_, form)| Choice { versions: vec![&v.label], function: e, form }));
            }
        }
        out.push(Place { function: name, origin: &form.origin, choices });
    }
    out
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

/// The kernel's text, without the laws of each op.
pub fn kernel_text(kernel: &Kernel) -> String {
    let mut func = kernel.func.clone();
    func.insts.iter_mut().for_each(|i| i.laws.clear());
    text::print_func(&func)
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
    for k in optimised.versions().iter().flat_map(|v| v.kernels(&optimised.program)) {
        let there = k.origin.iter().chain(&k.weights).any(|o| is_at(o, &word));
        if k.func.name.to_lowercase().contains(&word)
            || there
            || k.laws.iter().any(|l| laws.iter().any(|r| r.name == *l))
        {
            kernels.insert(k.func.name.clone());
        }
    }
    Topic { meaning, laws, kernels }
}

/// Whether a place in the model, or a tensor, lies in what `word` names: some of its parts, one after another, with or
/// without the layer before them.
pub fn is_at(place: &str, word: &str) -> bool {
    let place = place.to_lowercase();
    let place: Vec<&str> = place.split('.').collect();
    let parts = |word: &str| word.split('.').map(str::to_owned).collect::<Vec<_>>();
    place.windows(word.split('.').count()).any(|w| w == parts(word))
}

/// What of a place is the same in every layer: `model.layers.3.mlp` is `mlp`.
pub fn in_layer(word: &str) -> &str {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let mut rest = word;
    let mut open = word;
    while let Some((part, after)) = open.split_once('.') {
        if number(part) {
            rest = after;
        }
        open = after;
    }
    rest
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
