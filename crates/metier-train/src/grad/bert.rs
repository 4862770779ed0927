//! An encoder of the BERT kind with norms behind its blocks, all of its layers trained; tables of words and positions stay.
//!
//! ```text
//! x = LN(word[id] + position[i])
//! each layer:  h = LN(x + drop(O·attention(Q·x, K·x, V·x)));  x = LN(h + drop(D·gelu(U·h)))
//! e = mean of a text's rows (or its first);  u = e / |e|
//! ```
//!
//! Kept for the way back, for a row of `d` elements and an inner row of `4d`: 16 d floats a layer, and `heads · len` of attention:
//! for MiniLM (d = 384, 6 layers) 150 kB a token, 150 MB for a step of 1,000 tokens.

use std::{ops::Range, sync::Mutex};

use metier_kernels::{Pool, Target, backward, elementwise};
use metier_model::{
    TokenId,
    arch::bert::{PlainBert, Positions},
    encoder::Pooling,
    specialist::mix,
};

use super::{
    Params, ROW_GRAIN, Segments,
    attention::Attention,
    embedding,
    linear::{self, Linear},
    norm::{LayerNorm, Normed},
};

/// The network; its trained numbers lie in [`params`](Self::params).
pub struct BertNet {
    /// Trained: norm of the embeddings, all layers.
    pub params: Params,
    plain: PlainTables,
    layers: Vec<LayerAt>,
    norm: (Range<usize>, Range<usize>),
    attention: Attention,
    width: usize,
    inner: usize,
    eps: f32,
    pooling: Pooling,
}

struct PlainTables {
    words: Vec<f32>,
    positions: Vec<f32>,
    /// RoBERTa's: positions are counted from behind this id's.
    padding: Option<usize>,
}

/// Weight and bias.
type Pair = (Range<usize>, Range<usize>);

struct LayerAt {
    qkv: Pair,
    output: Pair,
    attention_norm: Pair,
    up: Pair,
    down: Pair,
    norm: Pair,
}

/// Which elements a pass drops.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Share of elements that are set to 0, below 1.
    pub rate: f32,
    /// Another one for every step.
    pub seed: u64,
}

/// What a forward pass leaves: its results, and what the way back needs. Kept from step to step.
#[derive(Default)]
pub struct Pass {
    ids: Vec<TokenId>,
    segments: Segments,
    dropout: Option<Dropout>,
    embedded: Normed,
    layers: Vec<LayerPass>,
    /// The last hidden rows: (rows, width).
    pub hidden: Vec<f32>,
    lengths: Vec<f32>, // (segments): |e|
    /// Unit vectors: (segments, width).
    pub units: Vec<f32>,
}

#[derive(Default)]
struct LayerPass {
    x: Vec<f32>,     // (rows, width): what went in
    qkv: Vec<f32>,   // (rows, 3 · width)
    p: Vec<f32>,     // of each segment: (heads, len, len)
    mixed: Vec<f32>, // (rows, width)
    attention_norm: Normed,
    h: Vec<f32>,         // (rows, width)
    wide: Vec<f32>,      // (rows, inner): before GELU
    activated: Vec<f32>, // (rows, inner)
    norm: Normed,
}

impl BertNet {
    /// Takes the weights over.
    pub fn new(plain: PlainBert, pooling: Pooling) -> Self {
        let PlainBert { config, words, positions, tensors, values } = plain;
        let mut params = Params::default();
        let mut from = 0;
        for tensor in &tensors {
            let len: usize = tensor.shape.iter().product();
            params.push(&tensor.name, &tensor.shape, &values[from..from + len]);
            from += len;
        }
        let (d, inner) = (config.width, config.inner);
        let mut at = 0;
        let mut take = |len: usize| {
            at += len;
            at - len..at
        };
        let norm = (take(d), take(d));
        let layers = (0..config.layers).map(|_| LayerAt {
            // Weights of Q, K and V lie one after the other, and so do their biases.
            qkv: (take(3 * d * d), take(3 * d)),
            output: (take(d * d), take(d)),
            attention_norm: (take(d), take(d)),
            up: (take(inner * d), take(inner)),
            down: (take(d * inner), take(d)),
            norm: (take(d), take(d)),
        });
        let layers = layers.collect();
        assert_eq!(at, params.values.len(), "the layout of `PlainBert`");
        let padding = match config.positions {
            Positions::Learned { padding, .. } => padding,
            Positions::Rotary { .. } => None,
        };
        let attention = Attention {
            heads: config.heads,
            kv_heads: config.heads,
            head_dim: config.head_dim(),
            causal: false,
            window: None,
            scale: Attention::scale_of(config.head_dim()),
        };
        Self {
            params,
            plain: PlainTables { words, positions, padding },
            layers,
            norm,
            attention,
            width: d,
            inner,
            eps: config.eps,
            pooling,
        }
    }

    /// Elements of a row, and of a text's vector.
    pub fn width(&self) -> usize {
        self.width
    }

    fn linear<'a>(&self, values: &'a [f32], at: &Pair, n: usize, k: usize) -> Linear<'a> {
        Linear { weight: &values[at.0.clone()], bias: Some(&values[at.1.clone()]), n, k }
    }

    fn layer_norm<'a>(&self, values: &'a [f32], at: &Pair) -> LayerNorm<'a> {
        LayerNorm { weight: &values[at.0.clone()], bias: &values[at.1.clone()], eps: self.eps }
    }

    /// Unit vectors of the texts `ids` under each other; `values` as in [`params`](Self::params), perhaps other numbers.
    ///
    /// # Panics
    ///
    /// Where an id lies outside the table, or a text is empty or longer than there are positions.
    pub fn forward(
        &self,
        pool: &Pool,
        values: &[f32],
        ids: &[TokenId],
        segments: &Segments,
        dropout: Option<Dropout>,
        pass: &mut Pass,
    ) {
        assert_eq!(ids.len(), segments.rows(), "one id a row");
        let (d, rows) = (self.width, ids.len());
        pass.ids.clear();
        pass.ids.extend_from_slice(ids);
        pass.segments.clone_from(segments);
        pass.dropout = dropout;
        pass.layers.resize_with(self.layers.len(), LayerPass::default);
        let mut x = vec![0.0; rows * d];
        embedding::forward(&self.plain.words, d, ids, &mut x);
        self.add_positions(ids, segments, &mut x);
        pass.hidden.resize(rows * d, 0.0);
        self.layer_norm(values, &self.norm).forward(pool, &x, &mut pass.embedded, &mut pass.hidden);
        drop_out(pool, dropout, 0, d, &mut pass.hidden);
        for (idx, (at, layer)) in self.layers.iter().zip(&mut pass.layers).enumerate() {
            layer.x.clone_from(&pass.hidden);
            self.layer(pool, values, segments, dropout, idx, at, layer, &mut pass.hidden);
        }
        self.pool_rows(pass);
    }

    #[allow(clippy::too_many_arguments, reason = "one layer of one pass")]
    fn layer(
        &self,
        pool: &Pool,
        values: &[f32],
        segments: &Segments,
        dropout: Option<Dropout>,
        idx: usize,
        at: &LayerAt,
        layer: &mut LayerPass,
        out: &mut [f32],
    ) {
        let (d, inner, rows) = (self.width, self.inner, segments.rows());
        layer.qkv.resize(rows * 3 * d, 0.0);
        layer.p.resize(self.attention.kept(segments), 0.0);
        layer.mixed.resize(rows * d, 0.0);
        layer.h.resize(rows * d, 0.0);
        layer.wide.resize(rows * inner, 0.0);
        layer.activated.resize(rows * inner, 0.0);
        self.linear(values, &at.qkv, 3 * d, d).forward(pool, &layer.x, &mut layer.qkv);
        self.attention.forward(pool, segments, &layer.qkv, &mut layer.p, &mut layer.mixed);
        self.linear(values, &at.output, d, d).forward(pool, &layer.mixed, out);
        drop_out(pool, dropout, 2 * idx + 1, d, out);
        add(pool, out, &layer.x);
        self.layer_norm(values, &at.attention_norm).forward(pool, out, &mut layer.attention_norm, &mut layer.h);
        self.linear(values, &at.up, inner, d).forward(pool, &layer.h, &mut layer.wide);
        let (isa, wide) = (pool.isa(), &layer.wide);
        pool.run_rows(&mut layer.activated, inner, ROW_GRAIN, &|first, rows| {
            rows.copy_from_slice(&wide[first * inner..][..rows.len()]);
            elementwise::gelu(isa, rows);
        });
        let mut sum = vec![0.0; rows * d];
        self.linear(values, &at.down, d, inner).forward(pool, &layer.activated, &mut sum);
        drop_out(pool, dropout, 2 * idx + 2, d, &mut sum);
        add(pool, &mut sum, &layer.h);
        self.layer_norm(values, &at.norm).forward(pool, &sum, &mut layer.norm, out);
    }

    /// From the derivative with respect to the unit vectors to those of all trained numbers, added to `grads`.
    pub fn backward(&self, pool: &Pool, values: &[f32], pass: &mut Pass, dunits: &[f32], grads: &mut [f32]) {
        let dx = self.unpool_rows(pass, dunits);
        self.backward_rows(pool, values, pass, dx, grads);
    }

    /// The same from the derivative with respect to the last hidden rows `(rows, width)`.
    pub fn backward_rows(&self, pool: &Pool, values: &[f32], pass: &mut Pass, mut dx: Vec<f32>, grads: &mut [f32]) {
        for (idx, at) in self.layers.iter().enumerate().rev() {
            self.layer_backward(
                pool,
                values,
                &pass.segments,
                pass.dropout,
                idx,
                at,
                &mut pass.layers[idx],
                &mut dx,
                grads,
            );
        }
        drop_out(pool, pass.dropout, 0, self.width, &mut dx);
        let [dweight, dbias] = pair(grads, &self.norm);
        self.layer_norm(values, &self.norm).backward(pool, &pass.embedded, &mut dx, dweight, dbias);
    }

    /// `dx`: of what came out → of what went in.
    #[allow(clippy::too_many_arguments, reason = "one layer of one pass")]
    fn layer_backward(
        &self,
        pool: &Pool,
        values: &[f32],
        segments: &Segments,
        dropout: Option<Dropout>,
        idx: usize,
        at: &LayerAt,
        layer: &mut LayerPass,
        dx: &mut [f32],
        grads: &mut [f32],
    ) {
        let (isa, d, inner) = (pool.isa(), self.width, self.inner);
        let [dweight, dbias] = pair(grads, &at.norm);
        self.layer_norm(values, &at.norm).backward(pool, &layer.norm, dx, dweight, dbias);
        // `dx` goes on to `h` as it is, and through the inner rows.
        let mut dy = dx.to_vec();
        drop_out(pool, dropout, 2 * idx + 2, d, &mut dy);
        let [dweight, dbias] = pair(grads, &at.down);
        linear::backward_weight(pool, &dy, &layer.activated, inner, dweight, Some(dbias));
        let dwide = &mut layer.activated; // what it held is used up
        self.linear(values, &at.down, d, inner).backward_input(pool, &dy, dwide, Target::Overwrite);
        let wide = &layer.wide;
        pool.run_rows(dwide, inner, ROW_GRAIN, &|first, rows| {
            backward::gelu_backward(isa, &wide[first * inner..][..rows.len()], rows);
        });
        let [dweight, dbias] = pair(grads, &at.up);
        linear::backward_weight(pool, dwide, &layer.h, d, dweight, Some(dbias));
        self.linear(values, &at.up, inner, d).backward_input(pool, dwide, dx, Target::Accumulate);
        let [dweight, dbias] = pair(grads, &at.attention_norm);
        self.layer_norm(values, &at.attention_norm).backward(pool, &layer.attention_norm, dx, dweight, dbias);
        dy.copy_from_slice(dx);
        drop_out(pool, dropout, 2 * idx + 1, d, &mut dy);
        let [dweight, dbias] = pair(grads, &at.output);
        linear::backward_weight(pool, &dy, &layer.mixed, d, dweight, Some(dbias));
        let dmixed = &mut layer.mixed;
        self.linear(values, &at.output, d, d).backward_input(pool, &dy, dmixed, Target::Overwrite);
        let mut dqkv = vec![0.0; layer.qkv.len()];
        self.attention.backward(pool, segments, &layer.qkv, &layer.p, dmixed, &mut dqkv);
        let [dweight, dbias] = pair(grads, &at.qkv);
        linear::backward_weight(pool, &dqkv, &layer.x, d, dweight, Some(dbias));
        self.linear(values, &at.qkv, 3 * d, d).backward_input(pool, &dqkv, dx, Target::Accumulate);
    }

    fn add_positions(&self, ids: &[TokenId], segments: &Segments, x: &mut [f32]) {
        let d = self.width;
        for range in segments.ranges() {
            let mut tokens = 0;
            for (id, row) in ids[range.clone()].iter().zip(x[range.start * d..range.end * d].chunks_exact_mut(d)) {
                let position = match self.plain.padding {
                    Some(padding) if padding == id.0 as usize => padding,
                    padding => {
                        tokens += 1;
                        padding.map_or(0, |padding| padding + 1) + tokens - 1
                    }
                };
                let position = &self.plain.positions[position * d..][..d];
                row.iter_mut().zip(position).for_each(|(x, p)| *x += p);
            }
        }
    }

    /// Rows of each text → its unit vector.
    fn pool_rows(&self, pass: &mut Pass) {
        let d = self.width;
        pass.units.clear();
        pass.lengths.clear();
        for range in pass.segments.ranges() {
            let rows = &pass.hidden[range.start * d..range.end * d];
            let mut e = vec![0.0f32; d];
            match self.pooling {
                Pooling::Mean => {
                    for row in rows.chunks_exact(d) {
                        e.iter_mut().zip(row).for_each(|(e, x)| *e += x);
                    }
                    e.iter_mut().for_each(|e| *e /= range.len() as f32);
                }
                Pooling::FirstToken => e.copy_from_slice(&rows[..d]),
            }
            let length = e.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32;
            let factor = if length > 0.0 { 1.0 / length } else { 0.0 };
            pass.units.extend(e.iter().map(|x| x * factor));
            pass.lengths.push(length);
        }
    }

    /// `u = e/|e|: de = (du − u·(u·du)) / |e|`; each row of a mean has `de / len`.
    fn unpool_rows(&self, pass: &Pass, dunits: &[f32]) -> Vec<f32> {
        let d = self.width;
        let mut dx = vec![0.0f32; pass.segments.rows() * d];
        let texts = pass.segments.ranges().zip(pass.units.chunks_exact(d)).zip(dunits.chunks_exact(d));
        for (((range, unit), dunit), length) in texts.zip(&pass.lengths) {
            if *length == 0.0 {
                continue;
            }
            let along: f32 = unit.iter().zip(dunit).map(|(u, d)| u * d).sum();
            let factor = match self.pooling {
                Pooling::Mean => 1.0 / (length * range.len() as f32),
                Pooling::FirstToken => 1.0 / length,
            };
            let rows = match self.pooling {
                Pooling::Mean => range,
                Pooling::FirstToken => range.start..range.start + 1,
            };
            for row in dx[rows.start * d..rows.end * d].chunks_exact_mut(d) {
                for ((x, u), du) in row.iter_mut().zip(unit).zip(dunit) {
                    *x = (du - u * along) * factor;
                }
            }
        }
        dx
    }
}

/// Weight and bias at once.
fn pair<'a>(grads: &'a mut [f32], at: &Pair) -> [&'a mut [f32]; 2] {
    grads.get_disjoint_mut([at.0.clone(), at.1.clone()]).expect("a weight and its bias lie apart")
}

fn add(pool: &Pool, sum: &mut [f32], x: &[f32]) {
    let isa = pool.isa();
    let part = ROW_GRAIN * 512;
    let parts: Vec<_> = sum.chunks_mut(part).zip(x.chunks(part)).map(Mutex::new).collect();
    pool.run(parts.len(), &|i| {
        let mut taken = parts[i].lock().expect("each part is taken once");
        let (sum, x) = &mut *taken;
        elementwise::add(isa, sum, x);
    });
}

/// Drops elements of every row by a hash of step, place in the network, and row: the same again on the way back.
pub(crate) fn drop_out(pool: &Pool, dropout: Option<Dropout>, site: usize, width: usize, x: &mut [f32]) {
    let Some(Dropout { rate, seed }) = dropout.filter(|dropout| dropout.rate > 0.0) else { return };
    let isa = pool.isa();
    pool.run_rows(x, width, ROW_GRAIN, &|first, rows| {
        for (i, row) in rows.chunks_exact_mut(width).enumerate() {
            let seed = mix(seed ^ mix(((site as u64) << 40) + (first + i) as u64 + 1)) as u32;
            backward::dropout(isa, row, seed, 1.0 - rate);
        }
    });
}
