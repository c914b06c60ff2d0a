//! What happens to each element after the sum: elementwise expressions over the sum, constants and parameters.

use super::env::Env;
use super::view::{Access, Affine, Tracer, Var, Vars};
use hadal_ir::kernel::{Builder, Value};
use hadal_ir::module::ValueId;
use hadal_ir::ops::Op;
use hadal_ir::ops::map::MapFn;
use hadal_types::{DType, Dim};
use std::collections::BTreeMap;

/// One step of the epilogue; operands are earlier nodes.
#[derive(Clone, PartialEq, Debug)]
pub enum Node {
    /// The finished sum.
    Sum,
    /// The finished sum, or zero where this integer is outside an axis with this last element.
    SumInside(Box<Access>, Dim),
    /// The same number everywhere.
    Const(f32),
    /// An element of a parameter.
    Load(Access),
    /// Rounding to a format.
    Cast(DType, usize),
    /// An elementwise function.
    Map(MapFn, Vec<usize>),
}

/// A value that is stored.
#[derive(Clone, PartialEq, Debug)]
pub struct Output {
    /// What is stored.
    pub node: usize,
    /// The parameter's position (results follow the function's parameters).
    pub param: usize,
    /// Its format.
    pub dtype: DType,
    /// Element number.
    pub at: Affine,
}

/// All nodes and what is stored.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Epilogue {
    /// In order of computation.
    pub nodes: Vec<Node>,
    /// One per result.
    pub outputs: Vec<Output>,
}

impl Epilogue {
    fn push(&mut self, node: Node) -> usize {
        if let Some(known) = self.nodes.iter().position(|n| *n == node) {
            return known;
        }
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Whether a node needs transcendental functions or divisions, which are worth doing on vectors.
    pub fn is_heavy(&self) -> bool {
        use MapFn::*;
        let heavy = |f: &MapFn| matches!(f, Exp | Log | Log1p | Sin | Cos | Tanh | Erf | Sigmoid | Div | Sqrt | Rsqrt);
        self.nodes.iter().any(|n| matches!(n, Node::Map(f, _) if heavy(f)))
    }

    /// Every parameter element read.
    pub fn loads(&self) -> impl Iterator<Item = &Access> {
        self.nodes.iter().filter_map(|n| match n {
            Node::Load(a) => Some(a),
            _ => None,
        })
    }
}

/// Reads the epilogue of `root`, whose element coordinates are `coords`. `None` where something is not elementwise.
pub fn trace(t: &mut Tracer<'_>, root: ValueId, coords: Vec<Affine>) -> Option<Epilogue> {
    // Values computed from the root, with coordinates of the element that one element of the root becomes.
    let mut chain = BTreeMap::from([(root, (coords, 0))]);
    let mut epilogue = Epilogue { nodes: vec![Node::Sum], outputs: Vec::new() };
    let func = t.func;
    for inst in &func.insts {
        let value = inst.results[0];
        let of_chain: Vec<ValueId> = inst.args.iter().copied().filter(|a| chain.contains_key(a)).collect();
        let Some(first) = of_chain.first() else { continue };
        let (coords, node) = chain[first].clone();
        let (op, _) = t.def(value)?;
        let next = match op {
            Op::Map(m) => {
                if of_chain.iter().any(|a| chain[a].0 != coords) {
                    return None;
                }
                let args: Option<Vec<usize>> = inst
                    .args
                    .iter()
                    .map(|a| match chain.get(a) {
                        Some((_, node)) => Some(*node),
                        None => side(t, &mut epilogue, *a, coords.clone()),
                    })
                    .collect();
                let node = epilogue.push(Node::Map(m.f, args?));
                (coords, node)
            }
            // A truth value has no real to begin from; the loop generator casts it.
            Op::Cast(c) if c.to.is_float() && c.to != DType::F64 && is_real(t.ty(*first).dtype) => {
                let node = if c.to == DType::F32 { node } else { epilogue.push(Node::Cast(c.to, node)) };
                (coords, node)
            }
            Op::Reshape(r) => (t.vars.reshape(&coords, &t.ty(*first).shape, &r.shape)?, node),
            Op::Transpose(p) => (p.perm.iter().map(|i| coords[*i].clone()).collect(), node),
            // Only the new rows are computed, so nothing may read the whole, and the old rows must be the state's.
            Op::Append(_)
                if chain.contains_key(&inst.args[1])
                    && of_chain.len() == 1
                    && t.def(inst.args[0]).is_none()
                    && !func.insts.iter().any(|i| i.args.contains(&value)) =>
            {
                let mut coords = coords;
                coords[0] = coords[0].clone().plus(&t.ty(inst.args[0]).shape[0].clone().into());
                (coords, node)
            }
            _ => return None,
        };
        chain.insert(value, next);
    }
    for (i, (_, value)) in func.results.iter().enumerate() {
        let (coords, node) = chain.get(value)?;
        let ty = t.ty(*value);
        if !ty.dtype.is_float() || matches!(ty.dtype, DType::F64 | DType::F4E2M1) {
            return None;
        }
        let at = t.vars.linear(coords, &ty.shape)?;
        epilogue.outputs.push(Output { node: *node, param: func.params.len() + i, dtype: ty.dtype, at });
    }
    Some(epilogue)
}

/// A value that does not depend on the sum, at these coordinates.
fn side(t: &mut Tracer<'_>, e: &mut Epilogue, value: ValueId, coords: Vec<Affine>) -> Option<usize> {
    let Some((op, inst)) = t.def(value) else {
        let access = t.access(value, coords)?;
        return is_real(access.dtype).then(|| e.push(Node::Load(access)));
    };
    match op {
        Op::Constant(c) => match c.values.as_slice() {
            [v] if c.dtype.is_float() => Some(e.push(Node::Const(v.0 as f32))),
            _ => None,
        },
        Op::Map(m) => {
            let args: Option<Vec<usize>> = inst.args.iter().map(|a| side(t, e, *a, coords.clone())).collect();
            let args = args?;
            Some(e.push(Node::Map(m.f, args)))
        }
        Op::Cast(c) if is_real(c.to) && is_real(t.ty(inst.args[0]).dtype) => {
            let arg = side(t, e, inst.args[0], coords)?;
            Some(if c.to == DType::F32 { arg } else { e.push(Node::Cast(c.to, arg)) })
        }
        Op::Dequantize(_) => {
            let access = t.access(value, coords)?;
            Some(e.push(Node::Load(access)))
        }
        _ => {
            let (from, coords) = t.step(op, &inst.args, &coords)?;
            side(t, e, from, coords)
        }
    }
}

/// Formats that the special generators load and compute with in f32.
pub fn is_real(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16 | DType::F8E4M3 | DType::F8E8M0)
}

/// Formats that they load where a scale goes with them.
pub fn is_code(dtype: DType) -> bool {
    is_real(dtype) || matches!(dtype, DType::F4E2M1 | DType::U8 | DType::I8 | DType::U4 | DType::I4)
}

/// An elementwise function, lane by lane.
pub fn emit_map(b: &mut Builder, f: MapFn, x: &[Value]) -> Value {
    use MapFn::*;
    match f {
        Neg => b.neg(x[0]),
        Abs => b.abs(x[0]),
        Exp => b.exp(x[0]),
        Log => b.log(x[0]),
        Sqrt => b.sqrt(x[0]),
        Rsqrt => {
            let (one, root) = (b.const_f32(1.0), b.sqrt(x[0]));
            b.div(one, root)
        }
        Sin => b.sin(x[0]),
        Cos => b.cos(x[0]),
        Log1p => {
            // As in the loop generator: the quotient corrects the rounding of 1 + x.
            let (one, large) = (b.const_f32(1.0), b.const_f32(f32::MAX));
            let u = b.add(x[0], one);
            let rest = b.sub(u, one);
            let (log, ratio) = (b.log(u), b.div(x[0], rest));
            let corrected = b.mul(log, ratio);
            let (same, huge) = (b.eq(u, one), b.gt(u, large));
            let y = b.select(huge, log, corrected);
            b.select(same, x[0], y)
        }
        Pow2Ceil => b.pow2_ceil(x[0]),
        Tanh => b.tanh(x[0]),
        Erf => b.erf(x[0]),
        Sigmoid => {
            let (one, minus) = (b.const_f32(1.0), b.neg(x[0]));
            let e = b.exp(minus);
            let sum = b.add(e, one);
            b.div(one, sum)
        }
        Floor => b.floor(x[0]),
        Not => b.not(x[0]),
        Add => b.add(x[0], x[1]),
        Sub => b.sub(x[0], x[1]),
        Mul => b.mul(x[0], x[1]),
        Div => b.div(x[0], x[1]),
        Max => b.max(x[0], x[1]),
        Min => b.min(x[0], x[1]),
        Lt => b.lt(x[0], x[1]),
        Le => b.le(x[0], x[1]),
        Eq => b.eq(x[0], x[1]),
        And => b.and(x[0], x[1]),
        Or => b.or(x[0], x[1]),
        Xor => b.xor(x[0], x[1]),
        Rem => b.rem(x[0], x[1]),
        Select => b.select(x[0], x[1], x[2]),
    }
}

/// From the finished sums to memory. `lane` is the letter along the lanes of `sum`.
pub fn finish(
    b: &mut Builder,
    epilogue: &Epilogue,
    env: &Env<'_>,
    sum: Value,
    lane: Option<(Var, u32)>,
    mask: Option<Value>,
) {
    let mut values: Vec<Value> = Vec::new();
    for node in &epilogue.nodes {
        let value = match node {
            Node::Sum => sum,
            Node::SumInside(index, last) => {
                let (inside, none) = (env.inside(b, index, last), b.const_f32(0.0));
                b.select(inside, sum, none)
            }
            Node::Const(x) => b.const_f32(*x),
            Node::Load(access) => env.read(b, access, lane, mask),
            Node::Cast(to, x) => {
                let narrow = b.cast(values[*x], *to);
                b.cast(narrow, DType::F32)
            }
            Node::Map(f, args) => {
                let args: Vec<Value> = args.iter().map(|a| values[*a]).collect();
                emit_map(b, *f, &args)
            }
        };
        values.push(value);
    }
    for output in &epilogue.outputs {
        let at = env.at(b, &output.at);
        let value = values[output.node];
        let value = b.splat(value, lane.map_or(1, |(_, lanes)| lanes));
        match mask {
            Some(mask) => b.store_masked(env.bufs[output.param], &[at], value, mask),
            None => b.store(env.bufs[output.param], &[at], value),
        }
    }
}

/// How an address changes over the lanes of a vector along `var`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Along {
    /// Not at all.
    Same,
    /// By one element a lane.
    Consecutive,
    /// Some other way: lanes are done one by one.
    Other,
}

/// How `access` moves along `var`.
pub fn along(vars: &Vars, access: &Access, var: Var) -> Along {
    if !vars.reads(access, var) {
        return Along::Same;
    }
    let unscaled = access.parts().all(|p| !vars.reads(p, var));
    match vars.stride(&access.at, var) {
        Some(k) if k.is(1) && unscaled && vars.whole_bytes(access, var) => Along::Consecutive,
        _ => Along::Other,
    }
}

/// Whether the epilogue and all stores can be done on vectors along `var`.
pub fn on_vectors(vars: &Vars, epilogue: &Epilogue, var: Var) -> bool {
    let loads = epilogue.loads().all(|a| along(vars, a, var) != Along::Other);
    loads && epilogue.outputs.iter().all(|o| vars.stride(&o.at, var).is_some_and(|s| s.is(1)))
}
