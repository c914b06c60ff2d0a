//! Constants as they lie in memory: what their bytes are made of, and which of them lie inside of others.
//!
//! Versions of an entry may join the same weights differently: a step reads `[gate; up]` by one kernel, a prompt reads
//! both by themselves. Rows of the first *are* the second, so it is stored alone, and the others are addresses in it.
//! Nothing here knows why weights were joined: constants are compared as runs of bytes of the tensors they come from.

use crate::layout_fold::{Piece, cut, pieces};
use crate::module::{Func, expand_weight_name};
use crate::panels;
use crate::plan::{ALIGN, Place, Program};
use crate::text::print_func;
use hadal_types::{Bindings, TensorType};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of one tensor that lie together: of a name in the checkpoint with the format it is read in, or of what is
/// computed. Tensors are called the same in all programs of a model.
pub type Run = Piece<String>;

/// The tensor that one of this name has the elements of: itself where no other is known.
pub type Known<'a> = &'a dyn Fn(&str) -> String;

/// A constant of a program as runs, end to end; none where `place` is no constant.
pub fn runs(program: &Program, known: Known<'_>, place: Place) -> Vec<Run> {
    let found = match place {
        Place::Weight(i) => {
            let w = &program.weights[i];
            let names = expand_weight_name(&w.name);
            let each = length(&w.ty) / names.len() as u64;
            names.iter().map(|n| Run { of: format!("{}: {}", known(n), w.ty.dtype), bytes: 0..each }).collect()
        }
        Place::Fold(i) => fold_runs(program, known, i),
        _ => vec![],
    };
    joined(found)
}

fn fold_runs(program: &Program, known: Known<'_>, i: usize) -> Vec<Run> {
    let fold = &program.folds[i];
    let args: Vec<Vec<Run>> = fold.args.iter().map(|a| runs(program, known, *a)).collect();
    let func = program.module.func(&fold.func);
    let moved = |f: &Func| -> Option<Vec<Vec<Run>>> {
        pieces(f, fold.result)?.into_iter().map(|p| cut(&args[p.of], p.bytes)).collect()
    };
    if let Some(moved) = func.and_then(moved) {
        return moved.concat();
    }
    if let Some(laid) = func.and_then(|f| in_panels(f, args.first()?)) {
        return laid;
    }
    let said = |runs: &Vec<Run>| {
        let runs: Vec<String> = runs.iter().map(|r| format!("{} {:?}", r.of, r.bytes)).collect();
        runs.join("; ")
    };
    let args: Vec<String> = args.iter().map(said).collect();
    let text = func.map(|f| print_func(&plain(f))).unwrap_or_default();
    let of = format!("{text}({})#{}: {}", args.join(", "), fold.result, fold.ty);
    vec![Run { of, bytes: 0..length(&fold.ty) }]
}

/// A tensor's panels as runs: those of its rows, where these are whole panels of what they come from.
fn in_panels(func: &Func, rows: &[Run]) -> Option<Vec<Run>> {
    let (row, word) = panels::rows(func)?;
    let panel = (row * panels::COLUMNS as usize) as u64;
    let laid = |run: &Run| {
        let whole = run.bytes.start.is_multiple_of(panel) && run.bytes.end.is_multiple_of(panel);
        whole.then(|| Run { of: format!("panels of {word} of {row} bytes: {}", run.of), bytes: run.bytes.clone() })
    };
    rows.iter().map(laid).collect()
}

/// Bytes of a constant.
pub fn length(ty: &TensorType) -> u64 {
    ty.dtype.bytes(ty.count(&Bindings::new()).unwrap_or(0.0) as u64)
}

/// A function without its name, and without what its ops remember.
fn plain(func: &Func) -> Func {
    let mut out = Func { name: String::new(), ..func.clone() };
    for inst in &mut out.insts {
        inst.laws.clear();
        inst.origin.clear();
    }
    out
}

/// Runs with neighbours that continue each other as one.
fn joined(runs: Vec<Run>) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::new();
    for run in runs {
        match out.last_mut() {
            Some(last) if last.of == run.of && last.bytes.end == run.bytes.start => {
                last.bytes.end = run.bytes.end;
            }
            _ => out.push(run),
        }
    }
    out
}

/// For each of several constants: which other one it lies in, and from which byte on, a multiple of [`ALIGN`]. Those
/// that others lie in lie in none. Of equal ones the first holds the others.
pub fn nested(constants: &[Vec<Run>]) -> Vec<Option<(usize, u64)>> {
    let mut order: Vec<usize> = (0..constants.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(total(&constants[*i])), *i));
    let mut out = vec![None; constants.len()];
    // Of the constants that are kept, the runs of each source, with the bytes before them.
    let mut kept: BTreeMap<&str, Vec<(usize, usize, u64)>> = BTreeMap::new();
    for i in order {
        let Some(first) = constants[i].first() else { continue };
        let places = kept.get(first.of.as_str()).into_iter().flatten();
        out[i] = places
            .filter_map(|(holder, at, before)| {
                let skipped = within(&constants[*holder][*at..], &constants[i])?;
                let offset = before + skipped;
                offset.is_multiple_of(ALIGN).then_some((*holder, offset))
            })
            .min();
        if out[i].is_some() {
            continue;
        }
        let mut before = 0;
        for (at, run) in constants[i].iter().enumerate() {
            kept.entry(&run.of).or_default().push((i, at, before));
            before += run.length();
        }
    }
    out
}

fn total(runs: &[Run]) -> u64 {
    runs.iter().map(Run::length).sum()
}

/// How many bytes of the first run of `whole` come before `part`, if `part` begins in that run and goes on as `whole`
/// does.
fn within(whole: &[Run], part: &[Run]) -> Option<u64> {
    let last = part.len().checked_sub(1)?;
    let fits = part.iter().enumerate().all(|(i, p)| {
        whole.get(i).is_some_and(|w| {
            let starts = if i == 0 { w.bytes.start <= p.bytes.start } else { w.bytes.start == p.bytes.start };
            let ends = if i == last { p.bytes.end <= w.bytes.end } else { p.bytes.end == w.bytes.end };
            w.of == p.of && starts && ends
        })
    });
    fits.then(|| part[0].bytes.start - whole[0].bytes.start)
}

/// The constants that a program's launches read, and where each is kept.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Storage {
    /// Those that are stored, in order.
    pub kept: Vec<Place>,
    /// Those that lie in one of them: which, and from which byte on.
    inside: BTreeMap<Place, (Place, u64)>,
}

impl Storage {
    /// What only goes into folds is not needed afterwards, and in no list.
    pub fn of(program: &Program, known: Known<'_>) -> Storage {
        let args = program.plans.iter().flat_map(|p| &p.launches).flat_map(|l| &l.args).copied();
        let constants = args.filter(|a| matches!(a, Place::Weight(_) | Place::Fold(_)));
        let all: Vec<Place> = constants.collect::<BTreeSet<Place>>().into_iter().collect();
        let of = nested(&all.iter().map(|p| runs(program, known, *p)).collect::<Vec<_>>());
        let mut out = Storage::default();
        for (place, holder) in all.iter().zip(of) {
            match holder {
                Some((holder, offset)) => drop(out.inside.insert(*place, (all[holder], offset))),
                None => out.kept.push(*place),
            }
        }
        out
    }

    /// In which of the constants that are kept `place` lies, and from which byte on.
    pub fn find(&self, place: Place) -> Option<(usize, u64)> {
        let (holder, offset) = self.inside.get(&place).copied().unwrap_or((place, 0));
        self.kept.binary_search(&holder).ok().map(|at| (at, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Fold, Launch, Plan, Weight};
    use crate::text::parse_module;
    use hadal_types::DType;

    /// Two weights of 64 rows of four bits each, their rows one after the other, rows 32..96 of that as a cube, and
    /// both side by side.
    fn program() -> Program {
        let module = parse_module(
            "fold @rows(%0: u4[64, 4], %1: u4[64, 4]) -> (y: u4[128, 4]) {
                %2 = concat %0, %1 {axis = 0} : u4[128, 4]
                return %2 }
            fold @middle(%0: u4[128, 4]) -> (y: u4[1, 64, 4]) {
                %1 = reshape %0 {shape = [1, 128, 4]} : u4[1, 128, 4]
                %2 = slice %1 {axis = 1, start = 32, len = 64} : u4[1, 64, 4]
                return %2 }
            fold @columns(%0: u4[64, 4], %1: u4[64, 4]) -> (y: u4[64, 8]) {
                %2 = concat %0, %1 {axis = 1} : u4[64, 8]
                return %2 }",
        );
        let ty = |sizes: &[usize]| TensorType::new(DType::U4, sizes.iter().copied());
        let weight = |name: &str| Weight { name: name.into(), ty: ty(&[64, 4]) };
        let fold = |func: &str, args: &[Place], sizes: &[usize]| Fold {
            func: func.into(),
            result: 0,
            args: args.into(),
            ty: ty(sizes),
        };
        let both = [Place::Weight(0), Place::Weight(1)];
        Program {
            module: module.unwrap(),
            weights: vec![weight("a"), weight("b")],
            folds: vec![
                fold("rows", &both, &[128, 4]),
                fold("middle", &[Place::Fold(0)], &[1, 64, 4]),
                fold("columns", &both, &[64, 8]),
            ],
            ..Program::default()
        }
    }

    fn reading(args: &[Place]) -> Storage {
        let launches = vec![Launch { kernel: "k".into(), args: args.into(), origin: vec![] }];
        Storage::of(&Program { plans: vec![Plan { launches, ..Plan::default() }], ..program() }, &str::to_owned)
    }

    #[test]
    fn parts_lie_in_what_they_were_joined_to() {
        use Place::{Fold, Weight};
        assert_eq!(runs(&program(), &str::to_owned, Fold(1)), {
            let run = |name: &str, bytes| Run { of: format!("{name}: u4"), bytes };
            [run("a", 64..128), run("b", 0..64)]
        });
        let all = reading(&[Weight(0), Weight(1), Fold(0), Fold(1), Fold(2)]);
        assert_eq!(all.kept, [Fold(0), Fold(2)]);
        assert_eq!([Weight(0), Weight(1), Fold(1)].map(|p| all.find(p)), [Some((0, 0)), Some((0, 128)), Some((0, 64))]);
        // Without the whole both are kept, and what is cut out of them as well: half of it is in either.
        let parts = reading(&[Weight(0), Weight(1), Fold(1)]);
        assert_eq!(parts.kept, [Weight(0), Weight(1), Fold(1)]);
        assert_eq!(parts.find(Fold(0)), None);
    }

    /// Both by themselves, joined, and the joined ones' rows from 8 on, of which no panel is whole.
    #[test]
    fn panels_of_parts_lie_in_those_of_what_they_were_joined_to() {
        let program = || {
            let mut program = program();
            let ty = |n: usize| TensorType::new(DType::U4, [n, 4]);
            let shifted = parse_module(
                "fold @shifted(%0: u4[128, 4]) -> (y: u4[64, 4]) {
                    %1 = slice %0 {axis = 0, start = 8, len = 64} : u4[64, 4]
                    return %1 }",
            );
            program.module.funcs.extend(shifted.unwrap().funcs);
            for n in [64, 128] {
                program.module.funcs.push(panels::fold(&format!("panels{n}"), &ty(n), 2).unwrap());
            }
            let fold =
                |func: &str, arg: Place, ty: TensorType| Fold { func: func.into(), result: 0, args: vec![arg], ty };
            let laid = |n: usize| panels::stored(&ty(n), 2).unwrap();
            program.folds.truncate(1);
            program.folds.extend([
                fold("panels128", Place::Fold(0), laid(128)),
                fold("panels64", Place::Weight(0), laid(64)),
                fold("panels64", Place::Weight(1), laid(64)),
                fold("shifted", Place::Fold(0), ty(64)),
                fold("panels64", Place::Fold(4), laid(64)),
            ]);
            program
        };
        let args = [1, 2, 3, 5].map(Place::Fold).to_vec();
        let launches = vec![Launch { kernel: "k".into(), args, origin: vec![] }];
        let all =
            Storage::of(&Program { plans: vec![Plan { launches, ..Plan::default() }], ..program() }, &str::to_owned);
        assert_eq!(all.kept, [1, 5].map(Place::Fold));
        assert_eq!([2, 3].map(|i| all.find(Place::Fold(i))), [Some((0, 0)), Some((0, 128))]);
    }

    #[test]
    fn copies_lie_in_what_they_are_copies_of() {
        let program = Program {
            plans: vec![Plan {
                launches: vec![Launch {
                    args: vec![Place::Fold(0), Place::Weight(1)],
                    kernel: "k".into(),
                    origin: vec![],
                }],
                ..Plan::default()
            }],
            ..program()
        };
        let known = |name: &str| if name == "b" { "a".to_owned() } else { name.to_owned() };
        assert_eq!(Storage::of(&program, &str::to_owned).find(Place::Weight(1)), Some((0, 128)));
        assert_eq!(Storage::of(&program, &known).find(Place::Weight(1)), Some((0, 0)));
    }

    #[test]
    fn equal_constants_are_one_and_unaligned_parts_are_not_addressed() {
        let run = |of: &str, bytes| Run { of: of.into(), bytes };
        let whole = vec![run("a", 0..256), run("b", 0..256)];
        let cases = [
            (whole.clone(), Some((0, 0))),
            (vec![run("b", 0..256)], Some((0, 256))),
            (vec![run("a", 192..256), run("b", 0..1)], Some((0, 192))),
            (vec![run("a", 32..64)], None),
            (vec![run("a", 128..255), run("b", 0..256)], None),
            (vec![run("a", 128..256), run("b", 64..256)], None),
            (vec![run("a", 128..256), run("b", 0..256), run("c", 0..1)], None),
            (vec![], None),
        ];
        for (part, expected) in cases {
            assert_eq!(nested(&[whole.clone(), part.clone()])[1], expected, "{part:?}");
        }
    }
}
