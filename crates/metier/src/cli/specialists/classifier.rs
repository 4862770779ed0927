//! A head on an encoder for Transformers: a folder that `AutoModelForSequenceClassification` loads without code of ours. What was written is
//! read again, and asked the bundle's probe texts beside what serves.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use metier_model::{
    Encoder, Specialist,
    export::classifier::{Classifier, Exported},
    specialist::{manifest::Stage, sets},
};
use serde_json::json;

use super::{
    super::{Failure, Outcome, bases, build::must_be_new, found, line},
    leave::{Form, LEAST_EQUAL, PROMPTS, form_name, write_folder},
};
use crate::config::{Environment, Settings};

/// Writes a specialist whose head reads an encoder's vectors alone.
pub(super) fn run(
    specialist: &Specialist,
    output: Option<&Path>,
    settings: &Settings,
    environment: &Environment,
    as_json: bool,
) -> Outcome {
    let manifest = specialist.manifest();
    let name = &manifest.name;
    if let Some(why) = obstacle(specialist) {
        return Err(Failure::usage(anyhow::anyhow!(
            "`{name}` cannot leave for Transformers: {why}; `--format bundle` takes it to another registry"
        )));
    }
    let default = || PathBuf::from(format!("{name}-{}-{}", specialist.id().short(), form_name(Form::Transformers)));
    let output = output.map_or_else(default, Path::to_owned);
    must_be_new(&output)?;
    let encoder = bases::encoder(settings, environment)?;
    let made_with = manifest.base.as_ref().map(|base| (&base.name, base.digest));
    if made_with.map(|(_, digest)| digest) != Some(encoder.base().digest) {
        let (made_with, digest) = made_with
            .map_or((String::new(), String::new()), |(name, digest)| (name.clone(), digest.short().to_string()));
        return Err(Failure::usage(anyhow::anyhow!(
            "`{name}` was made with the encoder `{made_with}` ({digest}), and another is at hand: set `encoder` and `encoder_weights`"
        )));
    }
    let pool = bases::pool(settings, environment)?;
    let made = || -> anyhow::Result<(usize, usize, f32)> {
        let served = specialist.encoder_file().map(|file| encoder.tuned(&file.0)).transpose()?;
        let served = served.as_ref().unwrap_or(&encoder);
        let rows = &specialist.probe()[..specialist.probe().len().min(PROMPTS)];
        // Of a longer text Transformers reads the first window alone.
        let texts: Vec<&str> = rows
            .iter()
            .map(|row| row.text.as_str())
            .filter(|text| served.windows_of(text).is_ok_and(|w| w.len() == 1))
            .collect();
        let vectors = served.embed(&pool, &texts)?;
        let folder = bases::encoder_files(settings, environment).map_err(told)?.dir;
        // Weights leave as they stand in the file, however they are kept here.
        let plain = Encoder::open(&folder)?;
        let several = manifest.multi_label.as_ref();
        let scale = several.map_or(manifest.calibrator.inverse_temperature, |scores| scores.decision.slope);
        let classifier = Classifier {
            encoder: &plain,
            folder: &folder,
            layers: specialist.encoder_file().map(|file| file.0.as_slice()),
            head: specialist.head().context("it has no head")?,
            labels: &manifest.labels,
            scale,
            is_several: several.is_some(),
            vectors: &vectors,
        };
        let mut files = classifier.files()?;
        files.push(("README.md", readme(specialist, served).into_bytes()));
        write_folder(&output, &files).map_err(told)?;
        let exported = Exported::open(&output).context("cannot read the folder again")?;
        let (mut equal, mut worst) = (0, 0.0f32);
        for (text, vector) in texts.iter().zip(&vectors) {
            let margins = specialist.margins(text, Some(vector))?;
            let logits = exported.logits(&pool, text)?;
            equal += usize::from(match several {
                Some(_) => sets::called(&margins) == sets::called(&logits),
                None => first(&margins) == first(&logits),
            });
            worst =
                margins.iter().zip(&logits).map(|(margin, logit)| (margin * scale - logit).abs()).fold(worst, f32::max);
        }
        Ok((equal, texts.len(), worst))
    };
    let made = made().with_context(|| format!("cannot export `{name}`"));
    let (equal, n, difference) = made.map_err(Failure::Environment)?;
    if as_json {
        line(&json!({
            "name": name, "id": specialist.id(), "form": form_name(Form::Transformers), "path": output, "prompts": n, "equal": equal,
            "max_logit_difference": difference,
        }));
    } else {
        println!("{name}: written to `{}`", output.display());
        println!(
            "  read again   {equal} of {n} texts get the label that they get in service; max |Δlogit| {difference:.1e}"
        );
    }
    if (equal as f64) < LEAST_EQUAL * n as f64 {
        return Err(found(anyhow::anyhow!("the export does not answer as the specialist does: do not use it")));
    }
    Ok(())
}

/// Why a specialist is none of the classes that Transformers knows.
fn obstacle(specialist: &Specialist) -> Option<&'static str> {
    let manifest = specialist.manifest();
    match manifest.stage {
        Stage::Linear | Stage::Both => Some(
            "its classifier reads hashed n-grams, which Transformers does not make: build it with `[tune] ngrams = false`",
        ),
        Stage::Pair => Some("it compares its inputs by trees, which Transformers does not have"),
        Stage::Span => Some("it tags words and reads values out of the tags, which is more than a head"),
        Stage::Decoder => {
            Some("its head reads its decoder's last row at unit length, which no classifier of Transformers does")
        }
        Stage::Nearest | Stage::Lookup => Some("it looks its answers up"),
        Stage::Prompted => Some("it is its base as it is, told an instruction"),
        Stage::Adapter => Some("its answers are written: take `--format peft`, `merged` or `gguf`"),
        Stage::Tuned if specialist.contents().pairs.is_some() => {
            Some("beside its encoder it compares its inputs by trees, which Transformers does not have")
        }
        Stage::Head | Stage::Tuned if manifest.scope.is_some() => Some(
            "a rule over its margins tells what is none of its labels, and a linear head knows no such rule: build it without `target.in_scope`",
        ),
        Stage::Tuned if manifest.reads_base => Some(
            "its head reads two encoders, and a classifier of Transformers has one: build it with `[tune] ngrams = false`",
        ),
        Stage::Tuned if specialist.features().is_some() => Some(
            "beside its encoder it reads hashed n-grams, which Transformers does not make: build it with `[tune] ngrams = false`",
        ),
        Stage::Head | Stage::Tuned if manifest.first.is_some() => Some(
            "a first stage reads hashed n-grams, which Transformers does not make: build it without `target.stages`",
        ),
        Stage::Head | Stage::Tuned if manifest.hierarchy.is_some() => Some(
            "it may answer with a node above a label, and a linear head knows no tree: build it without `data.hierarchy`",
        ),
        Stage::Head | Stage::Tuned => None,
    }
}

fn told(failure: Failure) -> anyhow::Error {
    match failure {
        Failure::Usage(error) | Failure::Environment(error) => error,
        Failure::Found => anyhow::anyhow!("the folder cannot be made"),
    }
}

fn first(margins: &[f32]) -> usize {
    (1..margins.len()).fold(0, |best, k| if margins[k] > margins[best] { k } else { best })
}

/// How the folder is asked.
fn readme(specialist: &Specialist, encoder: &Encoder) -> String {
    let manifest = specialist.manifest();
    let inputs = if manifest.inputs.len() > 1 {
        format!(
            "Its inputs are several ({}), and it reads them as one text; `probe.jsonl` of the bundle shows how they are put together.\n\n",
            manifest.inputs.join(", ")
        )
    } else {
        String::new()
    };
    let call = if manifest.multi_label.is_some() { ", top_k=None" } else { "" };
    let result = if manifest.multi_label.is_some() {
        "a label is given where its score is above 0.5"
    } else {
        "the score is its share of the softmax"
    };
    format!(
        "# {name}\n\n{instruction}\n\nMade by metier over `{base}` (bundle `{id}`). No code of metier's is needed:\n\n\
         ```python\nfrom transformers import pipeline\n\nclassify = pipeline(\"text-classification\", \"PATH OF THIS FOLDER\"{call})\n\
         print(classify([\"a text\"], truncation=True))  # {result}\n```\n\n{inputs}\
         The mean of the encoder's rows, its length and the head are in the weights: of a BERT kind the last layer is not trained, it takes the \
         mean. Keep the weights in 32 bits, or in bfloat16. Texts of more than {window} tokens are cut here, where metier reads all of them in windows. \
         A score here is no promise: metier's threshold, its calibrated score and its certificate hold where metier serves it.\n",
        name = manifest.name,
        instruction = manifest.instruction,
        base = manifest.base.as_ref().map_or("", |base| &base.name),
        id = specialist.id(),
        window = encoder.window_tokens(),
    )
}
