//! Do these two belong together? The fields of two inputs in; how they agree and where they part, as numbers; from those, margins.
//!
//! **Question:** how alike are an order line and an invoice line, two offers, a claim and a rule? **In:** a text that
//! [`render_inputs`](crate::specialist::render_inputs) made of two or more inputs. **Out:** one margin a class (of two classes one number).
//! **Absent:** fitting (`metier-train/craft`), any base model, and any word of the training texts: only hashes of words and their rarity are
//! stored, as in [`features`](crate::features).
//!
//! What is compared, for each two inputs, is the whole of one with the whole of the other, then each field with the field of the same path.
//! A comparison is [`COMPARED`] numbers: words and letters shared, weighted by how rare they are; numbers and codes (`dsc-w120`) that stand
//! in one alone; a code that the other side writes in another way; order; length; how near two numbers are.

mod agreement;
mod compare;
mod trees;

use std::collections::BTreeMap;

use safetensors::SafeTensors;

pub use agreement::Agreement;
pub use compare::COMPARED;
use compare::Side;
pub use trees::{Node, Trees};

use crate::specialist::{
    Inputs,
    tensors::{self, Tensor, TensorError},
};

/// Name of the format; stands in the manifest.
pub const FORMAT: &str = "metier-pairs-1";
/// Inputs that are compared, at most: the first ones.
pub const MAX_INPUTS: usize = 3;
/// Fields that are compared one by one, at most.
pub const MAX_FIELDS: usize = 8;
/// Share of training rows in which both sides have a field, below which it is not compared for itself.
const MIN_FIELD_SHARE: f64 = 0.02;
/// Different inputs that rarities are counted over, at most.
const MAX_COUNTED: usize = 40_000;
/// Words, and runs of letters, whose rarity is kept: the most frequent.
const MAX_KEPT: usize = 1 << 15;

/// How rare a hashed word is.
#[derive(Clone, Debug, PartialEq)]
struct Rarity {
    ids: Vec<u32>, // strictly ascending
    idf: Vec<f32>,
    unseen: f32,
}

impl Rarity {
    /// `documents`: the distinct ids of each.
    fn fit(documents: &[Vec<u32>]) -> Self {
        let mut all: Vec<u32> = documents.iter().flatten().copied().collect();
        all.sort_unstable();
        let n = documents.len() as f64;
        let idf = |documents: f64| (((1.0 + n) / (1.0 + documents)).ln() + 1.0) as f32;
        // What stands in a single one is as rare as what stands in none.
        let mut counts: Vec<(u32, u32)> =
            all.chunk_by(|a, b| a == b).filter(|run| run.len() > 1).map(|run| (run[0], run.len() as u32)).collect();
        if counts.len() > MAX_KEPT {
            counts.sort_unstable_by_key(|&(id, n)| (std::cmp::Reverse(n), id));
            counts.truncate(MAX_KEPT);
            counts.sort_unstable();
        }
        Self {
            ids: counts.iter().map(|count| count.0).collect(),
            idf: counts.iter().map(|count| idf(f64::from(count.1))).collect(),
            unseen: idf(0.0),
        }
    }

    fn of(&self, id: u32) -> f32 {
        self.ids.binary_search(&id).map_or(self.unseen, |at| self.idf[at])
    }
}

/// Turns a rendered text into numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct PairFeatures {
    /// Paths that are compared one by one.
    fields: Vec<String>,
    words: Rarity,
    grams: Rarity,
}

impl PairFeatures {
    /// Chooses fields and counts words, from training texts over the inputs `names`.
    pub fn fit(names: &[String], texts: &[&str]) -> Self {
        let inputs: Vec<Inputs<'_>> = texts.iter().map(|text| Inputs::of(names, text)).collect();
        let compared = names.len().min(MAX_INPUTS);
        let mut shared: BTreeMap<&str, usize> = BTreeMap::new();
        let mut wholes: Vec<String> = Vec::new();
        for row in &inputs {
            for field in row.fields(0) {
                let everywhere = (1..compared).any(|at| row.fields(at).iter().any(|other| other.path == field.path));
                *shared.entry(field.path).or_default() += usize::from(everywhere);
            }
            wholes.extend((0..compared).map(|at| whole(row, at)));
        }
        wholes.sort_unstable();
        wholes.dedup();
        let step = wholes.len().div_ceil(MAX_COUNTED).max(1);
        let counted = || wholes.iter().step_by(step);
        let least = (texts.len() as f64 * MIN_FIELD_SHARE).max(1.0);
        let mut fields: Vec<(usize, &str)> =
            shared.into_iter().filter(|(_, n)| *n as f64 >= least).map(|(path, n)| (n, path)).collect();
        fields.sort_by_key(|&(n, path)| (std::cmp::Reverse(n), path));
        fields.truncate(MAX_FIELDS);
        // A lone field is the whole.
        let mut fields: Vec<String> =
            if fields.len() > 1 { fields } else { Vec::new() }.into_iter().map(|(_, path)| path.to_owned()).collect();
        fields.sort_unstable();
        Self {
            fields,
            words: Rarity::fit(&counted().map(|text| compare::word_ids(text)).collect::<Vec<_>>()),
            grams: Rarity::fit(&counted().map(|text| compare::gram_ids(text)).collect::<Vec<_>>()),
        }
    }

    /// The fields that are compared one by one.
    pub fn fields(&self) -> &[String] {
        &self.fields
    }

    /// How many numbers a text of `n_inputs` has.
    pub fn len(&self, n_inputs: usize) -> usize {
        let n = n_inputs.min(MAX_INPUTS);
        n * n.saturating_sub(1) / 2 * (1 + self.fields.len()) * COMPARED
    }

    /// The numbers of a text over the inputs `names`. Never fails: what is missing has numbers of its own.
    pub fn apply(&self, names: &[String], text: &str) -> Vec<f32> {
        let inputs = Inputs::of(names, text);
        let n = names.len().min(MAX_INPUTS);
        let side = |text: &str| Side::of(text, |id| self.words.of(id), |id| self.grams.of(id));
        let sides: Vec<Vec<Side>> = (0..n)
            .map(|at| {
                let value = |path: &String| {
                    inputs.fields(at).iter().find(|field| field.path == path).map_or("", |field| field.value)
                };
                std::iter::once(side(&whole(&inputs, at))).chain(self.fields.iter().map(|f| side(value(f)))).collect()
            })
            .collect();
        let mut out = Vec::with_capacity(self.len(names.len()));
        for (a, left) in sides.iter().enumerate() {
            for right in &sides[a + 1..] {
                left.iter().zip(right).for_each(|(x, y)| compare::compare(x, y, &mut out));
            }
        }
        out
    }
}

/// All values of an input, one after the other.
fn whole(inputs: &Inputs<'_>, at: usize) -> String {
    inputs.fields(at).iter().map(|field| field.value).collect::<Vec<_>>().join(" ")
}

/// Numbers of a text with the trees that read them, and words that both have or one has alone with their weights.
#[derive(Clone, Debug, PartialEq)]
pub struct PairModel {
    /// What is compared.
    pub features: PairFeatures,
    /// What is made of it.
    pub trees: Trees,
    /// What is made of words.
    pub words: Agreement,
}

impl PairModel {
    /// Margins of a text over the inputs `names`, one a class; of two classes one, of the second over the first. Those of the trees, then
    /// those of the words.
    pub fn outputs(&self, names: &[String], text: &str) -> Vec<f32> {
        let mut outputs = self.trees.apply(&self.features.apply(names, text));
        outputs.extend(self.words.apply(&Agreement::ids(names, text)));
        outputs
    }

    /// How many [`outputs`](Self::outputs) there are.
    pub fn n_outputs(&self) -> usize {
        self.trees.outputs() + self.words.outputs()
    }

    /// Does it read texts of so many inputs, of these fields?
    pub fn fits(&self, n_inputs: usize) -> bool {
        self.trees.reads() <= self.features.len(n_inputs)
    }

    /// Bytes of `pairs.safetensors`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { features: PairFeatures { words, grams, .. }, trees, words: agreement } = self;
        let mut all = BTreeMap::from([
            ("unseen", Tensor::f32(&[2], &[words.unseen, grams.unseen])),
            ("words.ids", Tensor::u32(&[words.ids.len()], &words.ids)),
            ("words.idf", Tensor::f32(&[words.idf.len()], &words.idf)),
            ("grams.ids", Tensor::u32(&[grams.ids.len()], &grams.ids)),
            ("grams.idf", Tensor::f32(&[grams.idf.len()], &grams.idf)),
        ]);
        trees.write(&mut all);
        agreement.write(&mut all);
        tensors::write(&all)
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote, with the `fields` of the manifest. Every number must be finite and every tree must end.
    pub fn from_bytes(bytes: &[u8], fields: &[String]) -> Result<Self, TensorError> {
        let file = SafeTensors::deserialize(bytes)?;
        let (unseen, _) = tensors::f32s(&file, "unseen", 1)?;
        let &[words_unseen, grams_unseen] = unseen.as_slice() else {
            return Err(TensorError::Shape { name: "unseen".to_owned() });
        };
        let rarity = |ids: &str, idf: &str, unseen: f32| -> Result<Rarity, TensorError> {
            let (ids, _) = tensors::u32s(&file, ids, 1)?;
            let (idf, _) = tensors::f32s(&file, idf, 1)?;
            let finite = idf.iter().chain([&unseen]).all(|value| value.is_finite() && *value > 0.0);
            if ids.len() != idf.len() || !ids.is_sorted_by(|a, b| a < b) || !finite {
                return Err(TensorError::Inconsistent("rarities need ascending ids and positive numbers"));
            }
            Ok(Rarity { ids, idf, unseen })
        };
        if fields.len() > MAX_FIELDS {
            return Err(TensorError::Inconsistent("more fields are compared than this version compares"));
        }
        let features = PairFeatures {
            fields: fields.to_vec(),
            words: rarity("words.ids", "words.idf", words_unseen)?,
            grams: rarity("grams.ids", "grams.idf", grams_unseen)?,
        };
        Ok(Self { features, trees: Trees::read(&file)?, words: Agreement::read(&file)? })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::specialist::render_inputs;

    fn names() -> Vec<String> {
        ["left", "right"].map(str::to_owned).to_vec()
    }

    fn text(left: &str, right: &str) -> String {
        render_inputs(&names(), &[left, right])
    }

    #[test]
    fn fields_of_both_sides_are_compared_one_by_one() {
        let rows = [
            text(r#"{"name": "red mug", "price": 3}"#, r#"{"name": "mug, red", "price": 3.5, "shop": "x"}"#),
            text(r#"{"name": "blue bowl", "price": ""}"#, r#"{"name": "bowl", "price": 9}"#),
        ];
        let texts: Vec<&str> = rows.iter().map(String::as_str).collect();
        let features = PairFeatures::fit(&names(), &texts);
        assert_eq!(features.fields(), ["name", "price"]);
        let numbers = features.apply(&names(), &rows[0]);
        assert_eq!((numbers.len(), features.len(2)), (3 * COMPARED, 3 * COMPARED));
        assert!(numbers.iter().all(|x| x.is_finite()));
        assert_eq!(features.apply(&names(), "").len(), 3 * COMPARED, "nothing at all still has its numbers");
        let plain = text("a", "b");
        assert_eq!(PairFeatures::fit(&names(), &[&plain]).fields(), Vec::<String>::new().as_slice());
    }

    #[test]
    fn survives_a_file_and_refuses_a_broken_one() {
        let row = text("usb cable 2m", "cable usb 2 m");
        let features = PairFeatures::fit(&names(), &[&row, &row]);
        let split = Node { feature: 3, threshold: 0.5, left: 1 };
        let leaf = |value| Node { feature: Node::LEAF, threshold: value, left: 0 };
        let trees = Trees::new(vec![split, leaf(-1.0), leaf(2.0)], vec![0], vec![0.25]).unwrap();
        let words = Agreement::new(vec![7], vec![0.5], vec![0.1]).unwrap();
        let model = PairModel { features, trees, words };
        let back = PairModel::from_bytes(&model.to_bytes(), &[]).unwrap();
        assert_eq!(back, model);
        let twice = Trees::mean(&[model.trees.clone(), model.trees.clone()]);
        assert_eq!(twice.apply(&[0.0; 4]), model.trees.apply(&[0.0; 4]), "the mean of two of a kind");
        assert!(model.fits(2) && !model.fits(1));
        assert!(PairModel::from_bytes(&model.to_bytes()[1..], &[]).is_err());
        assert!(Trees::new(vec![Node { left: 0, ..split }, leaf(0.0)], vec![0], vec![0.0]).is_err(), "a circle");
        assert!(Trees::new(vec![split, leaf(0.0)], vec![0], vec![0.0]).is_err(), "a child that is not there");
        assert!(Trees::new(vec![leaf(f32::NAN)], vec![0], vec![0.0]).is_err());
        assert!(Trees::new(vec![leaf(0.0)], vec![0, 0, 0], vec![0.0, 0.0]).is_err(), "rounds are whole");
    }
}
