//! Runs the commands on mutated files.
//!
//! In:  valid files of every kind that a user may provide (`seeds`, fixtures, artifacts made
//! here), a number of cases and a first seed. Out: nothing, or a list of faults, with the mutated
//! files kept in `target/tmp/mutations`.
//!
//! However broken a file is, these hold for the command that reads it:
//! - It ends within its limits of time and memory, with exit code 0, 1 or 2, and never panics.
//! - If the exit code is not 0, stderr says why.
//! - With `--json`, stdout is one JSON object.
//! - With exit code 0, results are finite; with 2, there is no output. No other files are left.
//!
//! A case is determined by its seed: the same seed gives the same file and command. To run more, of all
//! kinds or of one:
//!
//! ```sh
//! BUTTERFLY_MUTATIONS=10000 BUTTERFLY_MUTATIONS_FIRST=0 BUTTERFLY_MUTATIONS_KIND=gguf cargo test --release -p butterfly-cli --test mutations
//! ```

mod cases;
mod mutate;
mod run;

use cases::Corpus;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Number of cases without `BUTTERFLY_MUTATIONS`; they take well below a minute.
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
    // If most commands failed, for example in the JSON parser, little would be tested.
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

/// Files that once broke a command no longer do.
#[test]
fn known_breakers_get_an_answer() {
    let corpus = Corpus::new();
    for case in corpus.known() {
        if let Err(fault) = run::judge(&case) {
            panic!("{}: {fault}", case.name);
        }
    }
}

/// Without mutation every command of every kind succeeds; otherwise its mutations would test
/// nothing.
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
