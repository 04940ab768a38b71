//! Block rows against golden ones that other software computed.

use butterfly_compiler::classify;
use butterfly_ir::{Context, PartnerRule, stage};
use butterfly_tests::{butterfly, fixture};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    rule: PartnerRule,
    num_blocks: u32,
    local_window: u32,
    sink: u32,
    partner_count: u32,
    radix: u32,
    width: u32,
    stage_count: u32,
    stages: Vec<Stage>,
}

#[derive(Deserialize)]
struct Stage {
    stage: u32,
    rows: Vec<Vec<u32>>,
}

#[test]
fn every_golden_row_is_reproduced() {
    let text = std::fs::read_to_string(fixture("topology/topology.json")).expect("fixture");
    let golden: Golden = serde_json::from_str(&text).expect("well formed");
    let mut rows = 0;
    for case in &golden.cases {
        let pattern = butterfly(
            case.local_window,
            case.rule,
            case.radix,
            case.partner_count,
            case.sink,
        );
        assert_eq!(stage::width(case.num_blocks, case.radix), case.width);
        assert_eq!(pattern.stage_count(case.num_blocks), case.stage_count);
        assert_eq!(case.stages.len() as u32, case.stage_count);
        for block in [1, 3, 16] {
            for (index, stage) in case.stages.iter().enumerate() {
                assert_eq!(stage.stage, index as u32);
                let topology = classify::lower(
                    &pattern,
                    &Context::new(block, case.num_blocks * block, stage.stage),
                );
                let got: Vec<Vec<u32>> = topology
                    .rows
                    .iter()
                    .map(|row| row.blocks.iter().map(|x| x.block).collect())
                    .collect();
                // The golden rows also list sinks later than the row's own block, which the causal
                // mask hides.
                let clipped = stage.rows.iter().enumerate();
                let want: Vec<Vec<u32>> = clipped
                    .map(|(b, row)| row.iter().copied().filter(|c| *c <= b as u32).collect())
                    .collect();
                assert_eq!(
                    got, want,
                    "{:?} N={} stage {}",
                    case.rule, case.num_blocks, stage.stage
                );
                rows += want.len();
            }
        }
    }
    assert!(rows > 10_000, "{rows} rows compared");
}
