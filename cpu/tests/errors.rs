//! Tests the errors for arguments that do not fit one another.

use butterfly_cpu::{Problem, ProblemError, Values, attend};
use butterfly_ir::{Band, BandTable, ScoreValues};

#[test]
fn errors_name_the_argument() {
    let (q, kv) = (vec![0.5; 2 * 200 * 16], vec![0.5; 200 * 16]);
    // Thirteen rows of sixteen tokens; each sees every key.
    let rows = BandTable {
        offsets: (0..=13).collect(),
        bands: vec![Band::keys(0, 200); 13],
        ..BandTable::default()
    };
    let problem = Problem {
        score: Default::default(),
        batch: 1,
        q_heads: 2,
        kv_heads: 1,
        q_len: 200,
        kv_len: 200,
        kv_room: 200,
        head_dim: 16,
        v_head_dim: 16,
        q_offset: 0,
        block: 16,
        scale: 0.25,
        q: &q,
        k: (&kv).into(),
        v: (&kv).into(),
        rows: &rows,
    };
    assert!(attend(&problem, None).is_ok());
    let text = |problem: Problem| attend(&problem, None).unwrap_err().to_string();
    assert_eq!(
        text(Problem {
            kv_len: 199,
            kv_room: 199,
            ..problem
        }),
        "`k` has 3200 numbers, but its shape [1, 1, 199, 16] needs 3184"
    );
    assert_eq!(
        text(Problem {
            v: Values::InKeys { shared: false },
            v_head_dim: 24,
            ..problem
        }),
        "`v_head_dim` is 24, but values are part of keys of 16 elements"
    );
    assert_eq!(
        text(Problem {
            block: 0,
            ..problem
        }),
        "`block` is 0, but must be at least 1"
    );
    assert_eq!(
        text(Problem {
            q_heads: 3,
            kv_heads: 2,
            ..problem
        }),
        "3 query heads are not a multiple of 2 kv heads"
    );
    assert_eq!(
        text(Problem {
            q_offset: 9,
            ..problem
        }),
        "the band table has 13 rows from row 0 on, but the queries are in rows 0 to 13"
    );
    assert_eq!(
        text(Problem {
            q_offset: usize::MAX,
            ..problem
        }),
        format!(
            "`queries` ends at position {}, but positions stay below 1073741824",
            usize::MAX
        )
    );
    let mut broken = rows.clone();
    broken.offsets[2] = 99;
    assert_eq!(
        text(Problem {
            rows: &broken,
            ..problem
        }),
        "row 1 of the band table is 1..99 of 13 bands"
    );
    let mut broken = rows.clone();
    broken.heads = 3;
    assert_eq!(
        text(Problem {
            rows: &broken,
            ..problem
        }),
        "the band table has 13 rows for 3 heads of 1 sequences; it needs as many rows for each of 1 kv heads, or is shared by all, and rows for 1 or 1 sequences"
    );
    let score = |softcap, sinks| Problem {
        score: ScoreValues { softcap, sinks },
        ..problem
    };
    assert_eq!(
        text(score(Some(-1.0), None)),
        "the softcap is -1, but must be positive and finite"
    );
    assert_eq!(
        text(score(None, Some(&[0.0; 9]))),
        format!(
            "`sinks` has 9 numbers, but its shape [1, {0}, 1, 1] needs {0}",
            problem.q_heads
        )
    );
    for (bad, given) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let mut sinks = vec![f32::NEG_INFINITY; problem.q_heads];
        sinks[1] = bad;
        let score = ScoreValues {
            softcap: None,
            sinks: Some(&sinks),
        };
        assert_eq!(
            text(Problem { score, ..problem }),
            format!("the sink of q head 1 is {given}, but must be a number below infinity")
        );
    }
    let none = attend(&problem, Some(0)).unwrap_err();
    assert_eq!(none, ProblemError::Zero { name: "threads" });
}
