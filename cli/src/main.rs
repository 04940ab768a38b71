//! The `butterfly` command: arguments in, files and reports out.
//!
//! Owns: reading and writing the user's files, exit codes, and how results are shown. Everything
//! else is a call into the other crates.
//! Invariant: stdout carries the result and nothing else; with `--json` exactly one JSON object.
//! Exit code 0 is success, 1 a check that did not hold, 2 bad input or environment, 130 an end by
//! Ctrl-C.

// Only `output` prints: it handles a reader that has gone away.
#![warn(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]
// Some functions are called only by commands that run models.
#![cfg_attr(not(feature = "models"), allow(dead_code, unused_imports))]

mod args;
mod attend;
mod bench;
mod call;
#[cfg(feature = "models")]
mod chart;
mod compile;
mod device;
mod doctor;
mod explain;
mod failure;
mod inspect;
mod kernel;
mod measure;
#[cfg(feature = "models")]
mod model;
mod output;
#[cfg(feature = "models")]
mod page;
mod parts;
mod prove;
mod show;
mod source;
mod stages;
mod svg;
mod tensors;
mod topology;

use args::{Args, Bench, Command};
use butterfly_ir::Role;
use clap::{CommandFactory, Parser};
use failure::Failure;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Mutex;

/// What a launch needs is allocated by the thread that launches and freed by the thread of the device, which mimalloc does
/// without a lock.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    device::quiet_loader();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return failure::usage(&error),
    };
    let json = args.json;
    match contained(|| run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}

/// Runs a command; a panic in it becomes a failure.
///
/// The code that catches a panic reports it, so the panic itself prints nothing, unless
/// `RUST_BACKTRACE` is set.
fn contained(command: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    static PLACE: Mutex<String> = Mutex::new(String::new());
    if std::env::var_os("RUST_BACKTRACE").is_none() {
        panic::set_hook(Box::new(|panic| {
            if let (Some(at), Ok(mut place)) = (panic.location(), PLACE.lock()) {
                *place = format!(" at {at}");
            }
        }));
    }
    panic::catch_unwind(AssertUnwindSafe(command)).unwrap_or_else(|panic| {
        let said = failure::said(&*panic);
        let place = PLACE.lock().map(|place| place.clone()).unwrap_or_default();
        Err(Failure::Bad(format!(
            "a fault of butterfly{place}: {said}; please report it, with what RUST_BACKTRACE=1 prints"
        )))
    })
}

fn run(args: Args) -> Result<(), Failure> {
    let json = args.json;
    match args.command {
        Command::Compile(command) => compile::run(&command, json),
        Command::Inspect { path } => inspect::inspect(&path, json),
        Command::Verify { dir } => inspect::verify(&dir, json),
        Command::Topology(command) => topology::run(&command, json),
        Command::Prove(command) => prove::run(&command, json),
        Command::Explain(command) => explain::run(&command, json),
        Command::Attend(command) => attend::run(&command, json),
        Command::Bench {
            what: Bench::Attention(command),
        } => bench::run(Role::Prefill, &command, json),
        Command::Bench {
            what: Bench::Decode(command),
        } => bench::run(Role::Decode, &command, json),
        #[cfg(feature = "models")]
        Command::Logits(command) => model::logits::run(&command, json),
        #[cfg(feature = "models")]
        Command::Generate(command) => model::generate::run(&command, json),
        #[cfg(feature = "models")]
        Command::Chat(command) => model::chat::run(&command, json),
        #[cfg(feature = "models")]
        Command::Eval(command) => model::eval::run(&command, json),
        #[cfg(feature = "models")]
        Command::Calibrate(command) => model::calibrate::run(&command, json),
        #[cfg(feature = "models")]
        Command::Bench {
            what: Bench::Model(command),
        } => model::bench::model(&command, json),
        #[cfg(feature = "models")]
        Command::Bench {
            what: Bench::Layer(command),
        } => model::bench::layer(&command, json),
        #[cfg(not(feature = "models"))]
        Command::Logits(_)
        | Command::Generate(_)
        | Command::Chat(_)
        | Command::Eval(_)
        | Command::Calibrate(_)
        | Command::Bench {
            what: Bench::Model(_) | Bench::Layer(_),
        } => Err(Failure::Bad(
            "this build runs no models: build it with `--features models`".into(),
        )),
        Command::Patterns => {
            let page = butterfly_ir::pattern::reference();
            print(json, &serde_json::json!({ "patterns": page }), || {
                page.clone()
            })
        }
        Command::Doctor => doctor::run(json),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "butterfly", &mut script);
            output::out(String::from_utf8_lossy(&script))
        }
    }
}

/// Prints the result: the object with `--json`, else the text.
fn print(
    json: bool,
    object: &impl serde::Serialize,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
    let text = match json {
        true => serde_json::to_string(object).map_err(Failure::bad)?,
        false => text(),
    };
    output::out(format_args!("{}\n", text.trim_end()))
}

/// A progress bar on stderr; hidden if stderr is not a terminal.
fn progress(length: u64, what: &'static str) -> indicatif::ProgressBar {
    let style = indicatif::ProgressStyle::with_template("{msg} {bar:40} {pos}/{len}, {eta} left");
    let bar = indicatif::ProgressBar::new(length).with_message(what);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
