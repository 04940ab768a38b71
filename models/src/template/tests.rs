use super::*;
use butterfly_tests::fixture;
use std::fs;
use std::time::Instant;

/// The time that `expected.py` renders with.
fn now() -> Zoned {
    let time = jiff::civil::datetime(2024, 7, 6, 15, 4, 5, 0);
    time.to_zoned(jiff::tz::TimeZone::UTC).expect("a time")
}

fn read(name: &str) -> Value {
    let text = fs::read_to_string(fixture("chat").join(name)).expect("a fixture");
    serde_json::from_str(&text).expect("JSON")
}

fn at(value: &Value, name: &str) -> Value {
    value.get_attr(name).expect("a field")
}

fn render(text: &str, values: Value) -> Result<String, String> {
    Template::new(text)?.render(&values, now())
}

/// The error of a template that must fail, and within twice the time limit.
fn refused(text: &str) -> String {
    let started = Instant::now();
    let error = render(text, Value::from_pairs::<_, &str, Value>([])).expect_err(text);
    assert!(started.elapsed() < 2 * LONGEST_TIME, "{text}");
    error
}

#[test]
fn dialects_render_as_jinja2_does() {
    let given = read("conversations.json");
    let expected = at(&read("expected.json"), "templates");
    let mut wrong = Vec::new();
    let mut count = 0;
    for dialect in expected.try_iter().expect("dialects") {
        let path = fixture("chat").join(format!("{dialect}.jinja"));
        let text = fs::read_to_string(path).expect("a template");
        let template = Template::new(&text).unwrap_or_else(|error| panic!("{dialect}: {error}"));
        let texts = expected.get_item(&dialect).expect("texts");
        for key in texts.try_iter().expect("texts") {
            let name = key.as_str().expect("text");
            let (conversation, more) = name.split_once(", bos_token ").expect("a case");
            let (bos, prompt) = more.split_once(", prompt ").expect("a case");
            let has = |what| match conversation.contains(what) {
                true => at(&given, what),
                false => Value::from(()),
            };
            let mut values = vec![
                ("eos_token", Value::from("</s>")),
                ("messages", at(&at(&given, "conversations"), conversation)),
                ("tools", has("tools")),
                ("documents", has("documents")),
                ("add_generation_prompt", Value::from(prompt == "True")),
            ];
            if bos != "None" {
                values.push(("bos_token", Value::from(bos)));
            }
            let got = template.render(&Value::from_pairs(values), now());
            let want = texts.get_item(&key).expect("a text");
            if got.as_deref().ok() != want.as_str() {
                wrong.push(format!("{dialect}, {name}:\n{got:?}\n{want:?}"));
            }
            count += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(count >= 18 * 8, "{count}");
}

#[test]
fn expressions_mean_what_they_mean_in_jinja2() {
    let given = read("conversations.json");
    let values = ["text", "data"].map(|name| (name, at(&given, name)));
    let values = Value::from_pairs(values.into_iter().chain([("tools", Value::from(()))]));
    let expressions = at(&given, "expressions");
    let expected = at(&read("expected.json"), "expressions");
    let mut wrong = Vec::new();
    for (i, want) in expected.try_iter().expect("texts").enumerate() {
        let text = expressions.get_item_by_index(i).expect("an expression");
        let text = text.as_str().expect("text");
        let got = render(text, values.clone());
        if got.as_deref().ok() != want.as_str() {
            wrong.push(format!("{text}\n{got:?}\n{want:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn failures_say_where() {
    assert_eq!(
        refused("a\n{{ raise_exception('Roles must alternate') }}"),
        "its chat template refuses the conversation in line 2: Roles must alternate"
    );
    let error = refused("a\n\n{{ missing.role }}");
    assert!(error.contains("in line 3: undefined value"), "{error}");
    let error = refused("a\n{% if %}");
    assert!(error.contains("in line 2: syntax error"), "{error}");
    let error = refused("{{ strftime_now('%!') }}");
    assert!(error.contains("in line 1"), "{error}");
    assert!(refused(&" ".repeat(LONGEST + 1)).contains("at most"));
}

/// Long loops, large texts, and values whose text doubles with each step.
#[test]
fn work_is_bounded() {
    let long = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
    let twice = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
    let text = "{% set x = 'xxxxxxxxxxxxxxxx' * 4000 %}";
    let mut all = vec![
        long.to_string(),
        "{% for i in range(10 ** 9) %}{% endfor %}".into(),
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}".into(),
        "{{ '%999999999d' % 1 }}".into(),
        "{{ '%999999999d' | format(1) }}".into(),
        "{{ '{:999999999d}'.format(1) }}".into(),
        "{{ '{:9999999999999999999999d}'.format(1) }}".into(),
        "{{ 'x' * 10 ** 9 }}".into(),
        "{{ [1] * 10 ** 9 }}".into(),
        "{{ 'x'.ljust(10 ** 9) }}".into(),
        "{{ 'x'.zfill(10 ** 12) }}".into(),
        "{{ 'a' | indent(10 ** 9) }}".into(),
        format!("{text}{{{{ x.replace('x', x) }}}}"),
        format!("{text}{{{{ x.join(x) }}}}"),
        format!("{text}{{{{ ('{{0}}' * 4000).format(x) }}}}"),
        format!("{text}{{% for i in range(9999) %}}{{{{ x }}}}{{% endfor %}}"),
    ];
    for ending in ["{{ ns.x | tojson }}", "{{ ns.x | tojson(indent=2) }}"] {
        all.push(format!("{twice}{ending}"));
    }
    for template in &all {
        refused(template);
    }
}

/// Deep nesting is either rendered or refused; the stack does not overflow.
#[test]
fn nesting_is_bounded() {
    let fill = |most: usize, start: &str, part: &str, end: &str| {
        let count = (most - start.len() - end.len()) / part.len();
        format!("{start}{}{end}", part.repeat(count))
    };
    for [start, part, end] in [
        ["{{ ", "(", ""],
        ["{{ ", "[", ""],
        ["{{ ", "{1:", ""],
        ["{{ ", "not ", "1 }}"],
        ["{{ ", "-", "1 }}"],
        ["{{ a", ".b", " }}"],
        ["{{ a", "[0]", " }}"],
        ["{{ a", "()", " }}"],
        ["{{ 1", "+a", " }}"],
        ["{{ 1", "%a", " }}"],
        ["{{ 1", "~1", " }}"],
        ["{{ 1", "**1", " }}"],
        ["{{ 1", " if 1 else 1", " }}"],
        ["{{ 1", "|abs", " }}"],
        ["{{ a ", "and a ", "}}"],
        ["{{ a ", "is a ", "}}"],
        ["", "{% if a %}", ""],
        ["{% if a %}", "{% elif a %}", "{% endif %}"],
        ["", "{% generation %}", ""],
        ["{% raw %}", "{% endraw %}{% raw %}", ""],
    ] {
        for most in [2048, LONGEST] {
            let template = fill(most, start, part, end);
            // Any result will do: a stack overflow would end the process.
            let _ = render(&template, Value::from_pairs::<_, &str, Value>([]));
        }
    }
    for ending in [
        "",
        "{{ ns.x }}",
        "{{ ns.x | tojson }}",
        "{{ ns.x == ns.y }}",
    ] {
        for part in ["[ns.x]", "{'a': ns.x}"] {
            let other = part.replace("ns.x", "ns.y");
            let deep = "{% set ns = namespace(x=[], y=[]) %}{% for i in range(99999) %}";
            let set = format!("{{% set ns.x = {part} %}}{{% set ns.y = {other} %}}{{% endfor %}}");
            let _ = render(&format!("{deep}{set}{ending}"), Value::from(()));
        }
    }
}
