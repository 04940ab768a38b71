//! Several patterns and policies on one command line.

use super::Run;
use clap::builder::Resettable;
use clap::error::Error;
use clap::{ArgAction, ArgMatches, Args, Command, FromArgMatches};
use serde::Serialize;
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

/// How a model is run, with each of several patterns and policies.
#[derive(Debug)]
pub(crate) struct Several {
    /// What replaces attention, in the order of the command line.
    pub(crate) replace: Vec<Replace>,
    /// All else: its pattern and policy are `None`.
    pub(crate) run: Run,
}

/// What replaces attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Replace {
    /// A file, or the pattern's text.
    Pattern(String),
    /// A file.
    Policy(PathBuf),
}

impl Display for Replace {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pattern(pattern) => write!(f, "--pattern {}", pattern.replace('\n', " ")),
            Self::Policy(path) => write!(f, "--policy {}", path.display()),
        }
    }
}

impl Several {
    /// A run for each; without patterns and policies the one that is left.
    pub(crate) fn runs(&self) -> Vec<Run> {
        let run = |replace: &Replace| {
            let (pattern, policy) = match replace.clone() {
                Replace::Pattern(pattern) => (Some(pattern), None),
                Replace::Policy(path) => (None, Some(path)),
            };
            Run {
                pattern,
                policy,
                ..self.run.clone()
            }
        };
        match &self.replace[..] {
            [] => vec![self.run.clone()],
            some => some.iter().map(run).collect(),
        }
    }
}

impl Args for Several {
    fn augment_args(command: Command) -> Command {
        Run::augment_args(command)
            .mut_arg("pattern", |arg| {
                arg.action(ArgAction::Append).help(
                    "A `.pattern` or `.json` file, or the pattern's text, as often as there are patterns to compare [default: that of the artifacts; without either, dense attention]",
                )
            })
            .mut_arg("policy", |arg| {
                arg.action(ArgAction::Append)
                    .conflicts_with(Resettable::Reset)
                    .help("A policy that `butterfly calibrate` wrote, as often as there are policies to compare")
            })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Several {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        Self::from_arg_matches_mut(&mut matches.clone())
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, Error> {
        let places = |name| -> Vec<usize> {
            let places = matches.indices_of(name);
            places.map(Iterator::collect).unwrap_or_default()
        };
        let [patterns, policies] = ["pattern", "policy"].map(places);
        let given = matches.remove_many("pattern").into_iter().flatten();
        let mut replace: Vec<_> = patterns
            .into_iter()
            .zip(given.map(Replace::Pattern))
            .collect();
        let given = matches.remove_many("policy").into_iter().flatten();
        replace.extend(policies.into_iter().zip(given.map(Replace::Policy)));
        replace.sort_by_key(|(place, _)| *place);
        Ok(Self {
            replace: replace.into_iter().map(|(_, replace)| replace).collect(),
            run: Run::from_arg_matches_mut(matches)?,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
