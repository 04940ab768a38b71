//! Mutated files through the commands.
//!
//! In:  valid files of every kind that a user may hand over (`seeds`, fixtures, artifacts made
//! here), a number of cases and a first seed. Out: nothing, or a list of what went wrong, with
//! the mutated files kept in `target/mutations`.
//!
//! What holds for every file, however broken: the command ends within its time and memory, with
//! exit code 0, 1 or 2; it says why when that is not 0; no panic; with `--json` stdout is one
//! object; exit code 0 means finite results, and 2 that nothing was left at the output.
//!
//! A case is its seed: the same seed gives the same file and command. More of them:
//!
//! ```sh
//! BUTTERFLY_MUTATIONS=10000 BUTTERFLY_MUTATIONS_FIRST=0 cargo test --release -p butterfly-cli --test mutations
//! ```

mod cases;
mod mutate;
mod run;

use cases::Corpus;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Cases without `BUTTERFLY_MUTATIONS`: what takes well below a minute.
const CASES: u64 = 400;

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => default,
    }
}

#[test]
fn mutated_files_get_an_answer() {
    let (count, first) = (
        number("BUTTERFLY_MUTATIONS", CASES),
        number("BUTTERFLY_MUTATIONS_FIRST", 0),
    );
    let corpus = Corpus::new();
    let next = AtomicU64::new(first);
    let (faults, codes) = (Mutex::new(Vec::new()), Mutex::new(BTreeMap::new()));
    let worker = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return;
            }
            let case = corpus.case(seed);
            match run::judge(&case) {
                Ok(code) => {
                    let mut codes = codes.lock().expect("no panic");
                    *codes.entry((case.kind, code)).or_insert(0u64) += 1;
                }
                Err(fault) => {
                    let kept = case.keep(&run::kept(seed));
                    let fault = format!("seed {seed}, {kept}\n  {fault}");
                    eprintln!("{fault}");
                    faults.lock().expect("no panic").push(fault);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        (0..threads).for_each(|_| {
            scope.spawn(worker);
        });
    });
    let codes = codes.into_inner().expect("no panic");
    for ((kind, code), n) in &codes {
        println!("{kind}: exit code {code} {n} times");
    }
    let faults = faults.into_inner().expect("no panic");
    let all: u64 = codes.values().sum();
    assert!(
        faults.is_empty(),
        "{} of {count}:\n{}",
        faults.len(),
        faults.join("\n")
    );
    // Most mutations should get past the parser of JSON, or little is tested.
    let good: u64 = codes
        .iter()
        .filter(|((_, code), _)| *code == 0)
        .map(|(_, n)| n)
        .sum();
    assert!(
        count < CASES || good * 10 > all,
        "{good} of {all} commands succeeded"
    );
}

/// Files that once broke a command.
#[test]
fn known_breakers_get_an_answer() {
    let corpus = Corpus::new();
    for case in corpus.known() {
        if let Err(fault) = run::judge(&case) {
            panic!("{}: {fault}", case.name);
        }
    }
}

/// Without mutation every command of every kind succeeds: else a mutant proves nothing.
#[test]
fn what_is_not_mutated_runs() {
    let corpus = Corpus::new();
    for case in corpus.unharmed() {
        assert_eq!(run::judge(&case), Ok(0), "{}: {:?}", case.name, case.args);
    }
}

#[test]
fn a_seed_is_a_case() {
    let corpus = Corpus::new();
    for seed in 0..50 {
        let (one, other) = (corpus.case(seed), corpus.case(seed));
        assert_eq!(one.mutated(), other.mutated());
    }
}
