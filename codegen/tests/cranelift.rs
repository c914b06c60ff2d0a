//! Machine code of every code generator against the interpreter: every conversion, vectors of odd widths, masks,
//! control flow.

mod kernels;

use hadal_codegen::cranelift::{Processor, compile, pack};
use hadal_codegen::{Error, math};
use hadal_ir::kernel::interpret::{self, Buffer};
use hadal_ir::kernel::*;
use hadal_types::{Bindings, DType, Dim, Sym};
use kernels::machines;

/// Runs a kernel in all ways on the same buffers and compares all bytes of what it writes; NaNs are equal.
fn agree(kernel: &Kernel, symbols: &Bindings, args: &[Buffer]) {
    let expanded = math::expand(kernel);
    let mut reference = args.to_vec();
    interpret::run(&expanded, symbols, &mut reference).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
    for (who, compiled) in machines::run_all(kernel, symbols, args, &[1, 2, 5]) {
        for ((want, have), param) in reference.iter().zip(&compiled).zip(&kernel.params) {
            let size = (param.dtype.bits() / 8).max(1) as usize;
            let pairs = want.bytes.chunks(size).zip(have.bytes.chunks(size)).enumerate();
            for (i, (w, h)) in pairs.filter(|(i, _)| want.initialised.get(*i) == Some(&true)) {
                let same = w == h || both_nan(param.dtype, w, h);
                assert!(same, "{who}, {}[{i}]: want {w:x?}, have {h:x?}\n{kernel}", param.name);
            }
        }
    }
}

fn both_nan(dtype: DType, a: &[u8], b: &[u8]) -> bool {
    [a, b].iter().all(|x| match dtype {
        DType::F32 => f32::from_le_bytes([x[0], x[1], x[2], x[3]]).is_nan(),
        DType::F64 => u64::from_le_bytes(std::array::from_fn(|i| x[i])) & (u64::MAX >> 1) > 0x7ff0 << 48,
        DType::BF16 => u16::from_le_bytes([x[0], x[1]]) & 0x7fff > 0x7f80,
        DType::F16 => u16::from_le_bytes([x[0], x[1]]) & 0x7fff > 0x7c00,
        DType::F8E4M3 => x[0] & 0x7f == 0x7f,
        _ => false,
    })
}

/// `y[i..] = cast(x[i..])` over `n` elements in vectors of `lanes`.
fn cast_kernel(from: DType, to: DType, n: usize, lanes: u32) -> Kernel {
    let mut b = Builder::new("cast");
    let x = b.param("x", from, [n], Access::Read);
    let y = b.param("y", to, [n], Access::Write);
    let g = b.grid([n / lanes as usize])[0];
    let width = b.const_i64(lanes as i64);
    let at = b.mul(g, width);
    let v = b.load(x, &[at], lanes);
    let v = b.cast(v, to);
    b.store(y, &[at], v);
    b.finish()
}

/// Interesting bit patterns of a format, a multiple of 64 of them.
fn patterns(dtype: DType) -> Vec<u8> {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    match dtype {
        DType::Bool => (0..=255).map(|i| i % 3 % 2).collect(),
        DType::U8 | DType::I8 | DType::F8E4M3 | DType::F8E8M0 | DType::F4E2M1 | DType::U4 | DType::I4 => {
            (0..=255).collect()
        }
        DType::F16 | DType::BF16 => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
        DType::F32 => {
            // Every exponent with mantissas around each rounding boundary, both signs.
            let tails = [0, 1, 0x7fff, 0x8000, 0x8001, 0xfff, 0x1000, 0x1001, 0x1fff, 0x3000, 0x18000, 0x7fffff];
            let more =
                [0x80000, 0x180000, 0x7ffff, 0x80001, 0x17ffff, 0x280000, 0x400000, 0x200000, 0x600000, 0x3fffff];
            let mut bits: Vec<u32> = (0..=255u32)
                .flat_map(|e| tails.iter().chain(&more).map(move |t| e << 23 | t))
                .flat_map(|b| [b, b | 1 << 31])
                .collect();
            bits.extend((0..6400).map(|_| random() as u32));
            bits.extend((-700..700).map(|i| (i as f32 / 2.0).to_bits()));
            bits.truncate(bits.len() / 64 * 64);
            bits.into_iter().flat_map(u32::to_le_bytes).collect()
        }
        DType::I32 => {
            let edges = [0, 1, -1, i32::MAX, i32::MIN, 255, 256, -128, -129, 1 << 24, (1 << 24) + 1, 127];
            let all = edges.into_iter().chain((0..500).map(|_| random() as i32));
            all.flat_map(i32::to_le_bytes).collect()
        }
        DType::I64 | DType::F64 => (0..512).flat_map(|i| (random() >> (i % 60)).to_le_bytes()).collect(),
    }
}

#[test]
fn every_cast_agrees() {
    for from in DType::ALL {
        for to in DType::ALL {
            if from == to || !verify::can_cast(from, to) {
                continue;
            }
            let bytes = patterns(from);
            let n = bytes.len() * 8 / from.bits() as usize;
            for lanes in [1, 2, 4, 8, 16, 32] {
                if lanes == 1 && to == DType::F4E2M1 {
                    continue;
                }
                let n = if lanes == 1 || lanes == 32 { n.min(4096) } else { n };
                let kernel = cast_kernel(from, to, n, lanes);
                agree(&kernel, &Bindings::new(), &[Buffer::from_bytes(from, bytes.clone()), Buffer::uninit(to, n)]);
            }
        }
    }
}

/// Words of four small floats, taken apart into pairs of bf16: the first two of each word, then the last two.
#[test]
fn pairs_of_small_floats_agree() {
    let mut b = Builder::new("pairs");
    let x = b.param("x", DType::F8E4M3, [256i64], Access::Read);
    let y = b.param("y", DType::BF16, [256i64], Access::Write);
    let g = b.grid([4i64])[0];
    let (width, half, by) = (b.const_i64(64), b.const_i64(32), b.const_i64(32));
    let at = b.mul(g, width);
    let codes = b.load(x, &[at], 64);
    let reals = b.cast(codes, DType::F32);
    let halves = b.cast(reals, DType::BF16);
    let words = b.bitcast(halves, DType::I64);
    let by = b.splat(by, 16);
    let upper = b.ushr(words, by);
    for (words, place) in [(words, at), (upper, b.add(at, half))] {
        let pairs = b.cast(words, DType::I32);
        let pairs = b.bitcast(pairs, DType::BF16);
        b.store(y, &[place], pairs);
    }
    let x = Buffer::from_bytes(DType::F8E4M3, (0..=255).collect());
    agree(&b.finish(), &Bindings::new(), &[x, Buffer::uninit(DType::BF16, 256)]);
}

#[test]
fn masks_loops_and_choices_agree() {
    let mut b = Builder::new("masks");
    let x = b.param("x", DType::BF16, [Dim::from(Sym::T), Dim::from(21)], Access::Read);
    let y = b.param("y", DType::F32, [Dim::from(Sym::T), Dim::from(21)], Access::ReadWrite);
    let sums = b.param("sums", DType::F32, [Sym::T], Access::Write);
    let t = b.grid([Dim::from(Sym::T), Dim::from(1)])[0];
    let tmp = b.alloc("tmp", DType::F32, [Dim::from(Sym::T) * 3 + 32]);
    let fixed = b.alloc("fixed", DType::BF16, [5]);
    let (zero, n, two) = (b.const_i64(0), b.const_i64(21), b.const_f32(2.0));
    let init = b.const_f32(0.0);
    let acc = b.splat(init, 8);
    let out = b.for_loop(zero, n, 8, LoopKind::Serial, &[acc], |b, i, c| {
        let mask = b.lanes_below(i, n, 8);
        let fill = b.const_f32(3.0);
        let fill = b.cast(fill, DType::BF16);
        let v = b.load_masked(x, &[t, i], mask, Some(fill));
        let v = b.cast(v, DType::F32);
        let old = b.load_masked(y, &[t, i], mask, None);
        let w = b.fma(v, two, old);
        b.store_masked(y, &[t, i], w, mask);
        b.store(tmp, &[i], w);
        let again = b.load(tmp, &[i], 8);
        vec![b.add(c[0], again)]
    });
    let sum = b.reduce_lanes(ReduceOp::Add, out[0]);
    b.store(fixed, &[zero], sum);
    let limit = b.sym(Sym::T);
    let odd = b.rem(t, limit);
    let is_zero = b.eq(odd, zero);
    let chosen = b.if_else(is_zero, |b| vec![b.neg(sum)], |b| vec![b.max(sum, two)]);
    b.store(sums, &[t], chosen[0]);
    let kernel = b.finish();
    for t in [0usize, 1, 2, 9] {
        let x: Vec<u8> = (0..t * 21).flat_map(|i| (0x3f00 + (i * 37 % 300) as u16).to_le_bytes()).collect();
        let y: Vec<f32> = (0..t * 21).map(|i| i as f32 * 0.25).collect();
        let args = [Buffer::from_bytes(DType::BF16, x), Buffer::from_f32(&y), Buffer::uninit(DType::F32, t)];
        agree(&kernel, &Bindings::from([(Sym::T, t as i64)]), &args);
    }
}

#[test]
fn integer_division_wraps_and_grids_have_many_dimensions() {
    let mut b = Builder::new("ints");
    let x = b.param("x", DType::I64, [3, 5, 2], Access::Read);
    let y = b.param("y", DType::I64, [3, 5, 2], Access::Write);
    let g = b.grid([3, 5, 2]);
    let a = b.load(x, &g, 1);
    let one = b.const_i64(1);
    let d = b.sub(g[1], one);
    let three = b.const_i64(3);
    let zero = b.const_i64(0);
    let is_zero = b.eq(d, zero);
    let d = b.select(is_zero, three, d);
    let q = b.div(a, d);
    let r = b.rem(a, d);
    let r = b.mul(r, three);
    let s = b.add(q, r);
    b.store(y, &g, s);
    let kernel = b.finish();
    let values = (0..30i64).map(|i| [i64::MIN, i64::MAX, -1, 0, 12345][i as usize % 5].wrapping_add(i / 7));
    let x = Buffer::from_bytes(DType::I64, values.flat_map(i64::to_le_bytes).collect());
    agree(&kernel, &Bindings::new(), &[x, Buffer::uninit(DType::I64, 30)]);
}

/// `y = dot(a, b, c)` of `lanes` sums at each grid index, formats as given.
fn dot_kernel(formats: [DType; 3], n: usize, lanes: u32) -> Kernel {
    let [a_ty, b_ty, c_ty] = formats;
    let group = dot_group(a_ty, b_ty, c_ty).unwrap();
    let mut b = Builder::new("dot");
    let (x, w) = (
        b.param("x", a_ty, [n * group as usize], Access::Read),
        b.param("w", b_ty, [n * group as usize], Access::Read),
    );
    let (c, y) = (b.param("c", c_ty, [n], Access::Read), b.param("y", c_ty, [n], Access::Write));
    let g = b.grid([n / lanes as usize])[0];
    let (width, group_) = (b.const_i64(lanes as i64), b.const_i64(group as i64));
    let at = b.mul(g, width);
    let wide = b.mul(at, group_);
    let (x, w, c) = (b.load(x, &[wide], lanes * group), b.load(w, &[wide], lanes * group), b.load(c, &[at], lanes));
    let sum = b.dot(x, w, c);
    b.store(y, &[at], sum);
    b.finish()
}

#[test]
fn dot_products_agree() {
    let mut numbers = kernels::Numbers(7);
    for formats in
        [[DType::BF16, DType::BF16, DType::F32], [DType::U8, DType::I8, DType::I32], [DType::I8, DType::I8, DType::I32]]
    {
        let n = 4096usize;
        // Bytes of any value; halves and sums of all magnitudes, then those around the smallest normal number.
        for near in [false, true] {
            let mut bytes = |dtype: DType, count: usize| -> Vec<u8> {
                let mut one = || {
                    let any = numbers.below(1 << 32) as u32;
                    match dtype {
                        DType::BF16 if near => {
                            ((0x1800 + any % 0x1000) as u16 | (any >> 16) as u16 & 0x8000).to_le_bytes().to_vec()
                        }
                        DType::BF16 => (any as u16).to_le_bytes().to_vec(),
                        DType::F32 if near => ((0x007f_ffff + any % 3) | (any & 0x8000_0000)).to_le_bytes().to_vec(),
                        DType::F32 | DType::I32 => any.to_le_bytes().to_vec(),
                        _ => vec![any as u8],
                    }
                };
                (0..count).flat_map(|_| one()).collect()
            };
            let group = dot_group(formats[0], formats[1], formats[2]).unwrap() as usize;
            let [x, w] = [formats[0], formats[1]].map(|d| Buffer::from_bytes(d, bytes(d, n * group)));
            let c = Buffer::from_bytes(formats[2], bytes(formats[2], n));
            let args = [x, w, c, Buffer::uninit(formats[2], n)];
            for lanes in [1, 2, 4, 8, 16, 32] {
                let kernel = dot_kernel(formats, n, lanes);
                // The operation itself and what it is expanded into.
                let [whole, expanded] = [kernel.clone(), math::expand(&kernel)].map(|kernel| {
                    let mut args = args.to_vec();
                    interpret::run(&kernel, &Bindings::new(), &mut args).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
                    args.remove(3)
                });
                for (i, (w, e)) in whole.bytes.chunks(4).zip(expanded.bytes.chunks(4)).enumerate() {
                    assert!(w == e || both_nan(formats[2], w, e), "element {i}: {w:x?}, expanded {e:x?}\n{kernel}");
                }
                agree(&kernel, &Bindings::new(), &args);
            }
        }
    }
}

#[test]
fn tables_are_looked_up() {
    let table = std::array::from_fn(|i| (i * 37 % 251) as u8);
    let bytes: Vec<u8> = (0..=255).collect();
    for (from, to) in
        [(DType::U8, DType::I8), (DType::I8, DType::U8), (DType::F4E2M1, DType::I8), (DType::U4, DType::U8)]
    {
        let n = 256 * 8 / from.bits() as usize;
        for lanes in [1, 2, 8, 16, 32, 64, 128] {
            let mut b = Builder::new("lookup");
            let (x, y) = (b.param("x", from, [n], Access::Read), b.param("y", to, [n], Access::Write));
            let g = b.grid([n / lanes as usize])[0];
            let width = b.const_i64(lanes as i64);
            let at = b.mul(g, width);
            let v = b.load(x, &[at], lanes);
            let v = b.lookup(table, v, to);
            b.store(y, &[at], v);
            let kernel = b.finish();
            let args = [Buffer::from_bytes(from, bytes.clone()), Buffer::uninit(to, n)];
            agree(&kernel, &Bindings::new(), &args);
            let mut copy = args.to_vec();
            interpret::run(&kernel, &Bindings::new(), &mut copy).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
            let code = |i: usize| if from.bits() == 4 { bytes[i / 2] >> (4 * (i % 2)) } else { bytes[i] };
            assert!(copy[1].bytes.iter().enumerate().all(|(i, b)| *b == table[code(i) as usize & 15]), "{kernel}");
        }
    }
}

#[test]
fn lanes_are_regrouped() {
    for (from, to) in [
        (DType::BF16, DType::I32),
        (DType::U8, DType::I32),
        (DType::I64, DType::I8),
        (DType::F32, DType::BF16),
        (DType::I4, DType::I32),
        (DType::F4E2M1, DType::U8),
    ] {
        for bits in [64u64, 128, 256, 1024] {
            let (n, lanes) = (4096 / from.bits() as usize, (bits / from.bits()) as u32);
            let mut b = Builder::new("regroup");
            let x = b.param("x", from, [n], Access::Read);
            let m = 4096 / to.bits() as usize;
            let y = b.param("y", to, [m], Access::Write);
            let g = b.grid([n / lanes as usize])[0];
            let (width, other) = (b.const_i64(lanes as i64), b.const_i64((bits / to.bits()) as i64));
            let (at, to_at) = (b.mul(g, width), b.mul(g, other));
            let v = b.load(x, &[at], lanes);
            let v = b.bitcast(v, to);
            b.store(y, &[to_at], v);
            let bytes: Vec<u8> = (0..512u32).map(|i| (i * 37 % 251) as u8).collect();
            let args = [Buffer::from_bytes(from, bytes.clone()), Buffer::uninit(to, m)];
            let kernel = b.finish();
            let mut copy = args.to_vec();
            interpret::run(&kernel, &Bindings::new(), &mut copy).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
            assert_eq!(copy[1].bytes, bytes, "{kernel}");
            agree(&kernel, &Bindings::new(), &args);
        }
    }
}

#[test]
fn gpu_statements_are_refused() {
    let mut b = Builder::new("gpu");
    let (zero, n) = (b.const_i64(0), b.const_i64(4));
    let met = b.barriers("met", 1, 4);
    b.for_each(zero, n, 1, LoopKind::Warp, |b, _| b.arrive(met, zero));
    let error = compile(&b.finish(), &Processor::X86_64_V3).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

#[test]
fn kernels_are_packed_at_64_bytes() {
    let kernels: Vec<_> = [DType::F32, DType::F16]
        .into_iter()
        .map(|to| {
            compile(&cast_kernel(DType::BF16, to, 64, 8), &Processor::X86_64_V3).unwrap_or_else(|e| panic!("{e}"))
        })
        .collect();
    let packed = pack(&kernels);
    assert_eq!(packed.offsets[0], 0);
    assert_eq!(packed.offsets[1] % 64, 0);
    assert_eq!(&packed.code[packed.offsets[1]..], &kernels[1].code[..]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_kernels_agree(bytes in proptest::collection::vec(0u8.., 0..400), seed in 0u64..1000) {
        let kernel = arbitrary::kernel(&bytes);
        agree(&kernel, &Bindings::from([(Sym::T, arbitrary::ROWS)]), &arbitrary::arguments(seed));
    }
}

#[test]
fn a_load_stays_behind_the_store_that_it_reads() {
    let mut b = Builder::new("settled");
    let x = b.param("x", DType::I64, [4usize], Access::Read);
    let y = b.param("y", DType::I64, [4usize], Access::Write);
    let (zero, four) = (b.const_i64(0), b.const_i64(4));
    let held = b.alloc("held", DType::I64, [1usize]);
    let first = b.load(x, &[zero], 1);
    b.store(held, &[zero], first);
    b.for_each(zero, four, 1, LoopKind::Serial, |b, i| {
        // An optimiser finds that this is always 0, so that the load's address does not depend on the loop.
        let at = b.load(x, &[i], 1);
        let at = b.min(at, zero);
        let at = b.max(at, zero);
        let value = b.load(held, &[at], 1);
        b.store(y, &[i], value);
    });
    let numbers = [7i64, -3, 0, 2].iter().flat_map(|v| v.to_le_bytes()).collect();
    agree(&b.finish(), &Bindings::new(), &[Buffer::from_bytes(DType::I64, numbers), Buffer::uninit(DType::I64, 4)]);
}

/// Every test here also runs code for ARM, in an emulator.
#[test]
#[cfg(feature = "llvm-backend")]
fn the_emulator_is_there() {
    assert!(kernels::emulated::is_there(), "qemu-aarch64 is missing: `cargo xtask setup` installs it");
}
