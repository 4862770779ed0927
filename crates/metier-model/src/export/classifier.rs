//! How does a head on an encoder leave for Transformers?
//!
//! **Question:** which folder gives the same margins through `AutoModelForSequenceClassification`, without code of its own? **In:** the base's
//! folder and its encoder, layers of a specialist's own if it has them, a head that reads vectors alone. **Out:** the folder's files; and what
//! such a folder says, read again. **Absent:** n-grams and rules over margins, which those classes do not know; who asks and compares.
//!
//! Our vector is `e = m / |m|`, m the mean of a text's last rows. BERT's classifiers read the first row alone, through a map and a tanh, and no
//! step of theirs divides by a length but their norms do. So one layer is added that takes the mean and divides:
//!
//! ```text
//! attention  queries and keys are 0: every token gets the mean of all values, V = P:   P·m
//! output     c·I, so that the row that is added to it (the first token's own) drowns:  y = c·P·m + x,  c = 2¹⁴
//! its norm   LN(y) = z,  z ≈ √d · P·m / |P·m|                                          error ≈ |x| / (c·|m|)
//! inner row  0; the norm behind it changes nothing
//! pooler     tanh(s·z) ≈ s·z, s = 2⁻¹¹ (RoBERTa's dense: the same; DistilBERT's ReLU(z + h) = z + h, since |zᵢ| ≤ √d < h)
//! classifier what is left to do
//! ```
//!
//! A norm takes the mean of the elements away, which is one direction of d: P keeps lengths but for one direction, and puts what it keeps
//! where elements sum to 0. The direction lost is the one in which last rows do not differ: they come out of a norm themselves,
//! `hᵢ = γᵢ·nᵢ + βᵢ` with `Σ nᵢ = 0`, so `Σ hᵢ/γᵢ = Σ βᵢ/γᵢ` for every token, and v, the direction of 1/γ, has the same `v·m` for every text.
//! With τ the mean of `v·e` over some texts and `P = (I − 1·1ᵀ/d)·R`, R the reflection of v into 1/√d:
//!
//! ```text
//! e = Pᵀ·z·√(1 − τ²)/√d + τ·v          margins = b + W·e, times the calibrator's inverse temperature: softmax gives metier's own shares
//! ```
//!
//! ModernBERT's classifier has all of it (a mean, a map without bias, a norm): there no layer is added.

use std::path::Path;

use metier_kernels::Pool;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Map, Value, json};

use super::ExportError;
use crate::{
    Encoder, TokenId,
    arch::bert::{BertConfig, Family, Names},
    encoder::{EncoderError, Pooling},
    format::{Safetensors, TensorType},
    head::LinearHead,
};

/// c: how much louder the mean is than the row that is added to it. In 16 bits elements of up to 4 do not overflow.
const LOUD: f32 = 16_384.0;
/// s: so small that tanh is a straight line; of the largest element that can be, 1 in 30,000 is lost.
const SMALL: f32 = 1.0 / 2048.0;
/// Below it, 1/γ is taken for that of this size: such an element says nothing anyway.
const LEAST_GAMMA: f64 = 1e-12;
/// Tokens with a meaning of their own, as tokenizers write them.
const SPECIAL: [(&str, [&str; 2]); 5] = [
    ("pad_token", ["[PAD]", "<pad>"]),
    ("unk_token", ["[UNK]", "<unk>"]),
    ("cls_token", ["[CLS]", "<s>"]),
    ("sep_token", ["[SEP]", "</s>"]),
    ("mask_token", ["[MASK]", "<mask>"]),
];

/// A tensor with its name and shape.
type Named = (String, Vec<usize>, Vec<f32>);

/// What is to leave.
#[derive(Clone, Copy, Debug)]
pub struct Classifier<'a> {
    /// The base, as it was opened from its folder, in f32.
    pub encoder: &'a Encoder,
    /// That folder.
    pub folder: &'a Path,
    /// `encoder.safetensors` of the bundle, where it has layers of its own.
    pub layers: Option<&'a [u8]>,
    /// Reads vectors alone.
    pub head: &'a LinearHead,
    /// In the head's order.
    pub labels: &'a [String],
    /// Greater than 0: margins are multiplied with it.
    pub scale: f32,
    /// A text may have several labels: those whose logit is greater than 0.
    pub is_several: bool,
    /// Vectors of some texts of this task.
    pub vectors: &'a [Vec<f32>],
}

impl Classifier<'_> {
    /// `(name, bytes)` of each file of the folder.
    ///
    /// # Errors
    ///
    /// Where the head reads more than vectors, or the encoder makes them otherwise than those classes can.
    pub fn files(&self) -> Result<Vec<(&'static str, Vec<u8>)>, ExportError> {
        let unsupported = |what: &str| ExportError::Unsupported(what.to_owned());
        let (config, naming) = (self.encoder.bert().config(), self.encoder.bert().names());
        let Some(weights) = self.head.dense_weights().filter(|_| self.head.n_features() == 0) else {
            return Err(unsupported("a head that reads n-grams"));
        };
        if self.encoder.dim() != config.width || self.encoder.has_maps() {
            return Err(unsupported("an encoder with linear maps behind its pooling"));
        }
        if self.encoder.pooling() == Pooling::FirstToken && config.family != Family::ModernBert {
            return Err(unsupported("vectors of the first token, which one layer more cannot pick out"));
        }
        let d = config.width;
        let mut tensors = self.network(&naming)?;
        let (gamma, beta) = last_norm(&tensors, &naming, config)?;
        let lost = Lost::of(&gamma, &beta);
        let tau = lost.mean(self.vectors);
        let map = lost.map(); // P: (d, d)
        // logits = bias + classifier · z
        let n = self.head.n_classes();
        let factor = f64::from(self.scale) * (1.0 - tau * tau).max(0.0).sqrt() / (d as f64).sqrt();
        let mut classifier = vec![0.0f32; n * d];
        let mut bias = Vec::with_capacity(n);
        for class in 0..n {
            let of_class: Vec<f64> = (0..d).map(|i| f64::from(weights[i * n + class])).collect();
            let row = lost.apply(&of_class); // P·w, and so (Pᵀ·z)·w = z·(P·w)
            for (to, from) in classifier[class * d..][..d].iter_mut().zip(&row) {
                *to = (from * factor) as f32;
            }
            let along: f64 = of_class.iter().zip(&lost.v).map(|(w, v)| w * v).sum();
            bias.push((f64::from(self.scale) * (f64::from(self.head.bias()[class]) + along * tau)) as f32);
        }
        let mut add = |name: String, shape: &[usize], values: Vec<f32>| tensors.push((name, shape.to_vec(), values));
        let eye =
            |scale: f32| -> Vec<f32> { (0..d * d).map(|at| if at / d == at % d { scale } else { 0.0 }).collect() };
        let prefix = naming.prefix;
        if config.family == Family::ModernBert {
            add("head.dense.weight".to_owned(), &[d, d], map.iter().map(|x| x * LOUD).collect());
            add("head.norm.weight".to_owned(), &[d], vec![1.0; d]);
            if config.biases.norm {
                add("head.norm.bias".to_owned(), &[d], vec![0.0; d]);
            }
            add("classifier.weight".to_owned(), &[n, d], classifier);
            add("classifier.bias".to_owned(), &[n], bias);
        } else {
            for (part, rows, cols, values) in [
                (naming.qkv[0], d, d, vec![0.0; d * d]),
                (naming.qkv[1], d, d, vec![0.0; d * d]),
                (naming.qkv[2], d, d, map),
                (naming.output, d, d, eye(LOUD)),
                (naming.up, config.inner, d, vec![0.0; config.inner * d]),
                (naming.down, d, config.inner, vec![0.0; config.inner * d]),
            ] {
                let name = naming.of_layer(config.layers, part);
                add(format!("{prefix}{name}.weight"), &[rows, cols], values);
                add(format!("{prefix}{name}.bias"), &[rows], vec![0.0; rows]);
            }
            for part in [naming.attention_norm, naming.norm] {
                let name = naming.of_layer(config.layers, part);
                add(format!("{prefix}{name}.weight"), &[d], vec![1.0; d]);
                add(format!("{prefix}{name}.bias"), &[d], vec![0.0; d]);
            }
            let head = HeadNames::of(config.family);
            let shift = head.shift(d);
            let small = if shift > 0.0 { 1.0 } else { SMALL };
            for (row, bias) in classifier.chunks_exact(d).zip(&mut bias) {
                *bias -= row.iter().sum::<f32>() * shift;
            }
            add(format!("{}.weight", head.dense), &[d, d], eye(small));
            add(format!("{}.bias", head.dense), &[d], vec![shift; d]);
            add(format!("{}.weight", head.out), &[n, d], classifier.iter().map(|x| x / small).collect());
            add(format!("{}.bias", head.out), &[n], bias);
        }
        let rules = self.encoder.tokenizer_json(self.folder)?;
        let text = |value: &Value| serde_json::to_vec_pretty(value).expect("a value is JSON");
        Ok(vec![
            ("config.json", text(&self.config()?)),
            ("tokenizer_config.json", text(&self.tokenizer_config(&rules))),
            ("tokenizer.json", rules.to_string().into_bytes()),
            ("model.safetensors", written(&tensors)),
        ])
    }

    /// The network's own tensors, under the names that a network with a head has for them.
    fn network(&self, naming: &Names) -> Result<Vec<Named>, ExportError> {
        let (bytes, index) = self.encoder.bert().file();
        let own = self.layers.map(|file| Safetensors::parse(file).map(|index| (file, index))).transpose()?;
        let mut tensors = Vec::new();
        for name in index.tensors().keys() {
            let short = name.strip_prefix(naming.prefix).unwrap_or(name);
            let is_of_network = ["embeddings.", naming.layer, "final_norm"].iter().any(|part| short.starts_with(part));
            let own = own.as_ref().and_then(|(file, index)| index.tensor(file, short));
            let Some(tensor) = own.or_else(|| index.tensor(bytes, name)).filter(|_| is_of_network) else { continue };
            // Positions' own numbers, which older files hold.
            if !matches!(tensor.dtype, TensorType::F32 | TensorType::F16 | TensorType::Bf16) {
                continue;
            }
            tensors.push((format!("{}{short}", naming.prefix), tensor.shape.to_vec(), tensor.to_f32()?));
        }
        Ok(tensors)
    }

    fn config(&self) -> Result<Value, ExportError> {
        let Value::Object(mut config) = self.encoder.config_json(self.folder)? else {
            return Err(ExportError::Unsupported("a `config.json` that is no object".to_owned()));
        };
        let network = self.encoder.bert().config();
        let architecture = match (network.family, config.get("model_type").and_then(Value::as_str)) {
            (Family::Bert, _) => "BertForSequenceClassification",
            (Family::Roberta, Some("xlm-roberta")) => "XLMRobertaForSequenceClassification",
            (Family::Roberta, Some("camembert")) => "CamembertForSequenceClassification",
            (Family::Roberta, _) => "RobertaForSequenceClassification",
            (Family::DistilBert, _) => "DistilBertForSequenceClassification",
            (Family::ModernBert, _) => "ModernBertForSequenceClassification",
        };
        for key in ["_name_or_path", "transformers_version", "torch_dtype", "auto_map"] {
            config.remove(key);
        }
        let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
        set("architectures", json!([architecture]));
        set("dtype", json!("float32"));
        let by_id: Map<String, Value> =
            self.labels.iter().enumerate().map(|(i, label)| (i.to_string(), json!(label))).collect();
        let by_label: Map<String, Value> =
            self.labels.iter().enumerate().map(|(i, label)| (label.clone(), json!(i))).collect();
        set("id2label", by_id.into());
        set("label2id", by_label.into());
        let kind = if self.is_several { "multi_label_classification" } else { "single_label_classification" };
        set("problem_type", json!(kind));
        match network.family {
            Family::Bert | Family::Roberta => _ = set("num_hidden_layers", json!(network.layers + 1)),
            Family::DistilBert => _ = set("n_layers", json!(network.layers + 1)),
            Family::ModernBert => {
                let pooling = if self.encoder.pooling() == Pooling::Mean { "mean" } else { "cls" };
                set("classifier_pooling", json!(pooling));
                set("classifier_activation", json!("linear"));
                set("classifier_bias", json!(false));
            }
        }
        Ok(config.into())
    }

    fn tokenizer_config(&self, rules: &Value) -> Value {
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.encoder.window_tokens(),
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": false,
        });
        let added = rules["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
        for (key, words) in SPECIAL {
            let found = words.iter().find(|word| added.iter().any(|token| token["content"] == **word));
            if let Some(word) = found {
                config[key] = json!(word);
            }
        }
        config
    }
}

/// Weight and bias of the norm that last rows come out of.
fn last_norm(tensors: &[Named], naming: &Names, config: &BertConfig) -> Result<(Vec<f32>, Vec<f32>), ExportError> {
    let d = config.width;
    let name = match config.layers.checked_sub(1) {
        Some(last) if !config.is_pre_norm() => naming.of_layer(last, naming.norm),
        _ => "final_norm".to_owned(),
    };
    let of = |part: &str| {
        let name = format!("{}{name}.{part}", naming.prefix);
        tensors.iter().find(|(own, ..)| *own == name).map(|(.., values)| values.clone())
    };
    let gamma = of("weight").ok_or_else(|| ExportError::Shape(format!("{name}.weight")))?;
    let beta = of("bias").unwrap_or_else(|| vec![0.0; d]);
    if gamma.len() == d && beta.len() == d { Ok((gamma, beta)) } else { Err(ExportError::Shape(name)) }
}

/// What a family's classifier is called.
struct HeadNames {
    dense: &'static str,
    out: &'static str,
    is_relu: bool,
}

impl HeadNames {
    fn of(family: Family) -> Self {
        let (dense, out, is_relu) = match family {
            Family::Bert | Family::ModernBert => ("bert.pooler.dense", "classifier", false),
            Family::Roberta => ("classifier.dense", "classifier.out_proj", false),
            Family::DistilBert => ("pre_classifier", "classifier", true),
        };
        Self { dense, out, is_relu }
    }

    /// h: what keeps a ReLU's input above 0.
    fn shift(&self, d: usize) -> f32 {
        if self.is_relu { (d as f32).sqrt().ceil() + 1.0 } else { 0.0 }
    }
}

/// The direction in which last rows do not differ.
struct Lost {
    /// At unit length.
    v: Vec<f64>,
    /// v − 1/√d: what R reflects along; zeros where they are the same.
    mirror: Vec<f64>,
    /// Its square length.
    square: f64,
}

impl Lost {
    fn of(gamma: &[f32], beta: &[f32]) -> Self {
        debug_assert_eq!(gamma.len(), beta.len(), "one norm's");
        let inverse = |x: &f32| {
            let x = f64::from(*x);
            1.0 / if x.abs() < LEAST_GAMMA { LEAST_GAMMA } else { x }
        };
        let u: Vec<f64> = gamma.iter().map(inverse).collect();
        let length = u.iter().map(|x| x * x).sum::<f64>().sqrt();
        let v: Vec<f64> = u.iter().map(|x| x / length).collect();
        let one = 1.0 / (v.len() as f64).sqrt();
        let mirror: Vec<f64> = v.iter().map(|x| x - one).collect();
        let square = mirror.iter().map(|x| x * x).sum();
        Self { v, mirror, square }
    }

    /// τ
    fn mean(&self, vectors: &[Vec<f32>]) -> f64 {
        let dot = |vector: &Vec<f32>| vector.iter().zip(&self.v).map(|(e, v)| f64::from(*e) * v).sum::<f64>();
        if vectors.is_empty() { 0.0 } else { vectors.iter().map(dot).sum::<f64>() / vectors.len() as f64 }
    }

    /// P·x
    fn apply(&self, x: &[f64]) -> Vec<f64> {
        let along: f64 = x.iter().zip(&self.mirror).map(|(x, r)| x * r).sum();
        let turn = if self.square > 0.0 { 2.0 * along / self.square } else { 0.0 };
        let mut out: Vec<f64> = x.iter().zip(&self.mirror).map(|(x, r)| x - turn * r).collect();
        let mean = out.iter().sum::<f64>() / out.len() as f64;
        out.iter_mut().for_each(|x| *x -= mean);
        out
    }

    /// P: (d, d)
    fn map(&self) -> Vec<f32> {
        let d = self.v.len();
        let mut map = vec![0.0f32; d * d];
        let mut unit = vec![0.0f64; d];
        for col in 0..d {
            unit[col] = 1.0;
            for (row, value) in self.apply(&unit).iter().enumerate() {
                map[row * d + col] = *value as f32;
            }
            unit[col] = 0.0;
        }
        map
    }
}

/// As Transformers wants it: what a file holds stands in its header.
fn written(tensors: &[Named]) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(.., values)| values.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("values fill their shapes"))
    });
    let about = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(about)).expect("values fill their shapes")
}

/// What such a folder says, computed as Transformers does: all layers by the code that serves, the head by itself.
pub struct Exported {
    encoder: Encoder,
    /// What is made of a text's rows, where that is ModernBERT's to say.
    modern: Option<Pooling>,
    is_relu: bool,
    width: usize,
    dense: (Vec<f32>, Vec<f32>),
    out: (Vec<f32>, Vec<f32>),
    eps: f32,
}

impl Exported {
    /// Opens a folder that [`Classifier::files`] made.
    ///
    /// # Errors
    ///
    /// Where it is not one.
    pub fn open(folder: &Path) -> Result<Self, ExportError> {
        let encoder = Encoder::open(folder)?;
        let config = encoder.bert().config().clone();
        let is_modern = config.family == Family::ModernBert;
        let is_mean = encoder.config_json(folder)?["classifier_pooling"] == "mean";
        let modern = is_modern.then_some(if is_mean { Pooling::Mean } else { Pooling::FirstToken });
        let names = HeadNames::of(config.family);
        let (dense, out) = if is_modern { ("head.dense", "classifier") } else { (names.dense, names.out) };
        let d = config.width;
        let (dense, out) = {
            let (bytes, index) = encoder.bert().file();
            let read = |name: &str| -> Result<(Vec<f32>, Vec<f32>), ExportError> {
                let of = |part: &str| index.tensor(bytes, &format!("{name}.{part}")).map(|tensor| tensor.to_f32());
                let weight = of("weight").ok_or_else(|| ExportError::Shape(format!("{name}.weight")))??;
                let rows = weight.len() / d;
                let bias = of("bias").transpose()?.unwrap_or_else(|| vec![0.0; rows]);
                let fits = weight.len() == rows * d && bias.len() == rows && rows > 0;
                if fits { Ok((weight, bias)) } else { Err(ExportError::Shape(name.to_owned())) }
            };
            (read(dense)?, read(out)?)
        };
        if dense.1.len() != d {
            return Err(ExportError::Shape("dense".to_owned()));
        }
        Ok(Self { encoder, modern, is_relu: names.is_relu, width: d, dense, out, eps: config.eps })
    }

    /// Logits of the first window of a text, which is what `truncation=True` leaves of it.
    ///
    /// # Errors
    ///
    /// Where the text cannot be read.
    pub fn logits(&self, pool: &Pool, text: &str) -> Result<Vec<f32>, ExportError> {
        let windows = self.encoder.windows_of(text).map_err(|source| EncoderError::Text { idx: 0, source })?;
        let ids: &[TokenId] = windows.first().map_or(&[], Vec::as_slice);
        let rows = self.encoder.hidden_rows(pool, ids)?;
        let d = self.width;
        let mut x = rows[..d].to_vec();
        if self.modern == Some(Pooling::Mean) {
            for row in rows[d..].chunks_exact(d) {
                x.iter_mut().zip(row).for_each(|(x, more)| *x += more);
            }
            x.iter_mut().for_each(|x| *x /= (rows.len() / d) as f32);
        }
        let mut inner = apply(&self.dense, &x);
        if self.modern.is_some() {
            let mean = inner.iter().sum::<f32>() / d as f32;
            let variance = inner.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / d as f32;
            inner.iter_mut().for_each(|x| *x = (*x - mean) / (variance + self.eps).sqrt());
        } else if self.is_relu {
            inner.iter_mut().for_each(|x| *x = x.max(0.0));
        } else {
            inner.iter_mut().for_each(|x| *x = x.tanh());
        }
        Ok(apply(&self.out, &inner))
    }
}

/// W·x + b
fn apply((weight, bias): &(Vec<f32>, Vec<f32>), x: &[f32]) -> Vec<f32> {
    let row = |(row, bias): (&[f32], &f32)| {
        let sum: f64 = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
        sum as f32 + bias
    };
    weight.chunks_exact(x.len()).zip(bias).map(row).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests; they print what they measured")]
    use std::fs;

    use metier_kernels::Tier;

    use super::*;

    /// Over logits of up to 4: the row that drowns, and, where the last norm has biases as large as these random ones, a direction whose part of
    /// short and long texts differs. MiniLM's last norm has an element whose weight is 1e-9: there nothing is lost.
    const MAX_DIFFERENCE: f32 = 1e-2;
    const MAX_WITH_BIASES: f32 = 6e-2;
    const CLASSES: usize = 5;

    fn head(dim: usize) -> LinearHead {
        let wave = |i: usize| ((i * i + 3 * i) as f32 * 0.7).sin();
        LinearHead::quantise((0..CLASSES).map(|i| 0.3 * wave(i)).collect(), &[], (0..dim * CLASSES).map(wave).collect())
    }

    fn files<'a>(
        encoder: &'a Encoder,
        folder: &'a Path,
        head: &'a LinearHead,
        texts: &[&str],
        pool: &Pool,
    ) -> Result<Vec<(&'static str, Vec<u8>)>, ExportError> {
        let labels: Vec<String> = (0..CLASSES).map(|i| format!("label {i}")).collect();
        let vectors = encoder.embed(pool, texts).unwrap();
        let (labels, vectors) = (&labels, &vectors);
        Classifier { encoder, folder, layers: None, head, labels, scale: 2.0, is_several: false, vectors }.files()
    }

    /// What leaves gives the margins of what serves; each family under its own names.
    #[track_caller]
    fn check(family: &str, pooling: Option<&str>) {
        let pool = Pool::new(2, Tier::detect());
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/encoders").join(family);
        let base = tempfile::tempdir().unwrap();
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
            fs::copy(golden.join(name), base.path().join(name)).unwrap();
        }
        if let Some(pooling) = pooling {
            fs::create_dir(base.path().join("1_Pooling")).unwrap();
            fs::write(base.path().join("1_Pooling/config.json"), json!({"pooling_mode": pooling}).to_string()).unwrap();
        }
        let encoder = Encoder::open(base.path()).unwrap();
        let golden: Value = serde_json::from_slice(&fs::read(golden.join("golden.json")).unwrap()).unwrap();
        let texts: Vec<&str> = golden["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
        let texts: Vec<&str> = texts.into_iter().filter(|text| encoder.windows_of(text).unwrap().len() == 1).collect();
        assert!(texts.len() > 3);
        let head = head(encoder.dim());
        let out = tempfile::tempdir().unwrap();
        for (name, bytes) in files(&encoder, base.path(), &head, &texts, &pool).unwrap() {
            fs::write(out.path().join(name), bytes).unwrap();
        }
        let exported = Exported::open(out.path()).unwrap();
        let (mut worst, mut spread) = (0.0f32, 0.0f32);
        for text in texts {
            let vector = encoder.embed(&pool, &[text]).unwrap().remove(0);
            for (margin, logit) in head.margins(None, Some(&vector)).iter().zip(exported.logits(&pool, text).unwrap()) {
                worst = worst.max((2.0 * margin - logit).abs());
                spread = spread.max(margin.abs());
            }
        }
        eprintln!("{family}: max |Δlogit| {worst:.1e} of {spread:.1}");
        let most = if family == "modernbert-biases" { MAX_WITH_BIASES } else { MAX_DIFFERENCE };
        assert!(worst < most && spread > 0.5, "{family}: {worst} of {spread}");
        let config: Value = serde_json::from_slice(&fs::read(out.path().join("config.json")).unwrap()).unwrap();
        assert_eq!(config["id2label"]["4"], "label 4");
        assert!(config["architectures"][0].as_str().unwrap().ends_with("ForSequenceClassification"));
    }

    #[test]
    fn a_bert_leaves() {
        check("bert", None);
    }

    #[test]
    fn a_roberta_leaves() {
        check("roberta", None);
        check("xlm-roberta", None);
    }

    #[test]
    fn a_distilbert_leaves() {
        check("distilbert", None);
    }

    #[test]
    fn a_modernbert_leaves_without_a_layer_more() {
        check("modernbert", None);
        check("modernbert", Some("cls"));
        check("modernbert-biases", None);
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        let pool = Pool::new(1, Tier::detect());
        let dir = tempfile::tempdir().unwrap();
        crate::tiny::bert_folder(dir.path(), &["a", "b"], 1, 3).unwrap();
        let encoder = Encoder::open(dir.path()).unwrap();
        let both = LinearHead::quantise(vec![0.0; CLASSES], &[1.0; CLASSES], vec![1.0; CLASSES * encoder.dim()]);
        let error = files(&encoder, dir.path(), &both, &["a"], &pool).unwrap_err();
        assert!(error.to_string().contains("n-grams"), "{error}");
        fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        fs::write(dir.path().join("1_Pooling/config.json"), r#"{"pooling_mode": "cls"}"#).unwrap();
        let first = Encoder::open(dir.path()).unwrap();
        let error = files(&first, dir.path(), &head(first.dim()), &["a"], &pool).unwrap_err();
        assert!(error.to_string().contains("first token"), "{error}");
        assert!(Exported::open(dir.path()).is_err(), "a base is no classifier");
    }
}
