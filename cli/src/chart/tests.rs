use super::*;

fn map(values: Vec<Vec<Option<f64>>>) -> HeatMap {
    HeatMap {
        title: "a < b & c".into(),
        rows: ("layer".into(), vec!["0".into(), "1".into()]),
        columns: ("head".into(), vec!["0".into(), "1".into()]),
        panels: vec![Panel {
            title: "damage".into(),
            values,
        }],
        across: 1,
        unit: Unit::Number,
        scale: Scale::Log,
        range: None,
    }
}

#[test]
fn a_map_has_a_cell_for_each_value_from_light_to_dark() {
    let values = vec![vec![Some(0.001), Some(0.1)], vec![None, Some(0.0)]];
    let svg = heat_map(&map(values));
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    assert_eq!(svg.matches("</title></rect>").count(), 3);
    let cell = |says: &str| {
        let line = svg
            .lines()
            .find(|line| line.contains(&format!("<title>{says}</title>")));
        let line = line.unwrap_or_else(|| panic!("no {says}: {svg}"));
        let (_, rest) = line.split_once("fill=\"").expect("a colour");
        rest[..7].to_string()
    };
    let [least, most, zero] = [
        "layer 0, head 0: 0.001",
        "layer 0, head 1: 0.1",
        "layer 1, head 1: 0",
    ]
    .map(cell);
    assert_eq!((least.as_str(), most.as_str()), ("#e2eaf6", "#184696"));
    // What has no place on the scale has the colour of the least.
    assert_eq!(zero, least);
    assert!(svg.contains("a &lt; b &amp; c") && !svg.contains("a < b"));
}

#[test]
fn lines_go_through_their_points() {
    let axis = |scale, unit| Axis {
        title: "axis".into(),
        unit,
        scale,
    };
    let chart = Curves {
        title: "KL".into(),
        x: axis(Scale::Log, Unit::Count),
        y: axis(Scale::Linear, Unit::Share),
        lines: vec![Line {
            name: "window".into(),
            points: vec![
                [1024.0, 0.0],
                [2048.0, 0.5],
                [4096.0, 1.0],
                [0.0, 0.3],
                [8192.0, f64::NAN],
            ],
        }],
    };
    let svg = curves(&chart);
    // The ends of the plot and its middle, on a logarithmic axis; the last two have no place.
    assert!(
        svg.contains("points=\"70.0,340.0 256.7,190.0 443.3,40.0\""),
        "{svg}"
    );
    assert_eq!(svg.matches("<circle").count(), 3);
    for tick in [
        ">1024<", ">2048<", ">4096<", ">8192<", ">0 %<", ">100 %<", ">window<",
    ] {
        assert!(svg.contains(tick), "{tick}: {svg}");
    }
    assert_eq!(svg, curves(&chart));
    let none = Curves {
        lines: Vec::new(),
        ..chart
    };
    assert!(!curves(&none).contains("NaN"));
}

#[test]
fn numbers_are_short() {
    for (value, text) in [
        (0.0, "0"),
        (0.042, "0.042"),
        (11.9, "11.9"),
        (12345.6, "12346"),
        (0.000_712_34, "0.0007123"),
    ] {
        assert_eq!(Unit::Number.show(value), text);
    }
    assert_eq!(
        (Unit::Share.show(0.9), Unit::Count.show(8192.0)),
        ("90 %".into(), "8192".into())
    );
}
