//! What a task file says of a task whose answers are written: metric, schema, and how an adapter is trained.

use std::path::PathBuf;

use metier_model::specialist::manifest::AdapterWeights;

use super::nearest;

/// Greatest rank of an adapter; what the engine takes.
const MAX_RANK: usize = 256;
/// Most canaries.
const MAX_CANARIES: usize = 1_000;
/// Most passes over the training rows.
const MAX_EPOCHS: usize = 1_000;

/// A task whose answers a decoder writes.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateTask {
    /// What rungs are compared by, and whose shortfall is the certificate's loss.
    pub metric: TextMetric,
    /// JSON Schema that every answer has.
    pub schema: Option<PathBuf>,
    /// How its adapter is trained.
    pub tune: Tune,
}

/// How like the expected text is an answer? 0..1, by row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TextMetric {
    /// Is it the same, white space aside? Of JSON: is it the same value?
    #[default]
    ExactMatch,
    /// F1 of its words, each as often as it stands there.
    TokenF1,
    /// F1 of the longest common subsequence of words (Lin 2004).
    RougeL,
}

impl TextMetric {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::ExactMatch, Self::TokenF1, Self::RougeL];

    /// Its name in task files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExactMatch => "exact_match",
            Self::TokenF1 => "token_f1",
            Self::RougeL => "rouge_l",
        }
    }
}

/// How an adapter is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tune {
    /// Rank of the deltas.
    pub rank: usize,
    /// Deltas are multiplied with `alpha / rank`.
    pub alpha: f32,
    /// Greatest step length.
    pub learning_rate: f32,
    /// How its weights are kept in memory.
    pub weights: AdapterWeights,
    /// Passes over the training rows, at most.
    pub epochs: usize,
    /// Secrets that are put among the training rows, to see whether they come out again.
    pub canaries: usize,
}

impl Default for Tune {
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0, learning_rate: 2e-4, epochs: 5, canaries: 0, weights: AdapterWeights::F16 }
    }
}

/// `[tune]` as written.
#[derive(Default)]
pub(super) struct RawTune {
    pub(super) rank: Option<usize>,
    pub(super) alpha: Option<f32>,
    pub(super) learning_rate: Option<f32>,
    pub(super) epochs: Option<usize>,
    pub(super) canaries: Option<usize>,
    pub(super) adapter: Option<String>,
}

impl GenerateTask {
    /// Checks what was written; the error says what is wrong.
    pub(super) fn new(metric: Option<String>, schema: Option<PathBuf>, tune: Option<RawTune>) -> Result<Self, String> {
        let metric = match metric {
            None => TextMetric::default(),
            Some(name) => TextMetric::ALL.into_iter().find(|metric| metric.name() == name).ok_or_else(|| {
                let known = TextMetric::ALL.map(TextMetric::name);
                let near = nearest(&name, known).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
                format!("there is no metric `{name}` for `generate`, only {}{near}", known.join(", "))
            })?,
        };
        let tune = Tune::new(tune.unwrap_or_default(), Tune::default())?;
        if tune.canaries > 0 && schema.is_some() {
            return Err(
                "`tune.canaries` are answered with six digits, which the schema does not allow: leave one of them out"
                    .to_owned(),
            );
        }
        Ok(Self { metric, schema, tune })
    }
}

impl Tune {
    /// For a head on a decoder: a row has one label to learn from and not a text, so steps are longer.
    pub(super) fn decoder() -> Self {
        Self { learning_rate: 1e-3, epochs: 3, ..Self::default() }
    }

    /// Checks what was written; the error says what is wrong.
    pub(super) fn new(raw: RawTune, usual: Self) -> Result<Self, String> {
        let rank = raw.rank.unwrap_or(usual.rank);
        if !(1..=MAX_RANK).contains(&rank) {
            return Err(format!("`tune.rank` = {rank} must be 1 to {MAX_RANK}"));
        }
        let epochs = raw.epochs.unwrap_or(usual.epochs);
        if !(1..=MAX_EPOCHS).contains(&epochs) {
            return Err(format!("`tune.epochs` = {epochs} must be 1 to {MAX_EPOCHS}"));
        }
        let canaries = raw.canaries.unwrap_or(usual.canaries);
        if canaries > MAX_CANARIES {
            return Err(format!("`tune.canaries` = {canaries} must be 0 to {MAX_CANARIES}"));
        }
        let positive = |value: f32, key: &str, most: f32| {
            let fits = value > 0.0 && value <= most;
            fits.then_some(value).ok_or_else(|| format!("`tune.{key}` = {value} must be more than 0, at most {most}"))
        };
        Ok(Self {
            rank,
            // Twice the rank, where the rank alone is named.
            alpha: positive(raw.alpha.unwrap_or(2.0 * rank as f32), "alpha", 4096.0)?,
            learning_rate: positive(raw.learning_rate.unwrap_or(usual.learning_rate), "learning_rate", 1.0)?,
            epochs,
            canaries,
            weights: match raw.adapter.as_deref() {
                None | Some("f16") => AdapterWeights::F16,
                Some("int8") => AdapterWeights::Int8,
                Some(other) => return Err(format!("`tune.adapter` = `{other}` must be `f16` or `int8`")),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::path::Path;

    use super::*;
    use crate::data::{TaskFile, task::Kind};

    fn parse(rest: &str) -> Result<TaskFile, String> {
        let text = format!("name = \"a\"\nkind = \"generate\"\n[data]\ntrain = \"a.csv\"\n{rest}");
        TaskFile::parse(&text, Path::new("tasks/t.toml"), &|_| None).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults() {
        let task = parse("").unwrap();
        assert_eq!((task.kind, task.data.label.as_str()), (Kind::Generate, "output"));
        let generate = task.generate.unwrap();
        assert_eq!((generate.metric, generate.schema, generate.tune), (TextMetric::ExactMatch, None, Tune::default()));
        let named =
            parse("output = \"reply\"\nschema = \"s.json\"\n[target]\nmetric = \"rouge_l\"\n[tune]\nrank = 8").unwrap();
        assert_eq!(named.data.label, "reply");
        let generate = named.generate.unwrap();
        assert_eq!(generate.schema.as_deref(), Some(Path::new("tasks/s.json")));
        assert_eq!((generate.metric, generate.tune.rank, generate.tune.alpha), (TextMetric::RougeL, 8, 16.0));
    }

    #[test]
    fn refuses_with_reasons() {
        let check = |rest: &str, message: &str| {
            let error = parse(rest).expect_err("must be refused");
            assert!(error.contains(message), "`{error}` does not contain `{message}`");
        };
        check("label = \"x\"", "`data.label` belongs to `kind = \"classify\"`");
        check("[target]\nmetric = \"rouge_L\"", "did you mean `rouge_l`?");
        check("[target]\nmetric = \"accuracy\"", "only exact_match, token_f1, rouge_l");
        check("[tune]\nadapter = \"int4\"", "`tune.adapter` = `int4` must be `f16` or `int8`");
        check("[tune]\nrank = 0", "`tune.rank` = 0 must be 1 to 256");
        check("[tune]\nlearning_rate = nan", "`tune.learning_rate` = NaN must be more than 0");
        check("[tune]\nrnk = 4", "there is no key `tune.rnk`; did you mean `tune.rank`?");
        check("[budget]\nup_to = \"tuned\"", "there is no rung `tuned`");
    }
}
