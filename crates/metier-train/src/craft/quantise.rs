//! A decoder in four bits a weight, and as near to itself as four bits can be on texts like its own.
//!
//! **Question:** which quants? **In:** a decoder's plain weights, texts that stand for what it will read. **Out:** blocks of GGUF's formats for all
//! seven maps of every layer. **Absent:** files ([`metier_model::export`]), and whether it is good enough: who asks measures what the file
//! answers.
//!
//! ```text
//! layer after layer, over texts that the quantised layers before have read:
//!   X of each map's inputs → H = Xᵀ·X + d·1 → U, H⁻¹ = Uᵀ·U
//!   column after column, row by row:  q = round(w[j])   e = (w[j] − q) / U[j, j]   w[j+1..] −= e · U[j, j+1..]
//!   every 32 columns a block: scale and min whose rounding costs least, by what errors cost there
//! ```
//!
//! The method is GPTQ's (Frantar et al. 2023), with blocks of 32 as groups and without reordered columns, so that any program reads the file.
//! Rows are independent given U. The embedding table and the head are not touched.

mod block;
mod factor;

use std::sync::Mutex;

use block::{BLOCK, Grid};
use metier_kernels::{MatRef, Pool, Target, backward, matmul_f32};
use metier_model::{Progress, TokenId, Unit, arch::transformer::PlainTransformer};

pub use self::block::FourBits;
use crate::grad::{
    Segments,
    llama::{LlamaNet, LoraConfig, MAPS},
};

/// Rows of a map that one part of the pool's work takes: their weights stay in the second-level cache while U passes by.
const PART_ROWS: usize = 16;
/// What is added to H's diagonal, as a share of its mean: the authors' choice. Where H is still not positive, ten times as much, twice.
const DAMPING: f32 = 0.01;

/// A decoder cannot be quantised.
#[derive(Debug, thiserror::Error)]
pub enum QuantiseError {
    /// A map's rows are no whole blocks.
    #[error("`{map}` has rows of {width} weights, which is no multiple of {BLOCK}")]
    Width {
        /// As PEFT calls it.
        map: &'static str,
        /// Weights of a row.
        width: usize,
    },
    /// Nothing to learn from.
    #[error("no text to calibrate with: give some thousand tokens of what the decoder will read")]
    NoTexts,
    /// What a layer reads is not finite, or always zero.
    #[error("what `{map}` of layer {layer} reads cannot be calibrated with: are the base's weights whole?")]
    Inputs {
        /// As PEFT calls it.
        map: &'static str,
        /// Counted from 0.
        layer: usize,
    },
}

/// Blocks of every layer's maps, in the order of [`MAPS`], rows in the order of [`PlainTransformer`].
#[derive(Clone, Debug)]
pub struct Quantised {
    /// How the blocks are read.
    pub format: FourBits,
    /// (layers): of each map (rows, blocks).
    pub layers: Vec<[Vec<u8>; 7]>,
}

/// Quantises all maps. `texts`: what is calibrated with, each read alone; none: every weight goes to its nearest quant.
///
/// # Errors
///
/// Where rows are no whole blocks, or inputs are not finite.
///
/// # Panics
///
/// Where an id lies outside the vocabulary, or a text is longer than the context.
pub fn quantise(
    pool: &Pool,
    plain: PlainTransformer,
    texts: Option<&[Vec<TokenId>]>,
    format: FourBits,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Quantised, QuantiseError> {
    let n_layers = plain.config.layers;
    // Deltas of rank one that are zero: the network runs as it is.
    let mut net = LlamaNet::new(plain, LoraConfig { r: 1, alpha: 1.0 }, 0);
    for (map, name) in MAPS.into_iter().enumerate() {
        let width = net.shape(map)[1];
        if !width.is_multiple_of(BLOCK) {
            return Err(QuantiseError::Width { map: name, width });
        }
    }
    let mut layers = Vec::with_capacity(n_layers);
    let mut tell = |done: usize| {
        let (done, total) = (done as u64, Some(n_layers as u64));
        progress(Progress { stage: "quantising layers", done, total, unit: Unit::Steps });
    };
    tell(0);
    let Some(texts) = texts else {
        for layer in 0..n_layers {
            layers.push(std::array::from_fn(|map| {
                let width = net.shape(map)[1];
                rows(pool, net.weight_mut(layer, map), width, None, format)
            }));
            tell(layer + 1);
        }
        return Ok(Quantised { format, layers });
    };
    if texts.iter().all(Vec::is_empty) {
        return Err(QuantiseError::NoTexts);
    }
    let ids: Vec<TokenId> = texts.iter().flatten().copied().collect();
    let segments = Segments::of(texts.iter().map(Vec::len));
    let mut x = net.embed(&ids);
    for layer in 0..n_layers {
        let inputs = net.inputs_of(pool, &segments, layer, &x);
        let mut blocks: [Vec<u8>; 7] = Default::default();
        // Q, K and V read the same rows, as gate and up do.
        for (inputs, maps) in inputs.iter().zip([&[0, 1, 2][..], &[3], &[4, 5], &[6]]) {
            let width = net.shape(maps[0])[1];
            let Some(u) = curvature(pool, inputs, width) else {
                return Err(QuantiseError::Inputs { map: MAPS[maps[0]], layer });
            };
            for &map in maps {
                blocks[map] = rows(pool, net.weight_mut(layer, map), width, Some(&u), format);
            }
        }
        net.step(pool, &segments, layer, &mut x);
        layers.push(blocks);
        tell(layer + 1);
    }
    Ok(Quantised { format, layers })
}

/// `U` of what a map reads: `inputs` (rows, k).
fn curvature(pool: &Pool, inputs: &[f32], k: usize) -> Option<Vec<f32>> {
    let x = MatRef::new(inputs, inputs.len() / k, k);
    let mut h = vec![0.0; k * k];
    matmul_f32(pool, x.t(), x, &mut h, Target::Overwrite);
    let mean = (0..k).map(|i| f64::from(h[i * k + i])).sum::<f64>() / k as f64;
    if !mean.is_finite() || mean <= 0.0 {
        return None;
    }
    [1.0, 10.0, 100.0].into_iter().find_map(|times| {
        let mut damped = h.clone();
        (0..k).for_each(|i| damped[i * k + i] += DAMPING * times * mean as f32);
        factor::inverse_factor(pool, damped, k)
    })
}

/// Quantises `weights` (rows, k), which become what their quants stand for; returns their blocks. Without `u`, to the nearest quants.
fn rows(pool: &Pool, weights: &mut [f32], k: usize, u: Option<&[f32]>, format: FourBits) -> Vec<u8> {
    let row_bytes = k / BLOCK * format.bytes();
    let mut out = vec![0; weights.len() / k * row_bytes];
    let costs: Vec<f32> = (0..k).map(|j| u.map_or(1.0, |u| u[j * k + j].powi(-2))).collect();
    let parts: Vec<_> =
        weights.chunks_mut(PART_ROWS * k).zip(out.chunks_mut(PART_ROWS * row_bytes)).map(Mutex::new).collect();
    let isa = pool.isa();
    pool.run(parts.len(), &|i| {
        let mut part = parts[i].lock().expect("each part is taken once");
        let (weights, out) = &mut *part;
        let n = weights.len() / k;
        let (mut grids, mut quants) = (vec![Grid::default(); n], vec![[0u8; BLOCK]; n]);
        for j in 0..k {
            let at = j / BLOCK * BLOCK;
            for (row, weights) in weights.chunks_exact_mut(k).enumerate() {
                if j == at {
                    grids[row] = Grid::fit(format, &weights[at..at + BLOCK], &costs[at..at + BLOCK]);
                }
                let quant = grids[row].quant(weights[j]);
                let value = grids[row].value(quant);
                quants[row][j - at] = quant;
                if let Some(u) = u {
                    let error = (weights[j] - value) / u[j * k + j];
                    backward::add_scaled(isa, &mut weights[j + 1..], -error, &u[j * k + j + 1..(j + 1) * k]);
                }
                weights[j] = value;
                if j + 1 == at + BLOCK {
                    let block = &mut out[row * row_bytes + at / BLOCK * format.bytes()..][..format.bytes()];
                    grids[row].write(format, &quants[row], block);
                }
            }
        }
    });
    drop(parts);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use metier_kernels::Tier;
    use metier_model::{Decoder, arch::transformer::WeightFormat, format::TensorType, progress::silent, tiny};

    use super::*;

    /// Squared error of a map's outputs on its inputs.
    fn error(inputs: &[f32], k: usize, before: &[f32], after: &[f32]) -> f64 {
        let products = before.chunks_exact(k).zip(after.chunks_exact(k)).map(|(before, after)| {
            let row = |x: &[f32]| -> f64 {
                let differences = before.iter().zip(after).zip(x);
                differences.map(|((b, a), x)| f64::from((b - a) * x)).sum::<f64>().powi(2)
            };
            inputs.chunks_exact(k).map(row).sum::<f64>()
        });
        products.sum()
    }

    /// On inputs that go together, errors that make up for each other cost less than the nearest quants.
    #[test]
    fn calibrated_rows_answer_better_than_the_nearest() {
        let pool = Pool::new(2, Tier::detect());
        let (k, n_rows, n_inputs) = (96, 24, 200);
        let noise = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0;
        // Inputs of few directions.
        let inputs: Vec<f32> = (0..n_inputs * k)
            .map(|at| {
                let (row, column) = (at / k, at % k);
                (0..6).map(|d| noise(row * 6 + d) * noise(9000 + column * 6 + d)).sum::<f32>() + 0.05 * noise(at)
            })
            .collect();
        let before: Vec<f32> = (0..n_rows * k).map(|i| noise(i + 77) * 0.2).collect();
        let u = curvature(&pool, &inputs, k).unwrap();
        for format in [FourBits::Q4_0, FourBits::Q4_1] {
            let (mut nearest, mut calibrated) = (before.clone(), before.clone());
            rows(&pool, &mut nearest, k, None, format);
            rows(&pool, &mut calibrated, k, Some(&u), format);
            let [near, calibrated] = [&nearest, &calibrated].map(|after| error(&inputs, k, &before, after));
            assert!(calibrated < 0.3 * near, "{format:?}: {calibrated} is not far below {near}");
        }
    }

    /// Blocks say what the weights became, whatever the threads.
    #[test]
    fn blocks_are_the_weights() {
        let decoder = Decoder::from_bytes(tiny::gguf_with(3, TensorType::F32), "tiny", WeightFormat::F32).unwrap();
        let plain = decoder.network().plain().unwrap();
        let texts: Vec<Vec<TokenId>> = (0..4).map(|t| (0..20).map(|i| TokenId((i * 37 + t) % 250)).collect()).collect();
        let quantised = |threads: usize, texts: Option<&[Vec<TokenId>]>| {
            let pool = Pool::new(threads, Tier::detect());
            quantise(&pool, plain.clone(), texts, FourBits::Q4_1, &mut silent)
        };
        let one = quantised(1, Some(&texts)).unwrap();
        assert_eq!(one.layers, quantised(2, Some(&texts)).unwrap().layers);
        assert_ne!(one.layers, quantised(2, None).unwrap().layers);
        assert_eq!(one.layers.len(), 2);
        assert!(matches!(quantised(1, Some(&[])), Err(QuantiseError::NoTexts)));
    }
}
