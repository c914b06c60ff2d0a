//! Sessions: calls, states, threads and refusals.

mod toy;

use hadal_runtime::{Error, Pool, Session};
use toy::{CONTEXT, VOCAB, session};

fn call(s: &mut Session, entry: &str, tokens: &[i32], rows: usize) -> Result<Vec<f32>, Error> {
    let mut logits = vec![0f32; rows * VOCAB];
    let entry = s.entry(entry)?;
    s.run(entry, tokens.len(), &[bytemuck::cast_slice(tokens)], &mut [bytemuck::cast_slice_mut(&mut logits)])?;
    Ok(logits)
}

const TOKENS: [i32; 7] = [0, 5, 9, 2, 11, 3, 8];

#[test]
fn chunks_single_steps_and_all_rows_agree() {
    let all = call(&mut session(1), "logits", &TOKENS, 7).unwrap();
    let mut chunked = session(1);
    call(&mut chunked, "prefill", &TOKENS[..3], 1).unwrap();
    let last = call(&mut chunked, "prefill", &TOKENS[3..], 1).unwrap();
    assert_eq!(last, all[6 * VOCAB..]);
    let mut single = session(1);
    for (i, token) in TOKENS.iter().enumerate() {
        assert_eq!(call(&mut single, "decode", &[*token], 1).unwrap(), all[i * VOCAB..][..VOCAB], "row {i}");
    }
    assert_eq!(*single.state(0).unwrap(), *bytemuck::cast_slice::<i32, u8>(&TOKENS));
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let one = call(&mut session(1), "logits", &TOKENS, 7).unwrap();
    for threads in [2, 3, 8] {
        let mut s = session(threads);
        for _ in 0..20 {
            s.truncate(0).unwrap();
            assert!(call(&mut s, "logits", &TOKENS, 7).unwrap() == one, "{threads} threads");
        }
    }
}

#[test]
fn rewinding_forgets() {
    let mut s = session(2);
    let first = call(&mut s, "prefill", &TOKENS, 1).unwrap();
    call(&mut s, "decode", &[4], 1).unwrap();
    s.truncate(5).unwrap();
    assert_eq!(s.held(s.entry("decode").unwrap()), 5);
    assert_eq!(call(&mut s, "prefill", &TOKENS[5..], 1).unwrap(), first);
}

#[test]
fn sessions_share_program_and_pool_but_no_memory() {
    let (program, pool) = (toy::program(), Pool::new(2));
    let mut a = Session::new(program.clone(), pool.clone()).unwrap();
    let mut b = Session::new(program, pool).unwrap();
    let of_a = call(&mut a, "prefill", &TOKENS, 1).unwrap();
    call(&mut b, "prefill", &[3, 3, 3], 1).unwrap();
    a.truncate(6).unwrap();
    assert_eq!(call(&mut a, "decode", &TOKENS[6..], 1).unwrap(), of_a);
}

#[test]
fn each_call_takes_the_version_it_fits() {
    // Of three versions only the one for long contexts and many tokens writes logits at all.
    let program = toy::with(|m| {
        let whole = m.entries[0].versions.remove(0);
        for (t, p) in [((1, 3), (0, 63)), ((4, 8), (0, 9)), ((4, 8), (10, 63))] {
            let mut part = whole.clone();
            part.symbols = toy::symbols(t.0, t.1);
            (part.symbols[1].lo, part.symbols[1].hi) = p;
            if p.0 == 0 {
                part.launches.truncate(2);
            }
            m.entries[0].versions.push(part);
        }
    });
    let (mut s, mut whole) = (Session::new(program, Pool::new(2)).unwrap(), session(1));
    let mut held = 0;
    for n in [3, 4, 3, 4, 1, 8, 4] {
        let tokens: Vec<i32> = (held..held + n).collect();
        let found = call(&mut s, "prefill", &tokens, 1).unwrap();
        let expected = call(&mut whole, "prefill", &tokens, 1).unwrap();
        match n >= 4 && held >= 10 {
            true => assert!(found == expected, "{held} + {n}"),
            false => assert!(found.iter().all(|x| *x == 0.0), "{held} + {n}"),
        }
        held += n;
        assert_eq!((s.held(0), s.held(1)), (held as u64, held as u64));
    }
    assert_eq!(call(&mut s, "decode", &[5], 1).unwrap(), call(&mut whole, "decode", &[5], 1).unwrap());
    let refused = call(&mut s, "prefill", &[1; 9], 1).unwrap_err().to_string();
    assert_eq!(refused, "entry `prefill` takes 1 to 8 new tokens a call, not 9");
}

#[test]
fn wrong_calls_are_refused_and_change_nothing() {
    let mut s = session(1);
    call(&mut s, "prefill", &TOKENS, 1).unwrap();
    let said = |r: Result<Vec<f32>, Error>| r.unwrap_err().to_string();
    assert_eq!(
        said(call(&mut s, "encode", &[1], 1)),
        "the model has no entry `encode`; it has prefill, decode, logits"
    );
    assert_eq!(said(call(&mut s, "prefill", &[], 1)), "entry `prefill` takes 1 to 8 new tokens a call, not 0");
    assert_eq!(said(call(&mut s, "prefill", &[1; 9], 1)), "entry `prefill` takes 1 to 8 new tokens a call, not 9");
    assert_eq!(said(call(&mut s, "decode", &[1; 2], 1)), "entry `decode` takes 1 to 1 new tokens a call, not 2");
    assert!(said(call(&mut s, "prefill", &[1], 2)).contains("`logits`: 131072 bytes given, 65536 expected"));
    let prefill = s.entry("prefill").unwrap();
    let none = s.run(prefill, 1, &[], &mut []).unwrap_err().to_string();
    assert!(none.contains("`tokens`: 0 bytes given, 4 expected"), "{none}");
    let (bytes, mut logits) = ([0u32; 2], vec![0f32; VOCAB]);
    let crooked = &bytemuck::cast_slice::<u32, u8>(&bytes)[1..5];
    let refused = s.run(prefill, 1, &[crooked], &mut [bytemuck::cast_slice_mut(&mut logits)]);
    assert!(matches!(refused, Err(Error::Buffer { .. })));
    assert_eq!(s.held(prefill), 7);

    for _ in 7..CONTEXT {
        call(&mut s, "decode", &[1], 1).unwrap();
    }
    let full = said(call(&mut s, "decode", &[1], 1));
    assert!(full.starts_with("64 tokens held and 1 new ones exceed the context of 64"), "{full}");
    assert_eq!(s.held(prefill), 64);
}

#[test]
fn an_entry_may_need_tokens_held() {
    let program = toy::with(|m| {
        let decode = &mut m.entries[1];
        decode.symbols[1].lo = 3;
        decode.versions[0].symbols[1].lo = 3;
    });
    let mut s = Session::new(program, Pool::new(1)).unwrap();
    call(&mut s, "prefill", &TOKENS[..2], 1).unwrap();
    let refused = call(&mut s, "decode", &[1], 1).unwrap_err().to_string();
    assert_eq!(refused, "entry `decode` needs at least 3 tokens held, not 2; run another entry first");
    assert_eq!(s.held(0), 2);
    call(&mut s, "prefill", &TOKENS[2..3], 1).unwrap();
    call(&mut s, "decode", &[1], 1).unwrap();
}

#[test]
fn what_cannot_be_run_is_refused_at_once() {
    let paged = toy::with(|m| m.states[0].page_rows = 16);
    assert!(matches!(Session::new(paged, Pool::new(1)), Err(Error::Paged { .. })));
    let functions = vec![];
    // SAFETY: there is nothing to run.
    let none = unsafe { hadal_runtime::Program::from_parts(toy::manifest(), functions, &[]) };
    assert_eq!(none.err().unwrap().to_string(), "the manifest has 4 kernels, 0 were given");
    let alone = hadal_runtime::Batch::new(&toy::with(|_| {}), &Pool::new(1)).err().unwrap().to_string();
    assert!(alone.starts_with("entry `decode` takes one token a call, so that several sequences"), "{alone}");
    let huge = toy::with(|m| m.arena_bytes = u64::MAX / 2);
    assert!(matches!(Session::new(huge, Pool::new(1)), Err(Error::Memory { .. })));
}
