//! Plans of awkward graphs, and what planning refuses.

use crate::common::*;
use hadal_ir::plan::{Place, Program};
use hadal_ir::target::Target;
use hadal_ir::{DType, FuncKind, InstKind, Op};
use hadal_passes::{Error, Options, compile, fuse, plan, run_passes};

const HEAD: &str = "symbols P in 0..15, T in 1..8\n";
const TAIL: &str = "\nentry prefill = @main where T in 1..8\nentry decode = @main where T = 1\n";

fn planned(body: &str) -> Result<Program, Error> {
    let module = parse(&format!("{HEAD}{body}{TAIL}"));
    let (_, program) = compile(&module, &cpu(), &Options::default())?;
    assert_all_close(&sequence(&module), &planned_sequence(&module, &program), 1e-5, body);
    Ok(program)
}

#[test]
fn outputs_that_are_inputs_weights_states_or_twice_the_same() {
    let program = planned(
        "func @main(%x: f32[T, 4]) -> (a: f32[T, 4], b: f32[8], c: f32[P+T, 4], d: f32[T, 4], e: f32[4*T], g: f32[T, 2]) {
           weight %w = \"w\" : f32[8]
           state %s = \"s\" : f32[P, 4]
           %all = append %s, %x : f32[P+T, 4]
           %n = neg %x : f32[T, 4]
           %f = reshape %n {shape = [4*T]} : f32[4*T]
           %h = slice %n {axis = 1, start = 0, len = 2} : f32[T, 2]
           next %s = %all
           return %x, %w, %all, %n, %f, %h }",
    )
    .unwrap();
    assert_eq!(program.plan("prefill").unwrap().outputs.len(), 6);
}

#[test]
fn nothing_to_do_is_a_plan_too() {
    let program = planned("func @main(%x: f32[T, 4]) -> () { return }").unwrap();
    assert!(program.plans.iter().all(|p| p.launches.is_empty() && p.arena_bytes == 0));
}

#[test]
fn weights_alone_are_folded_once() {
    let program = planned(
        "func @layer(%x: f32[T, 4]) -> (y: f32[T, 4]) {
           weight %w = \"w\" : bf16[4]
           %f = cast %w {to = f32} : f32[4]
           %e = exp %f : f32[4]
           %b = broadcast %e {shape = [T, 4], dims = [1]} : f32[T, 4]
           %y = mul %x, %b : f32[T, 4]
           return %y }
         func @main(%x: f32[T, 4]) -> (y: f32[T, 4]) {
           %a = call @layer(%x) at \"0.\" : f32[T, 4]
           %b = call @layer(%a) at \"1.\" : f32[T, 4]
           return %b }",
    )
    .unwrap();
    assert_eq!(program.folds.len(), 2, "{program}");
    assert_eq!(program.folds[1].args, [Place::Weight(1)]);
}

#[test]
fn a_state_that_is_only_read_stays() {
    planned(
        "func @main(%x: f32[T, 4]) -> (y: f32[T, 4]) {
           state %s = \"s\" : f32[P, 4]
           %all = append %s, %x : f32[P+T, 4]
           %sum = reduce %all {kind = sum, axes = [0]} : f32[4]
           %b = broadcast %sum {shape = [T, 4], dims = [1]} : f32[T, 4]
           %y = add %x, %b : f32[T, 4]
           next %s = %all
           return %y }",
    )
    .unwrap();
}

#[test]
fn old_rows_may_be_read_before_new_ones_are_written() {
    planned(
        "func @main(%x: f32[T, 4]) -> (y: f32[4]) {
           state %s = \"s\" : f32[P, 4]
           %all = append %s, %x : f32[P+T, 4]
           %sum = reduce %s {kind = sum, axes = [0]} : f32[4]
           next %s = %all
           return %sum }",
    )
    .unwrap();
}

#[test]
fn refusals() {
    let refused = |body: &str| {
        let module = parse(&format!("{HEAD}{body}{TAIL}"));
        compile(&module, &cpu(), &Options::default()).unwrap_err()
    };
    let replaced = refused(
        "func @main(%x: f32[T, 4]) -> () {
           state %s = \"s\" : f32[P, 4]
           %n = neg %s : f32[P, 4]
           next %s = %n
           return }",
    );
    assert_eq!(replaced, Error::NotAppended("s".into()));
    let late = refused(
        "func @main(%x: f32[T, 4]) -> (y: f32[T, 4]) {
           state %s = \"s\" : f32[P, 4]
           %all = append %s, %x : f32[P+T, 4]
           %a = reduce %all {kind = sum, axes = [0]} : f32[4]
           %ab = broadcast %a {shape = [P, 4], dims = [1]} : f32[P, 4]
           %b = contract %s, %ab {spec = \"pd,pd->d\"} : f32[4]
           %y = broadcast %b {shape = [T, 4], dims = [1]} : f32[T, 4]
           next %s = %all
           return %y }",
    );
    assert!(matches!(late, Error::ReadAfterAppend { .. }), "{late}");
    let twice = refused(
        "func @layer(%x: f32[T, 4]) -> () {
           state %s = \"s\" : f32[P, 4]
           %all = append %s, %x : f32[P+T, 4]
           next %s = %all
           return }
         func @main(%x: f32[T, 4]) -> () {
           call @layer(%x) at \"a.\"
           call @layer(%x) at \"a.\"
           return }",
    );
    assert!(matches!(twice, Error::ReadAfterAppend { .. } | Error::AppendedTwice { .. }), "{twice}");
    let huge = refused(
        "func @main(%x: f32[T, 4]) -> (y: f32[T, 4611686018427387904]) {
           %y = broadcast %x {shape = [T, 4, 1152921504606846976], dims = [0, 1]} : f32[T, 4, 1152921504606846976]
           %n = neg %y : f32[T, 4, 1152921504606846976]
           %z = reshape %n {shape = [T, 4611686018427387904]} : f32[T, 4611686018427387904]
           %m = neg %z : f32[T, 4611686018427387904]
           return %m }",
    );
    assert!(matches!(huge, Error::TooLarge { .. }), "{huge}");
    let module =
        parse(&format!("{HEAD}func @main(%x: f32[T]) -> (y: f32[T]) {{ %y = neg %x : f32[T]\n return %y }}{TAIL}"));
    assert_eq!(plan::run(&module, 16).unwrap_err(), Error::NotFused("main".into()));
    let unknown = run_passes(&module, ["polish"], &cpu(), &Options::default()).unwrap_err();
    assert_eq!(unknown, Error::UnknownPass("polish".into()));
}

#[test]
fn a_damaged_plan_is_noticed() {
    let module = parse(include_str!("hir/latent.hir"));
    let (_, program) = compile(&module, &cpu(), &Options::default()).unwrap();
    let fails = |damage: fn(&mut hadal_ir::plan::Plan)| {
        let mut plan = program.plans[0].clone();
        damage(&mut plan);
        assert!(matches!(plan::check(&program, &plan), Err(Error::BadPlan { .. })));
    };
    plan::check(&program, &program.plans[0]).unwrap();
    fails(|p| p.launches.swap(0, 4));
    fails(|p| p.buffers[0].offset = p.buffers[1].offset);
    fails(|p| p.buffers[0].offset += 1);
    fails(|p| p.buffers[0].last = 0);
    fails(|p| p.arena_bytes = 64);
    fails(|p| p.launches.truncate(p.launches.len() - 1));
    fails(|p| p.launches[3].args.truncate(1));
    fails(|p| p.launches[3].kernel = "none".into());
}

#[test]
fn kernels_hold_what_they_may() {
    let module = parse(include_str!("hir/latent.hir"));
    for rewrite in [true, false] {
        let options = Options { rewrite, ..Options::default() };
        let (fused, _) = compile(&module, &cpu(), &options).unwrap();
        for f in &fused.module.funcs {
            let ops = f.insts.iter().filter_map(|i| if let InstKind::Op(op) = &i.kind { Some(op) } else { None });
            let heavy = ops.clone().filter(|op| matches!(op, Op::Contract(_) | Op::Attention(_))).count();
            match f.kind {
                FuncKind::Graph => assert!(ops.clone().all(|op| matches!(op, Op::Reshape(_))), "@{}", f.name),
                FuncKind::Kernel | FuncKind::Fold => {
                    assert!(heavy <= 1, "@{}", f.name);
                    let row = |op: &Op| matches!(op, Op::Reduce(_) | Op::RmsNorm(_) | Op::Softmax(_) | Op::TopK(_));
                    assert!(heavy == 0 || !ops.clone().any(row), "@{}", f.name);
                }
            }
        }
        let names: Vec<&str> = fused.module.funcs.iter().map(|f| f.name.as_str()).collect();
        let attention = names.iter().any(|n| n.starts_with("attention"));
        assert_eq!(attention, rewrite, "{names:?}");
        assert!(names.contains(&"rms_norm_append") && names.contains(&"contract_bf16_td_fd_add"), "{names:?}");
        // Fusing what is fused changes nothing.
        assert_eq!(fuse::run(&fused.module, &cpu()).funcs.len(), fused.module.funcs.len());
    }
}

/// What products multiply at eight bits is handed on at eight bits, where the target multiplies so.
#[test]
fn narrow_factors_stay_narrow() {
    let module = parse(&format!(
        "{HEAD}func @main(%x: f32[T, 128]) -> (y: f32[T, 4]) {{
           weight %w = \"w\" : f8e4m3[4, 128]
           weight %s = \"s\" : f32[1, 1]
           %a = abs %x : f32[T, 128]
           %r = reduce %a {{kind = max, axes = [1]}} : f32[T]
           %m = reshape %r {{shape = [T, 1]}} : f32[T, 1]
           %b = broadcast %r {{shape = [T, 128], dims = [0]}} : f32[T, 128]
           %v = div %x, %b : f32[T, 128]
           %q = cast %v {{to = f8e4m3}} : f8e4m3[T, 128]
           %d = dequantize %q, %m {{block = [1, 128]}} : f32[T, 128]
           %e = dequantize %w, %s {{block = [4, 128]}} : f32[4, 128]
           %y = contract %d, %e {{spec = \"td,fd->tf\"}} : f32[T, 4]
           return %y }}{TAIL}"
    ));
    for (target, expected) in [(cpu(), DType::F32), (Target::by_name("h200").unwrap(), DType::F8E4M3)] {
        let (fused, program) = compile(&module, &target, &Options::default()).unwrap();
        assert_all_close(&sequence(&module), &planned_sequence(&module, &program), 1e-5, &target.name);
        let contracts = fused.module.funcs.iter().filter(|f| f.name.starts_with("contract"));
        let given: Vec<DType> = contracts.map(|f| f.ty(f.params[0]).dtype).collect();
        assert!(!given.is_empty() && given.iter().all(|d| *d == expected), "{}: {given:?}", target.name);
    }
}
