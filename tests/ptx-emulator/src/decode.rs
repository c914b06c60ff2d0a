//! From words to the decoded form: every instruction is chosen here, once, and so is every error about one.
//!
//! A kernel is decoded together with the functions that it calls, whose registers and variables get places of their
//! own behind those of the kernel: functions cannot call themselves, so nothing needs a stack.

mod args;
mod copy;
mod matrix;
mod memory;
mod minimum;
mod scalar;
mod sync;

use std::collections::HashMap;

use crate::error::{ErrorKind, Result, unsupported};
use crate::program::{Inst, Op, Program};
use crate::syntax::{Base, Bounds, Function, Operand, Symbol, Text};
use crate::types::{Space, Type};
use args::Builder;

/// Where parameters of calls begin in the space `.param`, above those of any kernel.
pub(crate) const CALL_PARAMS: u64 = 1 << 20;
const MAX_INSTS: usize = 1 << 22;
const MAX_LOCAL: u64 = 512 << 10;

type Located<T> = std::result::Result<T, (u32, ErrorKind)>;

/// Where the variables of a kernel lie in their spaces.
struct Placement<'a> {
    module: &'a HashMap<Symbol, u64>,
    here: HashMap<Symbol, u64>,
}

impl Placement<'_> {
    fn of(&self, symbol: Symbol) -> Option<u64> {
        self.here.get(&symbol).or_else(|| self.module.get(&symbol)).copied()
    }
}

/// Decodes all kernels, and the functions that none of them calls too, for their errors.
pub(crate) fn kernels(text: &Text, addresses: &HashMap<Symbol, u64>) -> Located<Vec<Program>> {
    let mut found = Vec::new();
    let mut reached = vec![false; text.functions.len()];
    let mut total = 0;
    for (index, function) in text.functions.iter().enumerate() {
        if function.entry {
            let program = kernel(text, addresses, index, &mut reached, &mut total)?;
            found.push(program);
        }
    }
    for index in 0..text.functions.len() {
        if !reached[index] {
            kernel(text, addresses, index, &mut reached, &mut total)?;
        }
    }
    Ok(found)
}

/// The functions that one calls, itself first, callers before those that they call.
fn reachable(text: &Text, root: usize) -> Located<Vec<usize>> {
    let calls = |index: usize| {
        text.functions[index].insts.iter().filter(|i| i.opcode.starts_with("call")).filter_map(|inst| {
            inst.operands.iter().find_map(|o| match o {
                Operand::Name(name, _) => text.by_name.get(name).copied(),
                _ => None,
            })
        })
    };
    let mut callers: HashMap<usize, usize> = HashMap::from([(root, 0)]);
    let mut work = vec![root];
    while let Some(index) = work.pop() {
        for callee in calls(index) {
            let seen = callers.contains_key(&callee);
            *callers.entry(callee).or_default() += 1;
            if !seen {
                work.push(callee);
            }
        }
    }
    let mut order = Vec::new();
    let mut ready = if callers[&root] == 0 { vec![root] } else { Vec::new() };
    while let Some(index) = ready.pop() {
        order.push(index);
        for callee in calls(index) {
            if let Some(left) = callers.get_mut(&callee) {
                *left -= 1;
                if *left == 0 {
                    ready.push(callee);
                }
            }
        }
    }
    if order.len() < callers.len() {
        let function = &text.functions[root];
        return Err((function.line, ErrorKind::Recursion { name: function.name.to_string() }));
    }
    Ok(order)
}

fn kernel(
    text: &Text,
    addresses: &HashMap<Symbol, u64>,
    root: usize,
    reached: &mut [bool],
    total: &mut usize,
) -> Located<Program> {
    let functions = reachable(text, root)?;
    let entry = &text.functions[root];
    let mut program = Program {
        name: entry.name.to_string(),
        insts: Vec::new(),
        registers: Vec::new(),
        opcodes: Vec::new(),
        params: Vec::new(),
        param_bytes: 0,
        local_bytes: 0,
        static_shared: 0,
        dynamic_shared: 0,
        bounds: entry.bounds,
        products: false,
        start_registers: start_registers(&entry.bounds),
    };
    let mut placement = Placement { module: addresses, here: HashMap::new() };
    place(text, entry, &functions, &mut program, &mut placement).map_err(|kind| (entry.line, kind))?;

    let mut starts = HashMap::new();
    let mut at = 0u32;
    for &index in &functions {
        starts.insert(index, at);
        // One more for the return at the end.
        at += text.functions[index].insts.len() as u32 + 1;
        reached[index] = true;
    }
    *total += at as usize;
    if *total > MAX_INSTS {
        return Err((entry.line, ErrorKind::Limit { what: "instructions", limit: MAX_INSTS }));
    }
    let mut opcodes: HashMap<Box<str>, u32> = HashMap::new();
    for &index in &functions {
        let function = &text.functions[index];
        let first = program.registers.len() as u32;
        program.registers.extend(function.register_names.iter().cloned());
        let carry = program.registers.len() as u32;
        program.registers.push("the carry".into());
        let start = starts[&index];
        for raw in &function.insts {
            let at = |kind| (raw.line, kind);
            let mut builder = Builder::new(text, function, &placement, first, carry, start, &raw.operands);
            let words: Vec<&str> = raw.opcode.split('.').collect();
            minimum::check(text, &words).map_err(at)?;
            let op = if words[0] == "call" {
                call(&mut builder, &words, &starts).map_err(at)?
            } else {
                instruction(&mut builder, &words).map_err(at)?
            };
            builder.finish(&words).map_err(at)?;
            program.products |= matches!(op, Op::Wgmma { .. });
            let guard = raw.guard.map(|(register, negate)| (register + first, negate));
            if let Some((register, _)) = guard {
                builder.reads.push(register);
            }
            let next = opcodes.len() as u32;
            let opcode = *opcodes.entry(raw.opcode.clone()).or_insert_with(|| {
                program.opcodes.push(raw.opcode.clone());
                next
            });
            program.insts.push(Inst {
                op,
                guard,
                line: raw.line,
                opcode,
                reads: builder.reads.into(),
                writes: builder.writes.into(),
                passes: builder.passes,
                flops: builder.flops,
            });
        }
        let next = opcodes.len() as u32;
        let opcode = *opcodes.entry("ret".into()).or_insert_with(|| {
            program.opcodes.push("ret".into());
            next
        });
        program.insts.push(Inst {
            op: Op::Return,
            guard: None,
            line: function.insts.last().map_or(function.line, |i| i.line),
            opcode,
            reads: Box::new([]),
            writes: Box::new([]),
            passes: false,
            flops: None,
        });
    }
    Ok(program)
}

/// What the assembler can give each thread of the largest block.
fn start_registers(bounds: &Bounds) -> u32 {
    let threads = bounds
        .required_threads
        .or(bounds.max_threads)
        .map_or(1024, |t| t.iter().fold(1u32, |n, x| n.saturating_mul(*x)));
    let most = (1 << 16) / threads.clamp(32, 1024).next_multiple_of(32);
    bounds.max_registers.unwrap_or(most).min(most).min(255) / 8 * 8
}

/// Gives every variable of a kernel and its functions an offset in its space.
fn place(
    text: &Text,
    entry: &Function,
    functions: &[usize],
    program: &mut Program,
    placement: &mut Placement,
) -> Result<()> {
    let mut param = 0u64;
    if entry.entry {
        for &symbol in &entry.params {
            let variable = &text.variables[symbol as usize];
            param = param.next_multiple_of(u64::from(variable.align));
            placement.here.insert(symbol, param);
            program.params.push((param as u32, variable.size as u32, variable.align));
            param += variable.size;
        }
    }
    if param > 32764 {
        return Err(ErrorKind::Limit { what: "bytes of parameters", limit: 32764 });
    }
    program.param_bytes = param as u32;
    let mut local = 0u64;
    let mut shared: Vec<Symbol> = Vec::new();
    let mut seen = vec![false; text.variables.len()];
    for &index in functions {
        let function = &text.functions[index];
        let params: &[Symbol] = if function.entry { &[] } else { &function.params };
        for &symbol in params.iter().chain(&function.returns).chain(&function.locals) {
            let variable = &text.variables[symbol as usize];
            match variable.space {
                Space::Param | Space::Local => {
                    local = local.next_multiple_of(u64::from(variable.align));
                    let base = if variable.space == Space::Param { CALL_PARAMS } else { 0 };
                    placement.here.insert(symbol, base + local);
                    local += variable.size;
                }
                _ => {
                    shared.push(symbol);
                    seen[symbol as usize] = true;
                }
            }
        }
        for operand in function.insts.iter().flat_map(|i| &i.operands) {
            let symbol = match operand {
                Operand::Variable(symbol, _) => *symbol,
                Operand::Address { base: Base::Variable(symbol), .. } => *symbol,
                _ => continue,
            };
            let new = !std::mem::replace(&mut seen[symbol as usize], true);
            if new && text.variables[symbol as usize].space == Space::Shared {
                shared.push(symbol);
            }
        }
    }
    if local > MAX_LOCAL {
        return Err(ErrorKind::Limit { what: "bytes of local memory", limit: MAX_LOCAL as usize });
    }
    program.local_bytes = local as u32;
    let mut offset = 0u64;
    let mut dynamic_align = 16u64;
    for &symbol in &shared {
        let variable = &text.variables[symbol as usize];
        if variable.external {
            dynamic_align = dynamic_align.max(u64::from(variable.align));
            continue;
        }
        offset = offset.next_multiple_of(u64::from(variable.align));
        placement.here.insert(symbol, offset);
        offset += variable.size;
    }
    program.static_shared = offset.min(u64::from(u32::MAX) / 2) as u32;
    let dynamic = u64::from(program.static_shared).next_multiple_of(dynamic_align);
    program.dynamic_shared = dynamic as u32;
    for &symbol in &shared {
        if text.variables[symbol as usize].external {
            placement.here.insert(symbol, dynamic);
        }
    }
    Ok(())
}

/// `call{.uni} (returns), name, (params);`
fn call(b: &mut Builder, words: &[&str], starts: &HashMap<usize, u32>) -> Result<Op> {
    if !matches!(words, ["call"] | ["call", "uni"]) {
        return unsupported(words.join("."));
    }
    let operands = b.rest();
    let position = operands.iter().position(|o| matches!(o, Operand::Name(..)));
    let Some((at, Operand::Name(name, _))) = position.map(|p| (p, &operands[p])) else {
        return unsupported("a call through a register");
    };
    let Some(&index) = b.text.by_name.get(name) else {
        return Err(ErrorKind::Undeclared { name: name.to_string() });
    };
    let callee = &b.text.functions[index];
    if callee.entry {
        return unsupported("a call of a kernel");
    }
    let list = |o: Option<&Operand>| match o {
        Some(Operand::List(list)) => Ok(list.clone()),
        None => Ok(Vec::new()),
        Some(_) => unsupported("a call through a prototype"),
    };
    let returns = list(at.checked_sub(1).map(|p| &operands[p]))?;
    let params = list(operands.get(at + 1))?;
    let pairs = |given: &[Operand], wanted: &[Symbol], what: &str| -> Result<Box<[(u32, u32, u32)]>> {
        if given.len() != wanted.len() {
            return crate::error::operand(what, wanted.len().to_string(), given.len().to_string());
        }
        let mut found = Vec::new();
        for (given, &wanted) in given.iter().zip(wanted) {
            let Operand::Variable(given, 0) = given else {
                return unsupported("a call with anything but `.param` variables");
            };
            let size = |s: Symbol| b.text.variables[s as usize].size;
            let (Some(from), Some(to)) = (b.place(*given), b.place(wanted)) else {
                return unsupported("this parameter");
            };
            if from < CALL_PARAMS || size(*given) != size(wanted) {
                return crate::error::operand(what, format!("{} bytes", size(wanted)), format!("{}", size(*given)));
            }
            found.push(((from - CALL_PARAMS) as u32, (to - CALL_PARAMS) as u32, size(wanted) as u32));
        }
        Ok(found.into())
    };
    Ok(Op::Call {
        target: starts[&index],
        give: pairs(&params, &callee.params, "the parameters")?,
        take: pairs(&returns, &callee.returns, "the results")?,
    })
}

fn instruction(b: &mut Builder, words: &[&str]) -> Result<Op> {
    match words[0] {
        "ld" | "ldu" => memory::load(b, words),
        "st" => memory::store(b, words),
        "atom" | "red" => memory::atomic(b, words),
        "membar" | "fence" => sync::fence(words),
        "cvta" | "isspacep" | "mapa" | "getctarank" => memory::address(b, words),
        "prefetch" | "prefetchu" | "applypriority" | "discard" | "createpolicy" => memory::hint(b, words),
        "bar" | "barrier" => sync::barrier(b, words),
        "mbarrier" => sync::mbarrier(b, words),
        "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => sync::warp(b, words),
        "cp" => copy::copy(b, words),
        "ldmatrix" | "stmatrix" => matrix::fragments(b, words),
        "mma" => matrix::mma(b, words),
        "wgmma" => matrix::wgmma(b, words),
        "setmaxnreg" => matrix::registers(b, words),
        _ => scalar::instruction(b, words),
    }
}

/// The type at the end of an opcode.
fn last_type(words: &[&str]) -> Result<Type> {
    match words.last().and_then(|w| Type::parse(w)) {
        Some(ty) => Ok(ty),
        None => unsupported(words.join(".")),
    }
}
