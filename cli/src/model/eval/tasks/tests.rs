use super::*;

const ALL: [RetrievalTask; 4] = [
    RetrievalTask::Needle,
    RetrievalTask::Multikey,
    RetrievalTask::Kv,
    RetrievalTask::Tracking,
];
const CASE: Case = Case {
    task: RetrievalTask::Needle,
    seed: 7,
    trial: 0,
    length: 1000,
    depth: 0.25,
};

/// One token a byte, as of a byte tokenizer.
fn bytes(text: &str) -> Result<Vec<u32>, Failure> {
    Ok(text.bytes().map(u32::from).collect())
}

/// Text of a byte that no fact has.
fn hay() -> Vec<u32> {
    vec![u32::from(b'~'); 300]
}

fn made(case: &Case) -> (String, Answer) {
    let Prompt { tokens, answer } = prompt(case, &hay(), &bytes).expect("it fits");
    assert_eq!(tokens.len(), case.length, "{case:?}");
    let text = tokens.iter().map(|byte| *byte as u8).collect();
    (String::from_utf8(text).expect("ASCII"), answer)
}

fn expected(answer: &Answer) -> String {
    let (Answer::Exactly(tokens) | Answer::Names { list: tokens, .. }) = answer;
    let text = tokens.iter().map(|byte| *byte as u8).collect();
    String::from_utf8(text).expect("ASCII")
}

#[test]
fn prompts_have_the_length_and_end_with_the_question() {
    for task in ALL {
        for length in [700, 701, 1000, 4096] {
            for depth in [0.0, 0.3, 1.0] {
                let case = Case {
                    task,
                    length,
                    depth,
                    ..CASE
                };
                let (text, answer) = made(&case);
                let asked = text.lines().last().expect("a question");
                match task {
                    RetrievalTask::Needle | RetrievalTask::Multikey | RetrievalTask::Kv => {
                        let fact = format!("\n{asked}{}", expected(&answer));
                        assert_eq!(text.matches(&fact).count(), 1, "{case:?} {fact}");
                    }
                    RetrievalTask::Tracking => assert!(asked.ends_with("they are:"), "{asked}"),
                }
            }
        }
    }
}

#[test]
fn needles_stand_at_their_depth() {
    for depth in [0.0, 0.25, 0.5, 1.0] {
        let (text, _) = made(&Case { depth, ..CASE });
        let before = text.bytes().take_while(|byte| *byte == b'~').count();
        let room = text.matches('~').count();
        assert_eq!(before, (room as f64 * f64::from(depth)) as usize, "{depth}");
    }
    let case = Case {
        task: RetrievalTask::Multikey,
        ..CASE
    };
    let (text, answer) = made(&case);
    let codes = text.matches(" is ").count();
    let asked = text.find(&expected(&answer)).expect("hidden");
    let before = text[..asked].matches('~').count();
    assert_eq!(codes, NEEDLES);
    assert_eq!(before, text.matches('~').count() / 4);
}

#[test]
fn pairs_fill_the_context() {
    let case = Case {
        task: RetrievalTask::Kv,
        length: 4096,
        ..CASE
    };
    let (text, answer) = made(&case);
    // "\nabcde: 12345" has 13 bytes, and less than one more pair is left over.
    assert!(text.matches('~').count() < 13, "{text}");
    let pairs: Vec<&str> = text.lines().filter(|line| line.len() == 12).collect();
    let keys: BTreeSet<&str> = pairs.iter().map(|pair| &pair[..5]).collect();
    assert_eq!(keys.len(), pairs.len());
    let value = expected(&answer);
    let at = pairs.iter().position(|pair| pair.ends_with(&value));
    assert_eq!(at, Some((pairs.len() - 1) / 4));
    assert!(text.ends_with(&format!("\n{}:", &pairs[at.expect("there")][..5])));
}

#[test]
fn chains_are_in_order_after_their_depth() {
    for depth in [0.0, 0.5, 1.0] {
        let case = Case {
            task: RetrievalTask::Tracking,
            depth,
            ..CASE
        };
        let (text, answer) = made(&case);
        let Answer::Names { names, .. } = answer else {
            panic!("{answer:?}");
        };
        let asked = text.lines().last().expect("a question");
        let value = asked.split(' ').nth(7).expect("a value");
        let mut from = 0;
        let mut is = value.trim_end_matches(',').to_string();
        for name in &names {
            let fact = format!("\nVAR {name} = {is}\n");
            let at = text[from..].find(&fact).unwrap_or_else(|| panic!("{fact}"));
            from += at + fact.len() - 1;
            is = format!("VAR {name}");
        }
        assert_eq!(text.matches("\nVAR ").count(), CHAINS * NAMES);
        let first = text.find(&format!(" {} ", names[0])).expect("hidden");
        let before = text[..first].matches('~').count();
        let room = text.matches('~').count();
        assert_eq!(before, (room as f64 * f64::from(depth)) as usize);
    }
}

#[test]
fn the_same_case_is_the_same_prompt_and_any_other_is_not() {
    for task in ALL {
        let case = Case { task, ..CASE };
        let (text, answer) = made(&case);
        assert_eq!((text.clone(), answer.clone()), made(&case));
        for other in [
            Case { seed: 8, ..case },
            Case { trial: 1, ..case },
            Case { depth: 0.5, ..case },
        ] {
            let (other, its) = made(&other);
            assert_ne!(text, other);
            assert_ne!(expected(&answer), expected(&its));
        }
    }
}

/// Another version of the program gives the same prompts for a seed.
#[test]
fn a_seed_stays_what_it_is() {
    let (text, answer) = made(&CASE);
    let fact = text.trim_matches('~').lines().nth(1).expect("a fact");
    assert_eq!(
        (fact, expected(&answer)),
        ("The secret code of the bridge is 40280.", " 40280".into())
    );
}

#[test]
fn the_least_length_is_enough_and_one_less_is_not() {
    for task in ALL {
        let case = Case { task, ..CASE };
        let (least, _) = least(&case, &bytes).expect("ASCII");
        // Other lengths make other choices, but of as many bytes; names of places differ.
        let case = Case {
            length: least + 40,
            ..case
        };
        let (least, most) = super::least(&case, &bytes).expect("ASCII");
        assert!(least <= case.length && most >= 6);
        made(&case);
        let case = Case { length: 10, ..case };
        let Err(Failure::Bad(said)) = prompt(&case, &hay(), &bytes) else {
            panic!("it does not fit");
        };
        let (least, _) = super::least(&case, &bytes).expect("ASCII");
        let expected = format!("task {} needs at least {least} tokens, not 10", task.name());
        assert_eq!(said, expected);
    }
}

#[test]
fn answers_are_found_as_far_as_they_are_right() {
    let answer = Answer::Exactly(vec![1, 2, 3, 4]);
    for (said, found, goes_on) in [
        (&[][..], 0.0, true),
        (&[1, 2], 0.5, true),
        (&[1, 9, 3, 4], 0.25, false),
        (&[1, 2, 3, 4], 1.0, false),
    ] {
        assert_eq!(answer.found(said, ""), found);
        assert_eq!(answer.goes_on(said), goes_on, "{said:?}");
    }
    let names = ["ABCDE", "FGHIJ"].map(String::from).to_vec();
    let list = vec![0; 3];
    let answer = Answer::Names { names, list };
    assert_eq!(answer.found(&[], " FGHIJ and XYZZY"), 0.5);
    assert_eq!(answer.found(&[], "ABCDE, FGHIJ"), 1.0);
    assert!(answer.goes_on(&[7; 5]) && !answer.goes_on(&[7; 6]));
}
