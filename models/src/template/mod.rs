//! Chat templates: Jinja2 as transformers configures it.
//!
//! In: a template's text, and the values that it may use. Out: the text of a prompt.
//!
//! The engine is minijinja. Syntax that it does not have is rewritten before it sees the text
//! (`source`); Python's methods that it lacks are in `methods`, Python's JSON is in `json`.
//!
//! Invariant: a template is an untrusted program, so its work is bounded. Its text, fuel and time
//! have limits, and its stack is large enough for any nesting within these limits.

mod json;
mod methods;
mod source;
#[cfg(test)]
mod tests;

use jiff::Zoned;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Tuple;
use minijinja::{Environment, Error, ErrorKind, State, Value};
use std::error::Error as _;
use std::sync::mpsc;
use std::time::Duration;

/// Longest text of a template, in bytes; published ones have up to 20,000.
const LONGEST: usize = 256 << 10;
/// Fuel of one rendering: one unit for each instruction, and one more for every 64 bytes of text
/// that is made. Published templates use some thousands.
const FUEL: u64 = 1 << 20;
/// Longest time of one rendering; published templates take some milliseconds.
const LONGEST_TIME: Duration = Duration::from_secs(3);
/// Stack of the rendering thread, in bytes. The deepest nesting that fuel and [`LONGEST`] permit
/// takes up to half of it.
const STACK: usize = 512 << 20;

/// A chat template whose syntax was checked.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    /// The text after [`source::translate`], as minijinja takes it.
    text: String,
}

impl Template {
    /// Checks a template's text.
    ///
    /// # Errors
    /// A message that says what is wrong with the text, and in which line.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!(
                "its chat template has {} bytes; at most {LONGEST} are read",
                text.len()
            ));
        }
        let text = source::translate(text)?;
        apart(move || {
            let environment = environment(0, Zoned::now())?;
            environment.template_from_str(&text)?;
            Ok(Self { text })
        })
    }

    /// Renders the template with `values`; `now` is the time that `strftime_now` shows.
    ///
    /// # Errors
    /// A message that says why the template fails, and in which line.
    pub(crate) fn render(&self, values: &Value, now: Zoned) -> Result<String, String> {
        // Work may grow with the length of the conversation.
        let length = values.to_string().len() as u64;
        let fuel = FUEL + length;
        let (text, values) = (self.text.clone(), values.clone());
        apart(move || environment(fuel, now)?.render_str(&text, values))
    }
}

/// Runs `work`, whose recursion is as deep as a template nests, on a thread with a stack of
/// [`STACK`], and waits for it at most [`LONGEST_TIME`].
///
/// A thread that takes longer is abandoned, not stopped. It ends when its fuel is used up, with one
/// exception: the engine takes no fuel for writing the text of a value, which doubles with each
/// level of a list that holds another list twice.
fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new().stack_size(STACK);
    let thread = thread.spawn(move || {
        let done = crate::guard::guarded(work);
        let done = done.map_err(|said| format!("its chat template fails: {said}"));
        // Fails if nobody waits for the result any more.
        let _ = sender.send(done.and_then(|done| done.map_err(|error| say(&error))));
    });
    thread.map_err(|error| format!("its chat template was not run: {error}"))?;
    receiver.recv_timeout(LONGEST_TIME).unwrap_or_else(|_| {
        Err(format!(
            "its chat template takes more than {LONGEST_TIME:?}"
        ))
    })
}

/// The message of an error, with its line if that is known.
fn say(error: &Error) -> String {
    let line = error
        .line()
        .map_or(String::new(), |n| format!(" in line {n}"));
    if let Some(Refused(why)) = error.source().and_then(|source| source.downcast_ref()) {
        return format!("its chat template refuses the conversation{line}: {why}");
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return format!("its chat template never comes to an end, or makes too much text{line}");
    }
    let detail = error.detail().map_or(String::new(), |d| format!(": {d}"));
    format!("its chat template fails{line}: {}{detail}", error.kind())
}

/// An environment with the white-space rules, filters and functions that transformers gives to
/// templates. A `fuel` of 0 means no limit.
fn environment(fuel: u64, now: Zoned) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    environment.set_syntax(syntax.trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_debug(false);
    environment.set_fuel((fuel > 0).then_some(fuel));
    minijinja_contrib::add_to_environment(&mut environment);
    environment.set_unknown_method_callback(methods::call);
    environment.remove_global("debug");
    environment.add_filter("tojson", json::filter);
    environment.add_function(source::MODULO, modulo);
    environment.add_function("raise_exception", |why: String| {
        let error = Error::new(ErrorKind::InvalidOperation, why.clone());
        Err::<String, _>(error.with_source(Refused(why)))
    });
    environment.add_function("strftime_now", move |format: &str| {
        jiff::fmt::strtime::format(format, &now)
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
    });
    Ok(environment)
}

/// The message that a template gave to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

/// Python's `%`: formats if the left side is a string; between numbers it gives the remainder with
/// the sign of the divisor.
fn modulo(state: &mut State, left: &Value, right: &Value) -> Result<Value, Error> {
    if left.as_str().is_some() {
        let mut values = vec![left.clone()];
        match right.downcast_object_ref::<Tuple>() {
            Some(tuple) => values.extend(tuple.iter().cloned()),
            None => values.push(right.clone()),
        }
        return state.apply_filter("format", &values);
    }
    let wrong = |what| Error::new(ErrorKind::InvalidOperation, what);
    let whole = |value: &Value| {
        i64::try_from(value.clone())
            .ok()
            .filter(|_| value.is_integer())
    };
    if let (Some(a), Some(b)) = (whole(left), whole(right)) {
        let rest = a
            .checked_rem(b)
            .ok_or_else(|| wrong("remainder of a division by 0"))?;
        let other_sign = rest != 0 && (rest < 0) != (b < 0);
        return Ok(Value::from(if other_sign { rest + b } else { rest }));
    }
    let (Ok(a), Ok(b)) = (f64::try_from(left.clone()), f64::try_from(right.clone())) else {
        return Err(wrong("`%` takes two numbers, or a text and values"));
    };
    let rest = a % b;
    let other_sign = rest != 0.0 && (rest < 0.0) != (b < 0.0);
    Ok(Value::from(if other_sign { rest + b } else { rest }))
}
