//! Policy files: a calibrated choice of attention, with what it costs.
//!
//! In:  a JSON file of schema 1, written by `butterfly calibrate`. Out: a pattern that was checked
//! against the model it is used with. Unknown fields, wrong types and tables of the wrong size are
//! errors that name the file.

use crate::ModelError;
use crate::calibrate::{Site, Unit};
use butterfly_ir::Sparsity;
use butterfly_ir::model::{LayerKind, ModelConfig, ModelSizes};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The schema that this version reads and writes.
const SCHEMA: u32 = 1;

/// A calibrated policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    schema: u32,
    /// The model that it was measured with.
    pub model: ModelShape,
    /// The pattern's text, with `per_layer`, `per_head` and `tail`.
    pub pattern: String,
    /// What was chosen, and what it costs on text that was not used for the choice.
    pub chosen: Chosen,
    /// Divergence when each part alone is replaced, in nats for each scored position: for each layer
    /// of the model one number, or one for each kv head; none for layers that were not measured.
    pub damage: Vec<Vec<f64>>,
    /// Where the damages are from, if not from the run that chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranking: Option<Ranking>,
}

/// The policy that damages were taken from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ranking {
    /// Its file, as it was named.
    pub policy: String,
    /// BLAKE3 of the file, in hexadecimal.
    pub digest: String,
    /// BLAKE3 of the text that they were measured on, in hexadecimal.
    pub text_digest: String,
}

/// What a policy has to know of its model. Weights are not part of it: those of a fine-tuned or
/// packed model of the same shape may be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelShape {
    /// BLAKE3 of family, kinds of layers, heads and widths, in hexadecimal.
    pub digest: String,
    /// The family's `model_type`.
    pub family: String,
    /// Number of layers.
    pub layers: u32,
    /// Number of kv heads of an attention layer.
    pub kv_heads: u32,
}

/// The choice, and what it costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chosen {
    /// What was replaced on its own.
    pub by: Unit,
    /// Share of these parts that is replaced, 0 to 1.
    pub share: f64,
    /// Mean divergence from dense attention, in nats.
    pub kl_nats: f64,
    /// Share of positions with the same most likely token.
    pub top1: f64,
    /// Perplexity, divided by that of dense attention.
    pub perplexity_ratio: f64,
    /// BLAKE3 of the text, in hexadecimal.
    pub text_digest: String,
    /// Scored positions of the text on which these three were measured.
    pub tokens: u64,
    /// The seed of the weights, if they were random: then neither these figures nor damages say
    /// anything about a trained model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random_weights: Option<u64>,
}

impl ModelShape {
    /// The shape of a model.
    pub fn new(model: &ModelConfig, sizes: &ModelSizes) -> Self {
        // Numbers that every form of a model has alike: not those of rotations, which files round
        // differently, and not the vocabulary, which some pad.
        let kinds = (&model.layers, &model.attention);
        let mut digested = vec![
            serde_json::json!(model.family.name()),
            serde_json::json!(kinds),
            serde_json::json!(sizes.linear),
            serde_json::json!(sizes.hidden),
            serde_json::json!(sizes.intermediate),
        ];
        // Left out where there are none, so that the digests of other models stay as they were.
        digested.extend(
            sizes
                .experts
                .as_ref()
                .map(|experts| serde_json::json!(experts)),
        );
        let digested = serde_json::Value::from(digested);
        Self {
            digest: blake3::hash(digested.to_string().as_bytes())
                .to_hex()
                .to_string(),
            family: model.family.name().to_string(),
            layers: u32::try_from(model.layers.len()).unwrap_or(u32::MAX),
            kv_heads: model.attention.kv_heads(),
        }
    }
}

impl PolicyFile {
    /// A policy of the current schema.
    pub fn new(
        model: ModelShape,
        pattern: &Sparsity,
        chosen: Chosen,
        damage: Vec<Vec<f64>>,
    ) -> Self {
        Self {
            schema: SCHEMA,
            model,
            pattern: pattern.to_string(),
            chosen,
            damage,
            ranking: None,
        }
    }

    /// The damages of `sites`, which are parts of a model that this policy is for.
    ///
    /// # Errors
    /// The first of them that the policy has no damage of.
    pub fn damages(&self, sites: &[Site]) -> Result<Vec<(Site, f64)>, Site> {
        let damage = |site: &Site| {
            let row = self.damage.get(site.layer as usize);
            let known = row.and_then(|row| row.get(site.head.unwrap_or(0) as usize));
            known.map(|damage| (*site, *damage)).ok_or(*site)
        };
        sites.iter().map(damage).collect()
    }

    /// Reads a policy and its pattern, and checks that it is whole.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::File`], with the field that is wrong.
    pub fn read(path: &Path) -> Result<(Self, Sparsity), ModelError> {
        let text = crate::checkpoint::read(path, "; `butterfly calibrate` writes policies")?;
        let wrong = |what: String| ModelError::File {
            path: path.to_path_buf(),
            what,
        };
        let again = "; give a policy that `butterfly calibrate` wrote";
        let value: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| wrong(format!("is not JSON: {error}{again}")))?;
        match value.get("schema") {
            Some(schema) if *schema == SCHEMA => {}
            Some(schema) => {
                return Err(wrong(format!(
                    "`schema` is {schema}, this version reads {SCHEMA}; calibrate again"
                )));
            }
            None => return Err(wrong(format!("has no `schema`: it is no policy{again}"))),
        }
        // From the text, so that messages have line and column.
        let policy: Self = serde_json::from_str(&text)
            .map_err(|error| wrong(format!("is no policy of schema {SCHEMA}: {error}{again}")))?;
        policy.check_numbers().map_err(|what| wrong(what + again))?;
        let name = format!("{}: `pattern`", path.display());
        let sparsity = Sparsity::parse(&name, &policy.pattern);
        let sparsity = sparsity.map_err(|error| wrong(format!("`pattern`: {error}")))?;
        Ok((policy, sparsity))
    }

    fn check_numbers(&self) -> Result<(), String> {
        let Self {
            model,
            chosen,
            damage,
            ..
        } = self;
        let share = |x: f64| (0.0..=1.0).contains(&x);
        let numbers = [
            ("share", chosen.share, share(chosen.share), "from 0 to 1"),
            ("top1", chosen.top1, share(chosen.top1), "from 0 to 1"),
            (
                "perplexity_ratio",
                chosen.perplexity_ratio,
                chosen.perplexity_ratio > 0.0,
                "above 0",
            ),
        ];
        if let Some((name, x, _, range)) = numbers.iter().find(|(_, _, fits, _)| !fits) {
            return Err(format!("`chosen.{name}` is {x}, not {range}"));
        }
        let (rows, layers) = (damage.len(), model.layers as usize);
        if rows != layers {
            return Err(format!("`damage` has {rows} rows for {layers} layers"));
        }
        let each = match chosen.by {
            Unit::Layer => 1,
            Unit::Head => model.kv_heads as usize,
        };
        let odd = |row: &Vec<f64>| !row.is_empty() && row.len() != each;
        match damage.iter().position(odd) {
            None => Ok(()),
            Some(layer) => Err(format!(
                "`damage[{layer}]` has {} numbers, not {each}",
                damage[layer].len()
            )),
        }
    }

    /// Checks that a policy, read from `path`, is one for this model.
    ///
    /// # Errors
    /// [`ModelError::File`] that says in what the two differ.
    pub fn check(
        &self,
        path: &Path,
        model: &ModelConfig,
        sizes: &ModelSizes,
    ) -> Result<(), ModelError> {
        let (own, theirs) = (ModelShape::new(model, sizes), &self.model);
        if own == *theirs {
            return self.check_layers(model).map_err(|what| ModelError::File {
                path: path.to_path_buf(),
                what,
            });
        }
        let said = |shape: &ModelShape| {
            format!(
                "{} of {} layers with {} kv heads",
                shape.family, shape.layers, shape.kv_heads
            )
        };
        let what = match said(&own) == said(theirs) {
            true => "other widths, heads or kinds of layers".to_string(),
            false => said(&own),
        };
        Err(ModelError::File {
            path: path.to_path_buf(),
            what: format!(
                "was calibrated for {}, this model is {what}; calibrate it with `butterfly calibrate`",
                said(theirs)
            ),
        })
    }

    /// Only layers with softmax attention have damages.
    fn check_layers(&self, model: &ModelConfig) -> Result<(), String> {
        let rows = self.damage.iter().zip(&model.layers).enumerate();
        let linear = |row: &Vec<f64>, kind: &LayerKind| !row.is_empty() && !kind.is_softmax();
        match rows.into_iter().find(|(_, (row, kind))| linear(row, kind)) {
            None => Ok(()),
            Some((layer, _)) => Err(format!(
                "`damage[{layer}]` has numbers, but layer {layer} has no softmax attention; calibrate again"
            )),
        }
    }

    /// The text of the file.
    ///
    /// # Errors
    /// [`serde_json::Error`] never, as far as is known: all fields have a form in JSON.
    pub fn text(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use butterfly_compiler::config;
    use butterfly_tests::fixture;
    use serde_json::{Value, json};

    fn model(file: &str) -> (ModelConfig, ModelSizes) {
        let path = fixture("configs").join(file);
        let text = std::fs::read_to_string(&path).expect("a config");
        let model = config::read(file, &text).expect("a config");
        let sizes = config::sizes(file, &text, &model).expect("sizes");
        (model, sizes)
    }

    fn policy() -> (PolicyFile, Sparsity) {
        let (model, sizes) = model("qwen3-8b.json");
        let text = "block 64\ncausal & (window(448) | sink(1))";
        let sparsity = Sparsity::parse("test", text).expect("a pattern");
        let chosen = Chosen {
            by: Unit::Head,
            share: 0.5,
            kl_nats: 0.001,
            top1: 0.98,
            perplexity_ratio: 1.01,
            text_digest: "ab".into(),
            tokens: 3648,
            random_weights: None,
        };
        let damage = vec![vec![0.5, 1e-7, -1e-9, 0.25, 0.0, 1.0, 2.0, 3.0]; 36];
        let shape = ModelShape::new(&model, &sizes);
        (PolicyFile::new(shape, &sparsity, chosen, damage), sparsity)
    }

    fn read(text: &str) -> Result<(PolicyFile, Sparsity), String> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("policy.json");
        std::fs::write(&path, text).expect("written");
        let read = PolicyFile::read(&path).map_err(|error| error.to_string());
        if let Err(error) = &read {
            assert!(error.starts_with(&path.display().to_string()), "{error}");
        }
        read
    }

    #[test]
    fn a_policy_is_read_as_it_was_written() {
        let (policy, sparsity) = policy();
        let text = policy.text().expect("JSON");
        assert_eq!(read(&text), Ok((policy.clone(), sparsity)));
        let (model, sizes) = model("qwen3-8b.json");
        policy
            .check(Path::new("p"), &model, &sizes)
            .expect("its model");
    }

    #[test]
    fn where_a_ranking_is_from_is_kept() {
        let (mut policy, sparsity) = policy();
        let before = policy.text().expect("JSON");
        assert!(!before.contains("ranking") && !before.contains("random_weights"));
        policy.chosen.random_weights = Some(7);
        policy.ranking = Some(Ranking {
            policy: "first.json".into(),
            digest: "cd".into(),
            text_digest: "ef".into(),
        });
        let text = policy.text().expect("JSON");
        assert_eq!(read(&text), Ok((policy, sparsity)));
        let error =
            read(&text.replace("\"digest\": \"cd\"", "\"digest\": 3")).expect_err("refused");
        assert!(error.contains("invalid type: integer"), "{error}");
    }

    #[test]
    fn damages_are_found_by_part() {
        let (mut policy, _) = policy();
        let site = |layer, head| Site { layer, head };
        let asked = [site(3, Some(0)), site(35, Some(3))];
        let found = policy.damages(&asked).expect("there");
        assert_eq!(found, [(asked[0], 0.5), (asked[1], 0.25)]);
        policy.damage[3].clear();
        assert_eq!(policy.damages(&asked), Err(asked[0]));
        assert_eq!(policy.damages(&[site(36, None)]), Err(site(36, None)));
        policy.damage = vec![vec![2.0]; 36];
        let layer = site(8, None);
        assert_eq!(policy.damages(&[layer]), Ok(vec![(layer, 2.0)]));
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        let (policy, _) = policy();
        let good: Value = serde_json::from_str(&policy.text().expect("JSON")).expect("JSON");
        let changed = |path: &str, value: Value| {
            let mut bad = good.clone();
            match bad.pointer_mut(path) {
                Some(place) => *place = value,
                None => {
                    let (parent, name) = path.rsplit_once('/').expect("a path");
                    bad.pointer_mut(parent).expect("there")[name] = value;
                }
            }
            bad.to_string()
        };
        let short = vec![vec![0.0; 8]; 35];
        let mut odd = vec![vec![0.0; 8]; 36];
        odd[4] = vec![0.0];
        for (text, said) in [
            ("not JSON".to_string(), "is not JSON"),
            ("{}".to_string(), "has no `schema`"),
            (
                changed("/schema", json!(2)),
                "`schema` is 2, this version reads 1",
            ),
            (changed("/extra", json!(1)), "unknown field `extra`"),
            (changed("/chosen/extra", json!(1)), "unknown field `extra`"),
            (changed("/chosen/by", json!("hed")), "unknown variant `hed`"),
            (
                changed("/chosen/tokens", json!("7")),
                "invalid type: string",
            ),
            (
                changed("/chosen/share", json!(1.5)),
                "`chosen.share` is 1.5, not from 0 to 1",
            ),
            (
                changed("/chosen/perplexity_ratio", json!(0)),
                "`chosen.perplexity_ratio` is 0",
            ),
            (changed("/model/layers", json!(-1)), "invalid value"),
            (
                changed("/pattern", json!("causal & windw(3)")),
                "`pattern`: ",
            ),
            (
                changed("/damage", json!(short)),
                "`damage` has 35 rows for 36 layers",
            ),
            (
                changed("/damage", json!(odd)),
                "`damage[4]` has 1 numbers, not 8",
            ),
            (changed("/damage/3/2", json!(null)), "invalid type: null"),
        ] {
            let error = read(&text).expect_err(said);
            assert!(error.contains(said), "{error}");
        }
        let missing = PolicyFile::read(Path::new("none.json")).expect_err("refused");
        assert!(
            missing
                .to_string()
                .contains("`butterfly calibrate` writes policies")
        );
    }

    #[test]
    fn a_policy_is_for_its_model() {
        let (policy, _) = policy();
        let check = |model: &ModelConfig, sizes: &ModelSizes| {
            let error = policy.check(Path::new("p.json"), model, sizes);
            error.expect_err("refused").to_string()
        };
        let (mut other, sizes) = model("mistral-7b-v0.1.json");
        let said = check(&other, &sizes);
        let want = "p.json: was calibrated for qwen3 of 36 layers with 8 kv heads, this model is mistral of 32 layers";
        assert!(said.starts_with(want), "{said}");
        (other, _) = model("qwen3-8b.json");
        let said = check(&other, &sizes);
        assert!(said.contains("other widths"), "{said}");
        // An element type is no other model.
        let (mut own, sizes) = model("qwen3-8b.json");
        own.dtype = butterfly_ir::Dtype::F16;
        policy
            .check(Path::new("p"), &own, &sizes)
            .expect("the same");
        // Numbers for a layer that has no softmax attention.
        let (hybrid, sizes) = model("qwen3.5-9b.json");
        let mut wrong = policy.clone();
        wrong.model = ModelShape::new(&hybrid, &sizes);
        let kv_heads = wrong.model.kv_heads as usize;
        wrong.damage = vec![vec![0.0; kv_heads]; hybrid.layers.len()];
        let error = wrong
            .check(Path::new("p"), &hybrid, &sizes)
            .expect_err("refused");
        assert!(
            error.to_string().contains("`damage[0]` has numbers"),
            "{error}"
        );
        for (row, kind) in wrong.damage.iter_mut().zip(&hybrid.layers) {
            if !kind.is_softmax() {
                row.clear();
            }
        }
        wrong
            .check(Path::new("p"), &hybrid, &sizes)
            .expect("its model");
    }
}
