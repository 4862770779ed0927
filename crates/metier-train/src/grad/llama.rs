//! A decoder of Llama's kind with LoRA deltas on all seven linear maps; everything else is frozen.
//!
//! ```text
//! x = e·embedding[id]
//! each layer:  x += post(O·attention(rope(n(Q·h)), rope(n(K·h)), V·h)),  h = rms(x)
//!              x += post(D·(act(G·h) ∘ U·h)),                            h = rms(x)
//! logits = E·rms(x)                                          only where an answer stands
//! every map M of the seven:  M·y = W·y + b + s · B·(A·y)
//! unit vectors = n / |n|, n = rms(x)                         where a head reads a text's last row instead
//! ```
//!
//! Norms of heads (`n`) and behind the halves (`post`), biases, windows and the activation are as the base has them: nothing of these in
//! Llama, biases in Qwen 2, `n` in Qwen 3, `n`, `post`, windows and GELU in Gemma 3 ([`metier_model::arch::transformer`]).
//!
//! Some of the base's layers may be left out for good: then neither their weights nor their deltas are there.
//!
//! Kept for the way back, for SmolLM2 (d = 576, inner 1,536, r = 16): 5,800 floats a token and layer, and `heads · len` of attention. What
//! two norms and the gated product gave is computed again: it costs one pass over rows and a quarter of the memory. Norms of heads and
//! behind the halves keep what went in: that is not computed again without products.

use std::{ops::Range, sync::Mutex};

use metier_kernels::{
    Pool, Target,
    backward::{self, Gate},
    elementwise,
};
use metier_model::{
    TokenId,
    arch::transformer::{Activation, PlainLayer, PlainTransformer},
    specialist::mix,
};

use super::{
    Params, ROW_GRAIN, Segments,
    attention::Attention,
    embedding,
    linear::Linear,
    lora::{Lora, Saved},
    norm,
    rope::Turns,
};
use crate::objective::distil::{Soft, divergence};

/// PEFT's names of the seven maps, in the order in which they are computed.
pub const MAPS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];
/// Logits that are there at the same time: 50 MB, 256 rows of SmolLM2. Each product with the head packs all of it (113 MB) anew, which fewer
/// rows would not be worth.
const LOGITS: usize = 256 * 49_152;
/// Rows of them, at least: of Gemma's 262,144 words 48 rows fit.
const MIN_LOGIT_ROWS: usize = 16;

/// Rank and strength of the deltas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Deltas are multiplied with `alpha / r`.
    pub alpha: f32,
}

/// The network; its deltas lie in [`params`](Self::params).
pub struct LlamaNet {
    /// Deltas: of each layer and map, A (r, k) then B (n, r).
    pub params: Params,
    plain: PlainTransformer,
    /// Which of the base's layers these are, ascending.
    kept: Vec<usize>,
    deltas: Vec<[(Range<usize>, Range<usize>); 7]>,
    lora: LoraConfig,
    /// Of a layer that sees everything.
    attention: Attention,
    turns: Vec<Turns>,
}

/// What a forward pass leaves. Kept from step to step.
#[derive(Default)]
pub struct Pass {
    segments: Segments,
    layers: Vec<LayerPass>,
    /// The last rows, before the last norm: (rows, width).
    pub hidden: Vec<f32>,
}

#[derive(Default)]
struct LayerPass {
    x: Vec<f32>,        // (rows, width): what went in
    heads: Vec<f32>,    // (rows, (heads + kv_heads) · head_dim): before their norms, where there are such
    qkv: Vec<f32>,      // (rows, (heads + 2 · kv_heads) · head_dim), turned
    p: Vec<f32>,        // of each segment: (heads, len, len)
    mixed: Vec<f32>,    // (rows, heads · head_dim)
    attended: Vec<f32>, // (rows, width): before the norm behind attention, where there is one
    middle: Vec<f32>,   // (rows, width): between the halves of the block
    gate: Vec<f32>,     // (rows, inner)
    up: Vec<f32>,       // (rows, inner)
    fed: Vec<f32>,      // (rows, width): before the norm behind the feed-forward half, where there is one
    us: [Vec<f32>; 7],  // (rows, r) of each map
}

/// Some rows at unit length, with what their derivative needs.
pub struct Units {
    rows: Vec<usize>,
    x: Vec<f32>,       // (rows, width): before the norm
    lengths: Vec<f32>, // (rows): behind it
    /// (rows, width)
    pub units: Vec<f32>,
}

/// Where an answer stands: row, and the id that should come next.
pub type Targets = Vec<(usize, TokenId)>;

impl LlamaNet {
    /// The base with deltas that change nothing yet: A small random numbers, B zeros (Hu et al. 2021).
    ///
    /// # Panics
    ///
    /// Where the rank is 0.
    pub fn new(plain: PlainTransformer, lora: LoraConfig, seed: u64) -> Self {
        assert!(lora.r > 0, "a delta has a rank");
        let config = plain.config;
        let mut params = Params::default();
        let mut state = mix(seed ^ 0x10_2a);
        let mut deltas = Vec::new();
        for i in 0..config.layers {
            deltas.push(std::array::from_fn(|map| {
                let [n, k] = shape(&plain, map);
                // PEFT's: uniform, as wide as a linear map's first weights.
                let bound = 1.0 / (k as f32).sqrt();
                let a: Vec<f32> = (0..lora.r * k)
                    .map(|_| {
                        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                        ((mix(state) >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * bound
                    })
                    .collect();
                let name = |part: &str| format!("base_model.model.model.layers.{i}.{}.lora_{part}.weight", MAPS[map]);
                let a = params.push(&name("A"), &[lora.r, k], &a);
                (a, params.push(&name("B"), &[n, lora.r], &vec![0.0; n * lora.r]))
            }));
        }
        let attention = Attention {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            causal: true,
            window: None,
            scale: config.score_scale,
        };
        let turns = |list: &Vec<f32>| Turns::new(list, config.rope_strength, config.context, config.head_dim);
        let turns = plain.frequencies.iter().map(turns).collect();
        let kept = (0..config.layers).collect();
        Self { params, plain, kept, deltas, lora, attention, turns }
    }

    /// The layers of the base that it runs, ascending.
    pub fn layers(&self) -> &[usize] {
        &self.kept
    }

    /// Leaves out all layers but these of the base's, for good; the others' deltas stay as they are.
    ///
    /// # Panics
    ///
    /// Where these are not some of the present ones in ascending order.
    pub fn keep(&mut self, layers: &[usize]) {
        assert!(!layers.is_empty() && layers.is_sorted_by(|a, b| a < b), "some layers, in ascending order");
        assert!(layers.iter().all(|layer| self.kept.contains(layer)), "layers that are there");
        let stays: Vec<bool> = self.kept.iter().map(|layer| layers.contains(layer)).collect();
        fn retain<T>(all: &mut Vec<T>, stays: &[bool]) {
            let mut stays = stays.iter();
            all.retain(|_| stays.next().copied().unwrap_or(true));
        }
        let gone: Vec<Range<usize>> = self
            .deltas
            .iter()
            .zip(&stays)
            .filter(|(_, stays)| !**stays)
            .flat_map(|(deltas, _)| deltas.iter().flat_map(|(a, b)| [a.clone(), b.clone()]))
            .collect();
        retain(&mut self.plain.layers, &stays);
        retain(&mut self.kept, &stays);
        retain(&mut self.deltas, &stays);
        let old = std::mem::take(&mut self.params);
        for tensor in old.tensors().iter().filter(|tensor| !gone.contains(&tensor.range)) {
            let range = self.params.push(&tensor.name, &tensor.shape, &old.values[tensor.range.clone()]);
            let halves = self.deltas.iter_mut().flatten().flat_map(|(a, b)| [a, b]);
            // Ranges only move down, so none that has moved is met again.
            for half in halves.filter(|half| **half == tensor.range) {
                *half = range.clone();
            }
        }
    }

    /// `[outputs, inputs]` of one of [`MAPS`].
    pub fn shape(&self, map: usize) -> [usize; 2] {
        shape(&self.plain, map)
    }

    /// The base's weights of one of [`MAPS`]: (outputs, inputs).
    pub fn weight_mut(&mut self, layer: usize, map: usize) -> &mut [f32] {
        let PlainLayer { q, k, v, output, gate, up, down, .. } = &mut self.plain.layers[layer];
        [q, k, v, output, gate, up, down][map]
    }

    /// What goes into the first layer: (ids, width).
    ///
    /// # Panics
    ///
    /// Where an id lies outside the vocabulary.
    pub fn embed(&self, ids: &[TokenId]) -> Vec<f32> {
        let config = &self.plain.config;
        let mut x = vec![0.0; ids.len() * config.width];
        embedding::forward(&self.plain.embedding, config.width, ids, &mut x);
        if config.embedding_scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= config.embedding_scale);
        }
        x
    }

    /// One layer of the network as it is.
    pub fn step(&self, pool: &Pool, segments: &Segments, layer: usize, x: &mut [f32]) {
        self.layer(pool, &self.params.values, segments, layer, &mut LayerPass::default(), x);
    }

    /// What the maps of a layer read, where `x` goes into it: Q, K and V the same rows; O; gate and up the same; down.
    pub fn inputs_of(&self, pool: &Pool, segments: &Segments, layer: usize, x: &[f32]) -> [Vec<f32>; 4] {
        let (mut pass, mut out) = (LayerPass::default(), x.to_vec());
        self.layer(pool, &self.params.values, segments, layer, &mut pass, &mut out);
        let (plain, eps) = (&self.plain.layers[layer], self.plain.config.eps);
        let normed = |x: &[f32], weight: &[f32]| {
            let mut normed = vec![0.0; x.len()];
            norm::rms_norm(pool, x, weight, eps, &mut normed);
            normed
        };
        let product = self.product(pool, &pass);
        [normed(x, &plain.attention_norm), pass.mixed, normed(&pass.middle, &plain.ffn_norm), product]
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.plain.config.width
    }

    fn base(&self, layer: usize, map: usize) -> Linear<'_> {
        let [n, k] = shape(&self.plain, map);
        let plain = &self.plain.layers[layer];
        let bias = plain.qkv_bias.as_ref().and_then(|biases| biases.get(map)).map(Vec::as_slice);
        Linear { weight: weight(plain, map), bias, n, k }
    }

    fn delta<'a>(&self, values: &'a [f32], layer: usize, map: usize) -> Lora<'a> {
        let (a, b) = &self.deltas[layer][map];
        Lora { a: &values[a.clone()], b: &values[b.clone()], scale: self.lora.alpha / self.lora.r as f32 }
    }

    fn apply(&self, pool: &Pool, values: &[f32], at: (usize, usize), x: &[f32], u: &mut Vec<f32>, y: &mut Vec<f32>) {
        let base = self.base(at.0, at.1);
        let rows = x.len() / base.k;
        u.resize(rows * self.lora.r, 0.0);
        y.resize(rows * base.n, 0.0);
        self.delta(values, at.0, at.1).forward(pool, base, x, u, y);
    }

    /// Leaves the last rows in `pass.hidden`.
    ///
    /// # Panics
    ///
    /// Where an id lies outside the vocabulary, or a segment is longer than the context.
    pub fn forward(&self, pool: &Pool, values: &[f32], ids: &[TokenId], segments: &Segments, pass: &mut Pass) {
        assert_eq!(ids.len(), segments.rows(), "one id a row");
        pass.segments.clone_from(segments);
        pass.layers.resize_with(self.kept.len(), LayerPass::default);
        pass.hidden = self.embed(ids);
        for (idx, layer) in pass.layers.iter_mut().enumerate() {
            self.layer(pool, values, segments, idx, layer, &mut pass.hidden);
        }
    }

    fn layer(
        &self,
        pool: &Pool,
        values: &[f32],
        segments: &Segments,
        idx: usize,
        layer: &mut LayerPass,
        x: &mut [f32],
    ) {
        let (plain, eps) = (&self.plain.layers[idx], self.plain.config.eps);
        let (rows, stride) = (segments.rows(), self.attention.qkv_width());
        layer.x.clear();
        layer.x.extend_from_slice(x);
        let mut h = vec![0.0; x.len()];
        norm::rms_norm(pool, x, &plain.attention_norm, eps, &mut h);
        layer.qkv.resize(rows * stride, 0.0);
        let mut part = Vec::new();
        let mut from = 0;
        for map in 0..3 {
            self.apply(pool, values, (idx, map), &h, &mut layer.us[map], &mut part);
            let n = part.len() / rows.max(1);
            for (to, row) in layer.qkv.chunks_exact_mut(stride).zip(part.chunks_exact(n.max(1))) {
                to[from..from + n].copy_from_slice(row);
            }
            from += n;
        }
        if let Some([q, k]) = &plain.head_norms {
            let (queries, turned) = (self.attention.heads * self.attention.head_dim, self.turned());
            layer.heads.clear();
            layer.heads.extend(layer.qkv.chunks_exact(stride).flat_map(|row| &row[..turned]));
            pool.run_rows(&mut layer.qkv, stride, ROW_GRAIN, &|_, rows| {
                for row in rows.chunks_exact_mut(stride) {
                    elementwise::rms_norm_heads(pool.isa(), &mut row[..queries], q, eps);
                    elementwise::rms_norm_heads(pool.isa(), &mut row[queries..turned], k, eps);
                }
            });
        }
        if let Some(list) = plain.turns {
            self.turns[list].forward(pool, segments, &mut layer.qkv, stride, self.turned());
        }
        let attention = self.attention_of(plain);
        layer.p.resize(attention.kept(segments), 0.0);
        layer.mixed.resize(rows * self.plain.config.heads * self.plain.config.head_dim, 0.0);
        attention.forward(pool, segments, &layer.qkv, &mut layer.p, &mut layer.mixed);
        let mut out = Vec::new();
        self.apply(pool, values, (idx, 3), &layer.mixed, &mut layer.us[3], &mut out);
        self.add_half(pool, &mut out, plain.post_attention_norm.as_deref(), &mut layer.attended, x);
        layer.middle.clear();
        layer.middle.extend_from_slice(x);
        norm::rms_norm(pool, x, &plain.ffn_norm, eps, &mut h);
        self.apply(pool, values, (idx, 4), &h, &mut layer.us[4], &mut layer.gate);
        self.apply(pool, values, (idx, 5), &h, &mut layer.us[5], &mut layer.up);
        let product = self.product(pool, layer);
        self.apply(pool, values, (idx, 6), &product, &mut layer.us[6], &mut out);
        self.add_half(pool, &mut out, plain.post_ffn_norm.as_deref(), &mut layer.fed, x);
    }

    /// `x += post(out)`; what goes into a norm is kept.
    fn add_half(&self, pool: &Pool, out: &mut [f32], post: Option<&[f32]>, kept: &mut Vec<f32>, x: &mut [f32]) {
        if let Some(weight) = post {
            kept.clear();
            kept.extend_from_slice(out);
            norm::rms_norm(pool, kept, weight, self.plain.config.eps, out);
        }
        add(pool, x, out);
    }

    /// The derivative of what a half returned, from that of `x`: none where it is the same.
    fn half_backward(&self, pool: &Pool, post: Option<&[f32]>, kept: &[f32], dx: &[f32]) -> Option<Vec<f32>> {
        let mut dout = vec![0.0; dx.len()];
        norm::rms_norm_backward(pool, kept, post?, self.plain.config.eps, dx, &mut dout);
        Some(dout)
    }

    fn attention_of(&self, layer: &PlainLayer) -> Attention {
        Attention { window: layer.window, ..self.attention }
    }

    fn gate(&self) -> Gate {
        match self.plain.config.activation {
            Activation::Silu => Gate::Silu,
            Activation::GeluTanh => Gate::GeluTanh,
        }
    }

    /// `act(gate) ∘ up`: (rows, inner).
    fn product(&self, pool: &Pool, layer: &LayerPass) -> Vec<f32> {
        let (isa, inner) = (pool.isa(), self.plain.config.inner);
        let mut product = vec![0.0; layer.gate.len()];
        pool.run_rows(&mut product, inner, ROW_GRAIN, &|first, rows| {
            let at = first * inner..first * inner + rows.len();
            backward::gated(isa, self.gate(), &layer.gate[at.clone()], &layer.up[at], rows);
        });
        product
    }

    /// Queries and keys.
    fn turned(&self) -> usize {
        (self.attention.heads + self.attention.kv_heads) * self.attention.head_dim
    }

    #[allow(clippy::too_many_arguments, reason = "one map of one layer")]
    fn back(
        &self,
        pool: &Pool,
        values: &[f32],
        at: (usize, usize),
        saved: Saved<'_>,
        dy: &[f32],
        grads: &mut [f32],
        dx: &mut [f32],
        target: Target,
    ) {
        let (a, b) = &self.deltas[at.0][at.1];
        let [da, db] = grads.get_disjoint_mut([a.clone(), b.clone()]).expect("A and B lie apart");
        self.delta(values, at.0, at.1).backward(pool, self.base(at.0, at.1), saved, dy, (da, db), dx, target);
    }

    /// From the derivative with respect to the last rows to those of all deltas, added to `grads`.
    pub fn backward(&self, pool: &Pool, values: &[f32], pass: &mut Pass, mut dx: Vec<f32>, grads: &mut [f32]) {
        for idx in (0..self.plain.layers.len()).rev() {
            self.layer_backward(pool, values, &pass.segments, idx, &mut pass.layers[idx], &mut dx, grads);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "one layer of one pass")]
    fn layer_backward(
        &self,
        pool: &Pool,
        values: &[f32],
        segments: &Segments,
        idx: usize,
        layer: &mut LayerPass,
        dx: &mut [f32],
        grads: &mut [f32],
    ) {
        let (plain, eps, inner) = (&self.plain.layers[idx], self.plain.config.eps, self.plain.config.inner);
        let (isa, stride) = (pool.isa(), self.attention.qkv_width());
        let mut h = vec![0.0; dx.len()];
        let mut dh = vec![0.0; dx.len()];
        // The second half: dx goes on as it is, and through the inner rows.
        let product = self.product(pool, layer);
        let mut dproduct = vec![0.0; product.len()];
        let saved = Saved { x: &product, u: &layer.us[6] };
        let dout = self.half_backward(pool, plain.post_ffn_norm.as_deref(), &layer.fed, dx);
        self.back(
            pool,
            values,
            (idx, 6),
            saved,
            dout.as_deref().unwrap_or(dx),
            grads,
            &mut dproduct,
            Target::Overwrite,
        );
        let (mut dgate, mut dup) = (product, vec![0.0; dproduct.len()]);
        {
            let part = ROW_GRAIN * inner;
            let parts: Vec<_> = dgate.chunks_mut(part).zip(dup.chunks_mut(part)).map(Mutex::new).collect();
            pool.run(parts.len(), &|i| {
                let mut taken = parts[i].lock().expect("each part is taken once");
                let (dgate, dup) = &mut *taken;
                let at = i * part..i * part + dgate.len();
                let (gate, up, d) = (&layer.gate[at.clone()], &layer.up[at.clone()], &dproduct[at]);
                backward::gated_backward(isa, self.gate(), gate, up, d, dgate, dup);
            });
        }
        norm::rms_norm(pool, &layer.middle, &plain.ffn_norm, eps, &mut h);
        self.back(pool, values, (idx, 4), Saved { x: &h, u: &layer.us[4] }, &dgate, grads, &mut dh, Target::Overwrite);
        self.back(pool, values, (idx, 5), Saved { x: &h, u: &layer.us[5] }, &dup, grads, &mut dh, Target::Accumulate);
        norm::rms_norm_backward(pool, &layer.middle, &plain.ffn_norm, eps, &dh, dx);
        // The first half.
        let mut dmixed = vec![0.0; layer.mixed.len()];
        let saved = Saved { x: &layer.mixed, u: &layer.us[3] };
        let dout = self.half_backward(pool, plain.post_attention_norm.as_deref(), &layer.attended, dx);
        self.back(pool, values, (idx, 3), saved, dout.as_deref().unwrap_or(dx), grads, &mut dmixed, Target::Overwrite);
        let mut dqkv = vec![0.0; layer.qkv.len()];
        self.attention_of(plain).backward(pool, segments, &layer.qkv, &layer.p, &dmixed, &mut dqkv);
        if let Some(list) = plain.turns {
            self.turns[list].backward(pool, segments, &mut dqkv, stride, self.turned());
        }
        if let Some([q, k]) = &plain.head_norms {
            let heads = [(q.as_slice(), self.attention.heads), (k.as_slice(), self.attention.kv_heads)];
            norm::rms_norm_heads_backward(pool, &layer.heads, heads, eps, &mut dqkv, stride);
        }
        norm::rms_norm(pool, &layer.x, &plain.attention_norm, eps, &mut h);
        let mut from = 0;
        for map in 0..3 {
            let n = shape(&self.plain, map)[0];
            let d: Vec<f32> = dqkv.chunks_exact(stride).flat_map(|row| row[from..from + n].iter().copied()).collect();
            let target = if map == 0 { Target::Overwrite } else { Target::Accumulate };
            self.back(pool, values, (idx, map), Saved { x: &h, u: &layer.us[map] }, &d, grads, &mut dh, target);
            from += n;
        }
        norm::rms_norm_backward(pool, &layer.x, &plain.attention_norm, eps, &dh, dx);
    }

    /// Logits of some rows of the last pass: (rows, vocabulary).
    pub fn logits(&self, pool: &Pool, pass: &Pass, rows: &[usize]) -> Vec<f32> {
        let mut logits = vec![0.0; rows.len() * self.plain.config.vocabulary];
        self.head().forward(pool, &self.normed(pool, &self.gather(&pass.hidden, rows)), &mut logits);
        logits
    }

    /// Mean cross entropy of the next ids at `targets`, and its derivative with respect to the last rows.
    pub fn loss(&self, pool: &Pool, pass: &Pass, targets: &[(usize, TokenId)]) -> (f64, Vec<f32>) {
        self.taught_loss(pool, pass, targets, &[], (0.0, 1.0))
    }

    /// The same where a teacher has seen some of the targets: there `(1 − weight)·cross entropy + weight·T²·KL(teacher ‖ student)`.
    pub fn taught_loss(
        &self,
        pool: &Pool,
        pass: &Pass,
        targets: &[(usize, TokenId)],
        softs: &[Option<&Soft>],
        (weight, temperature): (f32, f32),
    ) -> (f64, Vec<f32>) {
        let (width, vocabulary) = (self.width(), self.plain.config.vocabulary);
        let mut dhidden = vec![0.0; pass.hidden.len()];
        let mut loss = 0.0;
        let mut room = vec![0.0; targets.len().min(self.logit_rows()) * vocabulary];
        for (at, some) in targets.chunks(self.logit_rows()).enumerate() {
            let softs = softs.get(at * self.logit_rows()..).unwrap_or_default();
            let rows: Vec<usize> = some.iter().map(|(row, _)| *row).collect();
            let x = self.gather(&pass.hidden, &rows);
            let logits = &mut room[..rows.len() * vocabulary];
            self.head().forward(pool, &self.normed(pool, &x), logits);
            // Turned into their own derivative, row by row.
            let isa = pool.isa();
            let factor = 1.0 / targets.len() as f32;
            let mut losses = vec![0.0; rows.len()];
            let each: Vec<_> = logits.chunks_exact_mut(vocabulary).zip(&mut losses).map(Mutex::new).collect();
            pool.run(each.len(), &|i| {
                let mut taken = each[i].lock().expect("each part is taken once");
                let (row, loss) = &mut *taken;
                let target = some[i].1.0 as usize;
                let mut log_sum = 0.0;
                elementwise::log_sum_exp(isa, row, &mut log_sum);
                **loss = f64::from(log_sum - row[target]);
                let (mut hard, mut taught) = (1.0, Vec::new());
                if let Some(soft) = softs.get(i).copied().flatten() {
                    hard -= weight;
                    taught.resize(vocabulary, 0.0);
                    let far = divergence(isa, row, soft, temperature, weight * factor, &mut taught);
                    **loss = f64::from(hard) * **loss + f64::from(weight) * far;
                }
                elementwise::softmax(isa, row);
                row[target] -= 1.0;
                row.iter_mut().for_each(|d| *d *= factor * hard);
                row.iter_mut().zip(&taught).for_each(|(d, taught)| *d += taught);
            });
            drop(each);
            loss += losses.iter().sum::<f64>() / targets.len() as f64;
            let mut dnormed = vec![0.0; x.len()];
            self.head().backward_input(pool, logits, &mut dnormed, Target::Overwrite);
            let mut dx = vec![0.0; x.len()];
            norm::rms_norm_backward(pool, &x, &self.plain.output_norm, self.plain.config.eps, &dnormed, &mut dx);
            for (row, dx) in rows.iter().zip(dx.chunks_exact(width)) {
                dhidden[row * width..][..width].iter_mut().zip(dx).for_each(|(sum, d)| *sum += d);
            }
        }
        (loss, dhidden)
    }

    /// The rows that went into one of its layers in the last pass, counted from 0; behind the last one, those that came out.
    pub fn rows_at<'p>(&self, pass: &'p Pass, at: usize) -> &'p [f32] {
        pass.layers.get(at).map_or(&pass.hidden, |layer| &layer.x)
    }

    /// The last rows as they would be if the last pass had skipped one of its layers, counted from 0.
    pub fn without(&self, pool: &Pool, values: &[f32], pass: &Pass, at: usize) -> Vec<f32> {
        let (mut x, mut scratch) = (pass.layers[at].x.clone(), LayerPass::default());
        for idx in at + 1..self.kept.len() {
            self.layer(pool, values, &pass.segments, idx, &mut scratch, &mut x);
        }
        x
    }

    /// Some of the last rows behind the last norm, at unit length. `hidden`: (all rows, width).
    pub fn units(&self, pool: &Pool, hidden: &[f32], rows: Vec<usize>) -> Units {
        let width = self.width();
        let x = self.gather(hidden, &rows);
        let mut units = self.normed(pool, &x);
        let mut lengths = Vec::with_capacity(rows.len());
        for unit in units.chunks_exact_mut(width) {
            let length = unit.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE) as f32;
            unit.iter_mut().for_each(|x| *x /= length);
            lengths.push(length);
        }
        Units { rows, x, lengths, units }
    }

    /// From the derivative with respect to unit vectors to that with respect to the last rows, of which there are `n`:
    /// `dn = (du − u·(u·du)) / |n|`.
    pub fn units_backward(&self, pool: &Pool, of: &Units, dunits: &[f32], n: usize) -> Vec<f32> {
        let width = self.width();
        let mut dnormed = dunits.to_vec();
        let each = dnormed.chunks_exact_mut(width).zip(of.units.chunks_exact(width)).zip(&of.lengths);
        for ((d, unit), length) in each {
            let along: f32 = unit.iter().zip(d.iter()).map(|(u, d)| u * d).sum();
            d.iter_mut().zip(unit).for_each(|(d, u)| *d = (*d - u * along) / length);
        }
        let mut dx = vec![0.0; dnormed.len()];
        norm::rms_norm_backward(pool, &of.x, &self.plain.output_norm, self.plain.config.eps, &dnormed, &mut dx);
        let mut dhidden = vec![0.0; n * width];
        for (row, dx) in of.rows.iter().zip(dx.chunks_exact(width)) {
            dhidden[row * width..][..width].iter_mut().zip(dx).for_each(|(sum, d)| *sum += d);
        }
        dhidden
    }

    /// As [`loss`](Self::loss), without the derivative.
    pub fn loss_alone(&self, pool: &Pool, pass: &Pass, targets: &[(usize, TokenId)]) -> f64 {
        self.loss_of(pool, &pass.hidden, targets)
    }

    /// The same of other last rows: (all rows, width).
    pub fn loss_of(&self, pool: &Pool, hidden: &[f32], targets: &[(usize, TokenId)]) -> f64 {
        let (isa, vocabulary) = (pool.isa(), self.plain.config.vocabulary);
        let mut sum = 0.0;
        for some in targets.chunks(self.logit_rows()) {
            let rows: Vec<usize> = some.iter().map(|(row, _)| *row).collect();
            let mut logits = vec![0.0; rows.len() * vocabulary];
            self.head().forward(pool, &self.normed(pool, &self.gather(hidden, &rows)), &mut logits);
            let mut losses = vec![0.0f64; rows.len()];
            pool.run_rows(&mut losses, 1, 1, &|first, losses| {
                for (i, loss) in losses.iter_mut().enumerate() {
                    let row = &logits[(first + i) * vocabulary..][..vocabulary];
                    let mut log_sum = 0.0;
                    elementwise::log_sum_exp(isa, row, &mut log_sum);
                    *loss = f64::from(log_sum - row[some[first + i].1.0 as usize]);
                }
            });
            sum += losses.iter().sum::<f64>();
        }
        sum / targets.len().max(1) as f64
    }

    /// Rows whose logits are there at the same time.
    fn logit_rows(&self) -> usize {
        (LOGITS / self.plain.config.vocabulary.max(1)).max(MIN_LOGIT_ROWS)
    }

    fn head(&self) -> Linear<'_> {
        let weight = self.plain.head.as_deref().unwrap_or(&self.plain.embedding);
        Linear { weight, bias: None, n: self.plain.config.vocabulary, k: self.width() }
    }

    fn gather(&self, hidden: &[f32], rows: &[usize]) -> Vec<f32> {
        let width = self.width();
        rows.iter().flat_map(|row| hidden[row * width..][..width].iter().copied()).collect()
    }

    fn normed(&self, pool: &Pool, x: &[f32]) -> Vec<f32> {
        let mut normed = vec![0.0; x.len()];
        norm::rms_norm(pool, x, &self.plain.output_norm, self.plain.config.eps, &mut normed);
        normed
    }
}

/// `[outputs, inputs]` of a map.
fn shape(plain: &PlainTransformer, map: usize) -> [usize; 2] {
    let config = &plain.config;
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    match map {
        0 => [q, config.width],
        1 | 2 => [kv, config.width],
        3 => [config.width, q],
        4 | 5 => [config.inner, config.width],
        _ => [config.width, config.inner],
    }
}

fn weight(layer: &PlainLayer, map: usize) -> &[f32] {
    [&layer.q, &layer.k, &layer.v, &layer.output, &layer.gate, &layer.up, &layer.down][map]
}

fn add(pool: &Pool, sum: &mut [f32], x: &[f32]) {
    let isa = pool.isa();
    pool.run_rows(sum, 1, 1 << 14, &|first, sum| elementwise::add(isa, sum, &x[first..first + sum.len()]));
}
