//! `butterfly calibrate`: what it writes, and what it refuses.

mod byte_model;

use byte_model::{butterfly, folder};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

/// A model, and a text of 900 tokens.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = folder();
        let text: String = (0..900u32)
            .map(|i| char::from(b'a' + (i * i * 7 % 23) as u8))
            .collect();
        fs::write(dir.path().join("text.txt"), text).expect("written");
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, output: &str, more: &[&str]) -> Output {
        let [model, text, output] = [".", "text.txt", output]
            .map(|name| self.path(name).to_str().expect("UTF-8").to_string());
        let args = [
            "calibrate",
            "--model",
            &model,
            "--text",
            &text,
            "-o",
            &output,
            "--device",
            "cpu",
            "--json",
        ];
        let window: &[&str] = match more.contains(&"--window") {
            true => &[],
            false => &["--window", "128"],
        };
        butterfly(&[&args[..], window, more].concat())
    }

    fn report(&self, output: &str, more: &[&str]) -> Value {
        let run = self.run(output, more);
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{more:?}: {said}");
        serde_json::from_slice(&run.stdout).expect("one JSON object")
    }

    /// The message of a command that is refused.
    fn refused(&self, output: &str, more: &[&str]) -> String {
        let run = self.run(output, more);
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(2), "{more:?}: {said}");
        said
    }

    fn json(&self, name: &str) -> Value {
        read(&self.path(name))
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).expect("read")).expect("JSON")
}

const PATTERN: &str = "block 8 causal & (window(16) | sink(1))";

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// Whether two values are the same, but for the last digits of numbers: those that were kept in a file
/// are read back with less than all of them.
fn alike(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(_), Value::Number(_)) => {
            let (a, b) = (number(a), number(b));
            (a - b).abs() <= 1e-12 * a.abs().max(b.abs())
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let same = |(name, a): (&String, &Value)| b.get(name).is_some_and(|b| alike(a, b));
            a.len() == b.len() && a.iter().all(same)
        }
        (a, b) => a == b,
    }
}

#[test]
fn a_policy_is_measured_chosen_and_verified() {
    let place = Place::new();
    let report = place.report("policy.json", &["--pattern", PATTERN, "--share", "0.4"]);
    let policy = place.json("policy.json");
    assert_eq!(policy["damage"], report["damage"]);
    let damage = policy["damage"].as_array().expect("rows");
    let layers = damage.len();
    assert_eq!(policy["model"]["layers"], layers);
    let heads = policy["model"]["kv_heads"].as_u64().expect("a number") as usize;
    assert!(heads > 1);
    // The least harmful ones are replaced, at most the share that was asked for.
    let (mut kept, mut replaced) = (Vec::new(), Vec::new());
    for (row, marks) in damage
        .iter()
        .zip(report["replaced"].as_array().expect("rows"))
    {
        let (row, marks) = (
            row.as_array().expect("a row"),
            marks.as_array().expect("a row"),
        );
        assert_eq!((row.len(), marks.len()), (heads, heads));
        for (damage, mark) in row.iter().zip(marks) {
            match mark.as_bool().expect("a mark") {
                true => replaced.push(number(damage)),
                false => kept.push(number(damage)),
            }
        }
    }
    assert_eq!((replaced.len(), layers * heads), (3, 8));
    let most = replaced.iter().copied().fold(0.0, f64::max);
    assert!(
        kept.iter().all(|damage| *damage >= most),
        "{kept:?} {replaced:?}"
    );
    // The curve begins with nothing replaced, and rises.
    let curve = report["curve"].as_array().expect("points");
    assert_eq!(
        (number(&curve[0]["kl_nats"]), number(&curve[0]["top1"])),
        (0.0, 1.0)
    );
    let last = curve.last().expect("a point");
    assert_eq!(last["parts"], layers * heads);
    assert!(number(&last["kl_nats"]) > number(&report["chosen"]["kl_nats"]));
    let verified = &report["verified"];
    assert!(number(&verified["kl_nats"]) > 0.0);
    for name in ["kl_nats", "top1", "perplexity_ratio"] {
        assert_eq!(policy["chosen"][name], verified[name], "{name}");
    }
    // 24 tokens see the same as without the pattern.
    assert_eq!(
        (&report["same"], &report["scored"]),
        (&24.into(), &104.into())
    );
    assert_eq!(policy["chosen"]["tokens"], 104);
    let pattern = policy["pattern"].as_str().expect("a text");
    assert!(
        pattern.contains("per_head") && pattern.contains("tail(64)"),
        "{pattern}"
    );
    assert!(!place.path("policy.json.partial").exists());
}

#[test]
fn a_second_start_goes_on_and_gives_the_same_policy() {
    let place = Place::new();
    let options = ["--pattern", PATTERN, "--windows", "2", "--share", "0.25"];
    let options = [&options[..], &["--every", "3"]].concat();
    place.report("whole.json", &options);
    let whole = fs::read(place.path("whole.json")).expect("read");
    // Stopped after each of some numbers of lines: what was kept is that of a run that cannot write
    // its policy in the end, cut.
    let all = kept(&place, &options);
    assert!(all.len() > 10, "{all:?}");
    for lines in [1, 3, all.len() - 1, all.len()] {
        let text = all[..lines].join("\n") + "\n{\"window\":";
        fs::write(place.path("policy.json.partial"), text).expect("written");
        let report = place.report("policy.json", &options);
        assert_eq!(report["resumed"], lines - 1);
        let policy = fs::read(place.path("policy.json")).expect("read");
        assert_eq!(policy, whole, "after {lines} lines");
        assert!(!place.path("policy.json.partial").exists());
    }
    // Other options are another calibration.
    fs::write(place.path("policy.json.partial"), all.join("\n") + "\n").expect("written");
    let other = place.refused("policy.json", &["--pattern", PATTERN]);
    assert!(
        other.contains("policy.json.partial: was begun with another model"),
        "{other}"
    );
    assert!(
        other.contains("delete it, or give another --output"),
        "{other}"
    );
}

/// What a calibration keeps: the lines that it has written before its output disappears.
fn kept(place: &Place, options: &[&str]) -> Vec<String> {
    use std::io::Read;
    let path = place.path("policy.json.partial");
    // A named file that is already open stays readable after the command has removed it.
    fs::write(&path, "").expect("written");
    let mut file = fs::File::open(&path).expect("opened");
    place.report("policy.json", options);
    let mut text = String::new();
    file.read_to_string(&mut text).expect("read");
    text.lines().map(str::to_string).collect()
}

#[test]
fn as_much_is_replaced_as_a_bound_allows() {
    let place = Place::new();
    let whole = place.report("all.json", &["--pattern", PATTERN, "--share", "1"]);
    let most = number(&whole["chosen"]["kl_nats"]);
    let part = |most: f64| {
        let bound = most.to_string();
        let options = ["--pattern", PATTERN, "--max-kl", &bound];
        let report = place.report("some.json", &options);
        let (parts, kl) = (
            &report["chosen"]["parts"],
            number(&report["chosen"]["kl_nats"]),
        );
        assert!(kl <= most, "{kl} is more than {most}");
        // One more would be too many, if it was measured.
        let next = parts.as_u64().expect("a number") + 1;
        let curve = report["curve"].as_array().expect("points").iter();
        let next = curve.clone().find(|point| point["parts"] == next);
        assert!(next.is_none_or(|point| number(&point["kl_nats"]) > most));
        parts.as_u64().expect("a number")
    };
    let all = whole["chosen"]["parts"].as_u64().expect("a number");
    assert_eq!((part(0.0), part(most)), (0, all));
    let some = part(most / 3.0);
    assert!(some > 0 && some < all, "{some} of {all}");
    let nothing = place.json("some.json");
    assert_eq!(nothing["schema"], 1);
}

#[test]
fn layers_are_replaced_whole() {
    let place = Place::new();
    let options = [
        "--pattern",
        PATTERN,
        "--by",
        "layer",
        "--tail",
        "0",
        "--share",
        "0.5",
    ];
    let report = place.report("policy.json", &options);
    let policy = place.json("policy.json");
    assert_eq!(policy["chosen"]["by"], "layer");
    let damage = policy["damage"].as_array().expect("rows");
    assert!(
        damage
            .iter()
            .all(|row| row.as_array().is_some_and(|row| row.len() == 1))
    );
    let pattern = policy["pattern"].as_str().expect("a text");
    assert!(
        !pattern.contains("tail") && !pattern.contains("per_head"),
        "{pattern}"
    );
    let swapped = report["layers"].as_array().expect("layers");
    assert_eq!(swapped.len(), damage.len());
}

/// Every command that takes a pattern of a model takes its policy, and refuses that of another.
#[test]
fn a_policy_takes_the_place_of_a_pattern() {
    let place = Place::new();
    let page = place.path("report.html");
    let page = page.to_str().expect("UTF-8");
    let options = ["--pattern", PATTERN, "--share", "0.5", "--report", page];
    let report = place.report("policy.json", &options);
    let page = fs::read_to_string(page).expect("a page");
    for part in ["<svg", "Damage of each alone", "on other text", "tail(64)"] {
        assert!(page.contains(part), "{part}");
    }
    let paths = [".", "config.json", "policy.json", "artifacts", "text.txt"]
        .map(|name| place.path(name).to_str().expect("UTF-8").to_string());
    let [model, config, policy, artifacts, text] = paths.each_ref().map(|path| &path[..]);
    let good = |args: &[&str]| -> Value {
        let run = butterfly(&[args, &["--json"]].concat());
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{args:?}: {said}");
        serde_json::from_slice(&run.stdout).expect("one JSON object")
    };
    let with = ["--policy", policy];
    good(
        &[
            &["compile", config, "--target", "cpu", "-o", artifacts],
            &with[..],
        ]
        .concat(),
    );
    let manifest = read(&place.path("artifacts").join("manifest.json"));
    assert_eq!(
        manifest["pattern"],
        read(&place.path("policy.json"))["pattern"]
    );
    good(&[&["explain", config, "--target", "cpu"], &with[..]].concat());
    let proof = good(&[&["prove", "--seq-len", "1000", "--layers", "4"], &with[..]].concat());
    assert_eq!(proof["causal"], true);
    // What calibration verified is what eval measures on those tokens, and what artifacts run.
    let generated = |more: &[&str]| {
        let run = [
            "generate", "-m", model, "--device", "cpu", "-p", "abcabc", "-n", "30",
        ];
        good(&[&run[..], more].concat())["text"].clone()
    };
    let kernels = ["--artifacts", artifacts];
    assert_eq!(generated(&[&with[..], &kernels].concat()), generated(&with));
    let evaluated = ["eval", "-m", model, "--device", "cpu", "--text", text];
    let evaluated = good(&[&evaluated[..], &with, &["--window", "128"]].concat());
    assert!(number(&evaluated["kl_divergence"]) > 0.0);
    assert!(number(&evaluated["kl_divergence"]) < 10.0 * number(&report["verified"]["kl_nats"]));
    let bench = ["bench", "model", "-m", model, "--device", "cpu"];
    let lengths = ["--prompt-tokens", "64", "--decode", "1"];
    good(&[&bench[..], &lengths, &with].concat());

    let refused = |args: &[&str], said: &str| {
        let run = butterfly(args);
        let error = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(said), "{args:?}: {error}");
    };
    let other = butterfly_tests::fixture("configs").join("qwen3-8b.json");
    let other = other.to_str().expect("UTF-8");
    let foreign = ["compile", other, "--target", "cpu", "-o", artifacts];
    refused(
        &[&foreign[..], &with].concat(),
        "was calibrated for llama of 4 layers",
    );
    let gpt2 = butterfly_tests::fixture("models").join("gpt2");
    let gpt2 = gpt2.to_str().expect("UTF-8");
    let foreign = ["generate", "-m", gpt2, "--tokens", "1,2", "--device", "cpu"];
    refused(
        &[&foreign[..], &with].concat(),
        "was calibrated for llama of 4 layers",
    );
    let both = [
        "prove",
        "--seq-len",
        "99",
        "--layers",
        "4",
        "--pattern",
        "causal",
    ];
    refused(&[&both[..], &with].concat(), "cannot be used with");
    let missing = [
        "prove",
        "--seq-len",
        "99",
        "--layers",
        "4",
        "--policy",
        "none.json",
    ];
    refused(&missing, "none.json");
}

#[test]
fn bad_input_is_refused_before_anything_runs() {
    let place = Place::new();
    let pattern = ["--pattern", PATTERN];
    for (options, said) in [
        (
            vec!["--window", "1000"],
            "text.txt: has 900 tokens, 2000 are needed: 1 windows of 1000",
        ),
        (
            vec!["--windows", "4"],
            "has 900 tokens, 1024 are needed: 4 windows of 128",
        ),
        (vec!["--windows", "4"], "or --window 112 or less"),
        (vec!["--share", "1.5"], "give a number from 0 to 1"),
        (vec!["--share=-1"], "give a number from 0 to 1"),
        (vec!["--share", "nan"], "give a number from 0 to 1"),
        (vec!["--max-kl=-0.1"], "give 0 or a positive number"),
        (
            vec!["--share", "0.5", "--max-kl", "0.1"],
            "cannot be used with",
        ),
        (
            vec!["--tail", "128"],
            "--tail 128: with it every query of a window of 128 tokens sees all",
        ),
        (vec!["--tail", "104"], "give less than 104"),
        (
            vec!["--skip", "128"],
            "--skip 128: a window of 128 tokens has no such position",
        ),
        (vec!["--every", "0"], "0 is not in 1.."),
        (
            vec!["--capacity", "100"],
            "--capacity 100 is less than a window of 128",
        ),
        (vec!["--swap", "99"], "99"),
        (
            vec!["--artifacts", "there"],
            "leave it out, and compile for the policy afterwards",
        ),
    ] {
        let refused = place.refused("policy.json", &[&pattern[..], &options].concat());
        assert!(refused.contains(said), "{options:?}: {refused}");
        assert!(!place.path("policy.json.partial").exists(), "{options:?}");
    }
    for (pattern, said) in [
        (
            "causal",
            "--pattern: every query of a window of 128 tokens sees all",
        ),
        ("block 8 causal & window(128)", "--pattern: every query"),
        ("window(0)", "window"),
    ] {
        let refused = place.refused("policy.json", &["--pattern", pattern]);
        assert!(refused.contains(said), "{pattern}: {refused}");
    }
    let missing = place.refused("none/policy.json", &pattern);
    assert!(
        missing.contains("none/policy.json") && missing.contains("cannot write"),
        "{missing}"
    );
    assert!(place.refused(".", &pattern).contains("is a directory"));
    fs::write(place.path("text.txt"), "short").expect("written");
    let short = place.refused("policy.json", &pattern);
    assert!(short.contains("has 5 tokens, 256 are needed"), "{short}");
}

/// A calibration of random weights of the shapes of a fixture's config.
fn random(place: &Place, model: &str, output: &str, more: &[&str]) -> Output {
    let config = butterfly_tests::fixture("models")
        .join(model)
        .join("config.json");
    let output = place.path(output);
    let args = [
        "calibrate",
        "--random-weights",
        config.to_str().expect("UTF-8"),
        "-o",
        output.to_str().expect("UTF-8"),
        "--device",
        "cpu",
        "--json",
    ];
    butterfly(&[&args[..], more].concat())
}

#[test]
fn random_weights_need_no_text_and_say_what_they_are() {
    let place = Place::new();
    let page = place.path("random.html");
    let page = page.to_str().expect("UTF-8");
    let options = ["--pattern", PATTERN, "--window", "128"];
    let report = |model: &str, output: &str, more: &[&str]| -> (Value, String) {
        let run = random(&place, model, output, &[&options[..], more].concat());
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(run.status.success(), "{model} {more:?}: {said}");
        let report = serde_json::from_slice(&run.stdout).expect("one JSON object");
        (report, said)
    };
    let (first, said) = report("qwen3_5", "a.json", &["--report", page]);
    assert!(
        said.contains("weights and tokens are random: damages, KL and perplexity mean nothing"),
        "{said}"
    );
    let marked = fs::read_to_string(page).expect("a page");
    assert!(marked.contains("random (seed 0): only time and memory mean anything"));
    assert_eq!(first["random_weights"], 0);
    assert_eq!(first["tokens"], 256);
    // Only layers with softmax attention have heads to replace.
    let damage = first["damage"].as_array().expect("rows");
    let heads: Vec<usize> = damage
        .iter()
        .map(|row| row.as_array().map_or(0, Vec::len))
        .collect();
    assert!(
        heads.contains(&0) && heads.iter().any(|heads| *heads > 0),
        "{heads:?}"
    );
    // Memory is planned, and was measured.
    let bytes = |name: &str| first[name].as_u64().expect("a number");
    assert!(bytes("planned_bytes") > 0 && bytes("memory_bytes") > 0);
    let row = 4 * 256;
    assert_eq!(bytes("logits_bytes"), (104 + 2 * 128) * row);
    let policy = place.json("a.json");
    assert_eq!(policy["chosen"]["random_weights"], 0);

    // The seed is all that a run depends on.
    report("qwen3_5", "b.json", &[]);
    let text = |name: &str| fs::read_to_string(place.path(name)).expect("read");
    assert_eq!(text("a.json"), text("b.json"));
    report("qwen3_5", "c.json", &["--seed", "1"]);
    let other = place.json("c.json");
    assert_eq!(other["chosen"]["random_weights"], 1);
    assert_ne!(
        other["chosen"]["text_digest"],
        policy["chosen"]["text_digest"]
    );
    assert_ne!(other["damage"], policy["damage"]);
    // Models of other families too, one layer at a time.
    report("gpt2", "d.json", &["--by", "layer"]);
}

#[test]
fn what_random_weights_cannot_have_is_refused() {
    let place = Place::new();
    let refused = |more: &[&str], said: &str| {
        let run = random(&place, "llama", "policy.json", more);
        let error = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(2), "{more:?}: {error}");
        assert!(error.contains(said), "{more:?}: {error}");
        assert!(!place.path("policy.json").exists(), "{more:?}");
        assert!(!place.path("policy.json.partial").exists(), "{more:?}");
    };
    let model = place.path(".");
    let model = model.to_str().expect("UTF-8");
    refused(&["--model", model], "cannot be used with");
    refused(&["--text", "text.txt"], "cannot be used with");
    refused(&["--retrieval"], "cannot be used with");
    refused(
        &["--window", "100"],
        "--pattern: every query of a window of 100 tokens",
    );
    refused(
        &["--windows", "65536", "--window", "16777216"],
        "give fewer --windows, or a smaller --window",
    );

    let output = place.path("policy.json");
    let output = output.to_str().expect("UTF-8");
    let neither = butterfly(&["calibrate", "-o", output]);
    let said = String::from_utf8_lossy(&neither.stderr).into_owned();
    assert!(
        said.contains("--model") && neither.status.code() == Some(2),
        "{said}"
    );
    let missing = butterfly(&["calibrate", "--random-weights", "none.json", "-o", output]);
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(
        said.contains("none.json") && missing.status.code() == Some(2),
        "{said}"
    );
}

/// A vocabulary and a window of which this machine cannot keep all logits, or all keys.
#[test]
fn what_does_not_fit_is_refused_before_weights_are_made() {
    let place = Place::new();
    let config = butterfly_tests::fixture("models/llama/config.json");
    let mut config = read(&config);
    config["vocab_size"] = 262_144.into();
    for (name, heads) in [
        ("num_attention_heads", 64),
        ("num_key_value_heads", 64),
        ("head_dim", 128),
    ] {
        config[name] = heads.into();
    }
    fs::write(place.path("large.json"), config.to_string()).expect("written");
    let [large, output] = ["large.json", "policy.json"]
        .map(|name| place.path(name).to_str().expect("UTF-8").to_string());
    let refused = |more: &[&str]| {
        let args = [
            "calibrate",
            "--random-weights",
            &large,
            "-o",
            &output,
            "--device",
            "cpu",
        ];
        let run = butterfly(&[&args[..], more].concat());
        let error = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(2), "{more:?}: {error}");
        assert!(!place.path("policy.json.partial").exists());
        error
    };
    let logits = refused(&["--every", "1", "--window", "4194304"]);
    assert!(
        logits.contains("dense logits of 4193792 positions take"),
        "{logits}"
    );
    assert!(logits.contains("give --every "), "{logits}");
    // As few positions as are kept by default fit, but not all keys.
    let keys = refused(&["--window", "4194304"]);
    assert!(keys.contains("are needed: "), "{keys}");
    assert!(
        keys.contains("a smaller --window takes less of all"),
        "{keys}"
    );
    assert!(
        keys.contains("positions is scored, so that dense logits take at most 2 GiB"),
        "{keys}"
    );
}

#[test]
fn a_choice_is_made_again_from_a_policy() {
    let place = Place::new();
    let with_pattern = ["--pattern", PATTERN];
    let first = place.report("first.json", &with_pattern);
    let from = place.path("first.json");
    let from = ["--from", from.to_str().expect("UTF-8")];
    let again = |output: &str, more: &[&str]| {
        place.report(output, &[&from[..], &with_pattern, more].concat())
    };
    // The same choice is the same policy, but for where its ranking is from.
    let same = again("same.json", &[]);
    for name in [
        "damage", "replaced", "curve", "chosen", "verified", "pattern",
    ] {
        assert!(
            alike(&same[name], &first[name]),
            "{name}: {} {}",
            same[name],
            first[name]
        );
    }
    let (before, after) = (place.json("first.json"), place.json("same.json"));
    assert!(before.get("ranking").is_none());
    let ranking = &after["ranking"];
    assert_eq!(ranking["policy"], from[1]);
    assert_eq!(ranking["text_digest"], before["chosen"]["text_digest"]);
    assert_eq!(ranking["digest"].as_str().map(str::len), Some(64));
    assert_eq!(same["ranking"], *ranking);
    // Another share, another bound, another pattern.
    let share = again("share.json", &["--share", "0.75"]);
    assert_eq!(share["chosen"]["parts"], 6);
    assert!(alike(&share["damage"], &first["damage"]), "{share}");
    let most = number(&share["chosen"]["kl_nats"]);
    let bound = again("bound.json", &["--max-kl", &most.to_string()]);
    assert!(number(&bound["chosen"]["kl_nats"]) <= most);
    let wider = "block 8 causal & (window(32) | sink(1))";
    let wider = place.report("wider.json", &[&from[..], &["--pattern", wider]].concat());
    assert!(alike(&wider["damage"], &first["damage"]), "{wider}");
    assert!(number(&wider["verified"]["kl_nats"]) < number(&first["verified"]["kl_nats"]));
    let pattern = place.json("wider.json")["pattern"].to_string();
    assert!(pattern.contains("window(32)"), "{pattern}");
    // Of a policy that was itself chosen so, the first one is named.
    let second = place.path("same.json");
    let second = [
        "--from",
        second.to_str().expect("UTF-8"),
        "--pattern",
        PATTERN,
    ];
    let third = place.report("third.json", &second);
    assert_eq!(third["ranking"], *ranking);
}

#[test]
fn a_policy_that_cannot_be_chosen_from_is_refused() {
    let place = Place::new();
    let with_pattern = ["--pattern", PATTERN];
    place.report("heads.json", &with_pattern);
    let good = place.json("heads.json");
    let refused = |policy: &Value, more: &[&str], said: &str| {
        fs::write(place.path("from.json"), policy.to_string()).expect("written");
        let from = place.path("from.json");
        let from = from.to_str().expect("UTF-8");
        let error = place.refused(
            "policy.json",
            &[&["--from", from], &with_pattern[..], more].concat(),
        );
        assert!(
            error.contains("from.json: ") && error.contains(said),
            "{error}"
        );
        assert!(!place.path("policy.json.partial").exists());
    };
    let changed = |path: &str, value: Value| {
        let mut bad = good.clone();
        *bad.pointer_mut(path).expect("there") = value;
        bad
    };
    let none = changed("/damage", serde_json::json!([[], [], [], []]));
    refused(&none, &[], "has no damages to choose by");
    let some = changed("/damage/2", serde_json::json!([]));
    refused(
        &some,
        &[],
        "has no damage of layer 2; name other layers in --swap",
    );
    refused(
        &good,
        &["--by", "layer"],
        "has the damage of each head, not of each layer; give --by head",
    );
    let other = changed("/model/digest", "00".into());
    refused(&other, &[], "was calibrated for");
    let mut random = good.clone();
    random["chosen"]["random_weights"] = 3.into();
    refused(&random, &[], "has damages of random weights");
    refused(&serde_json::json!({"rule": "xor"}), &[], "has no `schema`");
    let swapped = place.path("some.json");
    fs::write(&swapped, some.to_string()).expect("written");
    let options = [
        "--from",
        swapped.to_str().expect("UTF-8"),
        "--swap",
        "0,1,3",
    ];
    let report = place.report("policy.json", &[&options[..], &with_pattern].concat());
    assert_eq!(report["damage"][2], serde_json::json!([]));
    let none = ["--from", "none.json", "--pattern", PATTERN];
    let missing = place.refused("policy.json", &none);
    assert!(missing.contains("none.json"), "{missing}");
}

#[test]
fn what_sets_find_is_counted() {
    let place = Place::new();
    let page = place.path("report.html");
    let page = page.to_str().expect("UTF-8");
    let options = [
        "--pattern",
        PATTERN,
        "--window",
        "200",
        "--windows",
        "1",
        "--retrieval",
        "3",
    ];
    let options = [&options[..], &["--seed", "5", "--report", page]].concat();
    let report = place.report("policy.json", &options);
    let curve = report["curve"].as_array().expect("points");
    assert!(curve.len() > 2);
    for point in curve {
        let found = &point["retrieval"];
        assert_eq!(
            (&found["prompts"], &found["seed"]),
            (&3.into(), &5.into()),
            "{found}"
        );
        // An answer has room in a window.
        assert_eq!(found["tokens"], 192);
        let [low, high] = [0, 1].map(|i| number(&found["interval"][i]));
        let share = number(&found["share"]);
        assert!(
            low <= share + 1e-9 && share <= high + 1e-9 && high - low > 0.2,
            "{found}"
        );
    }
    assert!(report["chosen"]["retrieval"].is_object());
    assert!(report["verified"].get("retrieval").is_none());
    let page = fs::read_to_string(page).expect("a page");
    assert!(page.contains("Facts found in 3 prompts of 192 tokens"));
    // Retrieval changes nothing else, and is not measured twice.
    let plain: Vec<&str> = options.iter().copied().take(6).collect();
    place.report("plain.json", &plain);
    let text = |name: &str| fs::read_to_string(place.path(name)).expect("read");
    assert_eq!(text("policy.json"), text("plain.json"));
    let lines = kept(&place, &options);
    assert!(
        lines.iter().any(|line| line.contains("\"found\"")),
        "{lines:?}"
    );
    fs::write(place.path("policy.json.partial"), lines.join("\n") + "\n").expect("written");
    let resumed = place.report("policy.json", &options);
    assert_eq!(resumed["resumed"], lines.len() - 1);
    assert!(alike(&resumed["curve"], &report["curve"]), "{resumed}");

    let short = place.refused(
        "policy.json",
        &[
            "--pattern",
            PATTERN,
            "--window",
            "60",
            "--tail",
            "8",
            "--retrieval",
        ],
    );
    assert!(
        short.contains("--retrieval: a prompt with a fact and its answer take"),
        "{short}"
    );
    let none = place.refused("policy.json", &["--pattern", PATTERN, "--retrieval", "0"]);
    assert!(none.contains("0 is not in 1.."), "{none}");
}
