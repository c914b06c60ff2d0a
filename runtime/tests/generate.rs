//! Generation: chunks, stops, seeds and threads.

mod toy;

use hadal_runtime::{Error, Generator, Pool, Sampling, Session, Stop};

fn generator(threads: usize, sampling: Sampling) -> Generator {
    Generator::new(toy::session(threads), sampling).unwrap()
}

fn warm(seed: u64) -> Sampling {
    Sampling { temperature: 0.9, top_k: 200, top_p: 0.95, min_p: 0.01, seed }
}

fn continuation(g: &mut Generator, n: usize) -> Vec<u32> {
    std::iter::from_fn(|| g.next_token().unwrap()).take(n).collect()
}

const PROMPT: [u32; 19] = [0, 5, 9, 2, 11, 3, 8, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144];

#[test]
fn a_prompt_may_come_in_any_pieces() {
    let mut whole = generator(1, Sampling::greedy());
    whole.prompt(&PROMPT).unwrap();
    let mut pieces = generator(1, Sampling::greedy());
    PROMPT.chunks(5).for_each(|c| pieces.prompt(c).unwrap());
    assert_eq!(continuation(&mut whole, 12), continuation(&mut pieces, 12));
}

#[test]
fn a_second_turn_sees_the_first_whole() {
    let mut talk = generator(1, Sampling::greedy());
    talk.prompt(&PROMPT).unwrap();
    let said = continuation(&mut talk, 4);
    talk.prompt(&[7, 7]).unwrap();
    let mut anew = generator(1, Sampling::greedy());
    anew.prompt(&[&PROMPT[..], &said, &[7, 7]].concat()).unwrap();
    assert_eq!(talk.logits(), anew.logits());
    assert_eq!(continuation(&mut talk, 4), continuation(&mut anew, 4));
}

#[test]
fn seeds_reproduce_for_any_number_of_threads() {
    let draw = |threads, seed| {
        let mut g = generator(threads, warm(seed));
        g.prompt(&PROMPT).unwrap();
        continuation(&mut g, 30)
    };
    assert_eq!(draw(1, 3), draw(1, 3));
    assert_eq!(draw(1, 3), draw(2, 3));
    assert_eq!(draw(1, 3), draw(5, 3));
    assert_ne!(draw(1, 3), draw(1, 4));
}

#[test]
fn rewinding_repeats() {
    let mut g = generator(2, Sampling::greedy());
    g.prompt(&PROMPT).unwrap();
    let first = continuation(&mut g, 10);
    g.rewind(5).unwrap();
    g.prompt(&PROMPT[5..]).unwrap();
    assert_eq!(continuation(&mut g, 10), first);
}

#[test]
fn it_ends_at_stop_tokens_and_at_the_end_of_the_context() {
    let mut g = generator(1, Sampling::greedy());
    g.prompt(&PROMPT).unwrap();
    let third = continuation(&mut g, 3)[2];
    let program = toy::with(|m| m.model.stop = vec![third]);
    let session = || Session::new(program.clone(), Pool::new(1)).unwrap();
    let mut stops = Generator::new(session(), Sampling::greedy()).unwrap();
    stops.prompt(&PROMPT).unwrap();
    assert_eq!(continuation(&mut stops, 100).len(), 2);
    assert_eq!(stops.stopped(), Some(Stop::Token(third)));
    assert_eq!(stops.next_token().unwrap(), None);

    let mut goes_on = Generator::new(session(), Sampling::greedy()).unwrap();
    goes_on.ignore_stop_tokens();
    goes_on.prompt(&PROMPT).unwrap();
    // 64 - 19 tokens can be run; the last one drawn need not be.
    assert_eq!(continuation(&mut goes_on, 100).len(), 46);
    assert_eq!(goes_on.stopped(), Some(Stop::Context));
}

#[test]
fn bad_prompts_are_refused_before_anything_runs() {
    let mut g = generator(1, Sampling::greedy());
    assert!(matches!(g.next_token(), Err(Error::EmptyPrompt)));
    assert!(matches!(g.prompt(&[]), Err(Error::EmptyPrompt)));
    assert!(matches!(g.prompt(&[toy::VOCAB as u32]), Err(Error::Token { .. })));
    let error = g.prompt(&[2; 65]).unwrap_err().to_string();
    assert!(error.starts_with("0 tokens held and 65 new ones exceed the context of 64; shorten the prompt"), "{error}");
    g.prompt(&[2; 64]).unwrap();
}

#[test]
fn programs_without_the_usual_entries_are_refused() {
    let none = toy::with(|m| m.entries.truncate(1));
    let error = Generator::new(Session::new(none, Pool::new(1)).unwrap(), Sampling::greedy()).err().unwrap();
    assert_eq!(error.to_string(), "the model has no entry `decode`; it has prefill");
    let odd =
        toy::with(|m| m.entries[0] = hadal_runtime::artifact::Entry { name: "prefill".into(), ..m.entries[2].clone() });
    let refused = Generator::new(Session::new(odd, Pool::new(1)).unwrap(), Sampling::greedy());
    assert!(matches!(refused, Err(Error::NoPort { .. })));
}
