//! The quick choice.
//!
//! Finding the cheapest choice is hard in general. Here two beginnings (what was written, and what is cheapest if
//! nothing were shared) are each improved while that helps, by changing one class at a time, or all classes at once
//! that can use one value which nothing uses so far. The cheaper end is taken. Ties go to the earlier beginning and the
//! smaller node, so the result depends on the input alone.

use super::problem::{Choice, Problem, Walk};

/// Costs nearer than this, relatively, are equal.
pub(super) const EQUAL: f64 = 1e-9;

/// The cheapest choice found, with the cost of what was written and its own; `None` where the roots cannot be computed.
pub(super) fn choose(problem: &Problem) -> Option<(Choice, f64, f64)> {
    let written = greedy(problem, true);
    let before = problem.total(&written);
    let mut best: Option<(Choice, f64)> = None;
    for start in [written, greedy(problem, false)] {
        let (choice, cost) = improve(problem, start, &[]);
        if cost.is_finite() && best.as_ref().is_none_or(|(_, known)| cost < known * (1.0 - EQUAL)) {
            best = Some((choice, cost));
        }
    }
    let (choice, after) = best?;
    Some((choice, before, after))
}

/// The cheapest choice found that computes `class` by `candidate`, starting from another.
pub(super) fn choose_with(problem: &Problem, from: &Choice, class: usize, candidate: usize) -> Option<(Choice, f64)> {
    let mut only = problem.clone();
    let kept = only.candidates[class].swap_remove(candidate);
    only.candidates[class] = vec![kept];
    let mut start = from.clone();
    // Whatever else it needs is computed the cheapest way, where nothing was chosen so far.
    let cheapest = greedy(&only, false);
    start.iter_mut().zip(&cheapest).for_each(|(at, c)| *at = at.or(*c));
    start[class] = Some(0);
    let frozen = reach_up(&only, &mut start, class)?;
    let (choice, cost) = improve(&only, start, &frozen);
    let (mut choice, cost) = match cost.is_finite() {
        true => (choice, cost),
        false => improve(&only, cheapest, &[]),
    };
    let computed = only.order(&choice).contains(&class);
    choice[class] = Some(candidate);
    (cost.is_finite() && computed).then_some((choice, cost))
}

/// Changes a choice along one path so that it computes `class`; the classes on the path.
fn reach_up(problem: &Problem, choice: &mut Choice, class: usize) -> Option<Vec<usize>> {
    let reached = problem.order(choice);
    let mut steps: Vec<Option<(usize, usize)>> = vec![None; problem.ids.len()];
    let mut seen = vec![false; problem.ids.len()];
    let mut open = std::collections::VecDeque::from([class]);
    seen[class] = true;
    while let Some(at) = open.pop_front() {
        if reached.contains(&at) || problem.roots.contains(&at) {
            let (mut path, mut at) = (vec![class], at);
            while let Some((below, candidate)) = steps[at] {
                choice[at] = Some(candidate);
                path.push(at);
                at = below;
            }
            return Some(path);
        }
        for (i, candidates) in problem.candidates.iter().enumerate().filter(|(i, _)| !seen[*i]).collect::<Vec<_>>() {
            if let Some(c) = candidates.iter().position(|c| c.args.contains(&at)) {
                (seen[i], steps[i]) = (true, Some((at, c)));
                open.push_back(i);
            }
        }
    }
    None
}

/// Bottom up, the candidate with the least cost of all below it as if nothing were shared; written ones before others,
/// where asked for.
fn greedy(problem: &Problem, written: bool) -> Choice {
    let n = problem.ids.len();
    let mut best: Vec<Option<(bool, f64, usize)>> = vec![None; n];
    let mut changed = true;
    while std::mem::take(&mut changed) {
        for class in 0..n {
            for (i, c) in problem.candidates[class].iter().enumerate() {
                let below: Option<f64> = c.args.iter().map(|a| best[*a].map(|b| b.1)).sum();
                let Some(below) = below else { continue };
                let (other, cost) = (written && !c.written, c.own + below);
                let better = match best[class] {
                    None => true,
                    Some((o, known, _)) => (other, cost) < (o, known * (1.0 - 1e-12)) && (other, cost) != (o, known),
                };
                if better {
                    best[class] = Some((other, cost, i));
                    changed = true;
                }
            }
        }
    }
    best.into_iter().map(|b| b.map(|(_, _, i)| i)).collect()
}

/// Improves a choice while the total falls. Classes in `frozen` stay.
fn improve(problem: &Problem, mut choice: Choice, frozen: &[usize]) -> (Choice, f64) {
    let mut walk = Walk::new(problem);
    let mut cost = walk.total(&choice);
    let better = |now: f64, cost: f64| now < cost * (1.0 - EQUAL) || (cost.is_infinite() && now.is_finite());
    let mut changed = true;
    while std::mem::take(&mut changed) {
        let mut reached = match cost.is_finite() {
            true => problem.order(&choice),
            false => (0..problem.ids.len()).collect(),
        };
        reached.sort_unstable();
        for class in reached.into_iter().filter(|c| problem.candidates[*c].len() > 1 && !frozen.contains(c)) {
            for candidate in 0..problem.candidates[class].len() {
                let old = choice[class].replace(candidate);
                if old == Some(candidate) {
                    continue;
                }
                let now = walk.total(&choice);
                if better(now, cost) {
                    (cost, changed) = (now, true);
                } else {
                    choice[class] = old;
                }
            }
        }
        for pulled in together(problem, &choice, frozen) {
            let old = choice.clone();
            pulled.into_iter().for_each(|(class, candidate)| choice[class] = Some(candidate));
            let now = walk.total(&choice);
            if better(now, cost) {
                (cost, changed) = (now, true);
            } else {
                choice = old;
            }
        }
    }
    (choice, cost)
}

/// For each class that a choice does not compute: the two or more classes that would use it, with the candidates that
/// do.
fn together(problem: &Problem, choice: &Choice, frozen: &[usize]) -> Vec<Vec<(usize, usize)>> {
    let mut reached = problem.order(choice);
    reached.sort_unstable();
    let mut users: Vec<Vec<(usize, usize)>> = vec![Vec::new(); problem.ids.len()];
    for class in reached.iter().filter(|c| !frozen.contains(c)) {
        for (i, c) in problem.candidates[*class].iter().enumerate() {
            for a in &c.args {
                if reached.binary_search(a).is_err() && users[*a].last().is_none_or(|(known, _)| known != class) {
                    users[*a].push((*class, i));
                }
            }
        }
    }
    users.retain(|u| u.len() > 1);
    users
}
