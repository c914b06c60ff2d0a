//! How far the quick choice of forms is from the best one, for every layer of every published configuration.

use crate::common::releases;
use hadal_ir::target::Target;
use hadal_passes::{Gap, Options, gap};
use std::collections::BTreeMap;

/// The largest gap measured, between the quick choice and the best one known: of V4.1's layers with a window alone.
const MEASURED: f64 = 3.87e-4;

/// The least share of functions for which the best one known is proven to be the best.
const PROVEN: f64 = 0.79;

#[test]
fn the_quick_choice_is_near_the_best() {
    let (known, others) = releases::all();
    println!("no model for {}", others.join(", "));
    // Versions differ in sizes, not in what there is to choose from.
    let options = Options { versions: false, ..Options::default() };
    // Releases share layers: one line for equal figures.
    type Rows<'a> = BTreeMap<(String, u64, usize), (Gap, Vec<&'a str>)>;
    let of = |target: &str| {
        let target = Target::by_name(target).unwrap();
        let mut rows = Rows::new();
        for (name, module) in &known {
            for g in gap(module, &target, &options).unwrap() {
                assert!(g.bound <= g.exact && g.exact <= g.greedy * (1.0 + 1e-9), "{name}: {g:?}");
                let key = (g.func.clone(), g.greedy.to_bits(), g.classes);
                rows.entry(key).or_insert_with(|| (g, Vec::new())).1.push(name);
            }
        }
        rows
    };
    let (gpu, cpu) = std::thread::scope(|scope| {
        let gpu = scope.spawn(|| of("h200"));
        let cpu = of("cpu");
        (gpu.join().expect("no gap fails"), cpu)
    });
    let mut worst: f64 = 0.0;
    let (mut proven, mut all) = (0, 0);
    for (target, rows) in [("cpu", &cpu), ("h200", &gpu)] {
        println!("{target}:");
        for (g, names) in rows.values() {
            let over = |best: f64| if g.greedy > 0.0 { g.greedy / best - 1.0 } else { 0.0 };
            let loss = over(g.bound);
            worst = worst.max(over(g.exact));
            (proven, all) = (proven + usize::from(g.proven), all + 1);
            println!(
                "  @{}: greedy {:.3} us, exact {:.3} us, gap {:.4} %{}, {} classes, {} branches ({})",
                g.func,
                g.greedy * 1e6,
                g.exact * 1e6,
                loss * 100.0,
                if g.proven { "" } else { " at most: the budget ended before a proof" },
                g.classes,
                g.explored,
                names.join(", "),
            );
        }
    }
    println!("{proven} of {all} proven");
    assert!(worst <= MEASURED + 1e-6, "the gap grew to {:.4} %", worst * 100.0);
    assert!(proven as f64 >= PROVEN * all as f64, "only {proven} of {all} are proven");
}
