//! Printed kernel → the same kernel in canonical form.
//!
//! CubeCL declares mutable variables and vector types in hash-map order, and numbers temporaries
//! with counters of the whole process, so its text depends on what was printed before. This pass
//! sorts runs of declarations and renumbers generated names by first appearance.

use std::collections::HashMap;

/// Prefixes of generated names, each followed by a number.
const GENERATED: [&str; 9] = [
    "l_",
    "l_mut_",
    "l_arr_",
    "a_",
    "_tmp_",
    "shared_memory_",
    "frag_a_",
    "frag_b_",
    "frag_acc_",
];

/// Brings a printed kernel into canonical form.
pub(crate) fn canonicalize(text: &str) -> String {
    let text = text.replace("struct info_st {\n    \n};\n", "");
    let mut lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    sort_declarations(&mut lines);
    sort_types(&mut lines);
    lines.dedup_by(|next, line| next.is_empty() && line.is_empty());
    let mut text = renumber(lines.join("\n").trim());
    text.push('\n');
    text
}

/// Sorts each run of declarations of mutable variables.
fn sort_declarations(lines: &mut [&str]) {
    let mut start = 0;
    while start < lines.len() {
        let run = lines[start..]
            .iter()
            .take_while(|line| declared(line).is_some())
            .count();
        lines[start..start + run].sort_by_key(|line| declared(line));
        start += run + 1;
    }
}

/// Sorts the definitions of vector types, which form one region of the text.
fn sort_types(lines: &mut [&str]) {
    let opens = |line: &&str| line.starts_with("struct ") && line.ends_with('{');
    let Some(start) = lines.iter().position(opens) else {
        return;
    };
    let Some(last) = lines.iter().rposition(opens) else {
        return;
    };
    let Some(length) = lines[last..].iter().position(|line| *line == "};") else {
        return;
    };
    let region = &mut lines[start..=last + length];
    let mut types: Vec<Vec<&str>> = region
        .split_inclusive(|line| *line == "};")
        .map(<[&str]>::to_vec)
        .collect();
    for body in &mut types {
        body.retain(|line| !line.is_empty());
    }
    types.sort();
    let mut sorted = types.concat();
    sorted.resize(region.len(), "");
    region.copy_from_slice(&sorted);
}

/// The number of the variable that a line declares: `uint32 l_mut_3;`, `var l_mut_3: u32;`.
fn declared(line: &str) -> Option<u32> {
    let line = line.strip_suffix(';')?;
    let line = match line.strip_prefix("var ") {
        Some(rest) => rest.split_once(':')?.0,
        None => line.rsplit_once(' ')?.1,
    };
    line.strip_prefix("l_mut_")?.parse().ok()
}

/// Renumbers the generated names of a text.
fn renumber(text: &str) -> String {
    let mut names: HashMap<&str, String> = HashMap::new();
    let mut counts = [0u32; GENERATED.len()];
    let mut out = String::with_capacity(text.len());
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut rest = text;
    while let Some(start) = rest.find(is_word) {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        match generated(word) {
            Some(kind) => out.push_str(names.entry(word).or_insert_with(|| {
                counts[kind] += 1;
                format!("{}{}", GENERATED[kind], counts[kind] - 1)
            })),
            None => out.push_str(word),
        }
    }
    out.push_str(rest);
    out
}

/// Which kind of generated name a word is.
fn generated(word: &str) -> Option<usize> {
    let is_number = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
    GENERATED
        .iter()
        .position(|prefix| word.strip_prefix(prefix).is_some_and(is_number))
}

#[cfg(test)]
mod tests {
    use super::canonicalize;

    #[test]
    fn numbers_and_order_of_declarations_do_not_matter() {
        let one = "uint l_mut_9;\nfloat l_mut_7;\nl_mut_7 = l_40 + a_3[l_mut_9];\n";
        let two = "float l_mut_1;\nuint l_mut_2;\nl_mut_1 = l_0 + a_0[l_mut_2];\n";
        assert_eq!(
            canonicalize(one),
            two.replace("l_mut_1", "l_mut_0")
                .replace("l_mut_2", "l_mut_1")
        );
        assert_eq!(canonicalize(one), canonicalize(two));
    }

    #[test]
    fn order_of_types_does_not_matter() {
        let (a, b) = (
            "struct A {\n    int i_0;\n};\n",
            "struct B {\n    int i_0;\n};\n",
        );
        let one = canonicalize(&format!("x\n\n{a}\n{b}\ny\n"));
        let two = canonicalize(&format!("x\n\n{b}\n{a}\ny\n"));
        assert_eq!(one, two);
        assert_eq!(one, format!("x\n\n{a}{b}\ny\n"));
    }

    #[test]
    fn other_names_stay() {
        let text = "uint32 buffer_4 = l_arr_x + vec4_12;\n";
        assert_eq!(canonicalize(text), text);
    }
}
