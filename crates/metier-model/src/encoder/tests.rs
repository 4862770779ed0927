#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeMap, fs};

use metier_kernels::Tier;
use safetensors::{Dtype, tensor::TensorView};

use super::*;

const WIDTH: usize = 32;
const INNER: usize = 48;
const WORDS: [&str; 9] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "##b", "##c"];
/// Two tokens frame a window, so six are left for the text.
const WINDOW: usize = 8;

/// A folder with a one-layer BERT of random weights.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "model_type": "bert", "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": INNER, "vocab_size": WORDS.len(), "max_position_embeddings": 16, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu",
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let sentence = serde_json::json!({"max_seq_length": WINDOW, "do_lower_case": false});
    fs::write(dir.path().join("sentence_bert_config.json"), sentence.to_string()).unwrap();
    let vocabulary: BTreeMap<&str, usize> = WORDS.iter().enumerate().map(|(i, word)| (*word, i)).collect();
    let special = |id: usize| {
        serde_json::json!({"id": id, "content": WORDS[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let piece = |id: &str| serde_json::json!({"SpecialToken": {"id": id, "type_id": 0}});
    let tokenizer = serde_json::json!({
        "version": "1.0", "padding": null, "added_tokens": [special(0), special(1), special(2), special(3)],
        // As in MiniLM's own file: must be ignored.
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [piece("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, piece("[SEP]")],
            "pair": [piece("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, piece("[SEP]"),
                {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary},
    });
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    write_weights(dir.path(), |_, _| {});
    dir
}

/// Writes weights, after `change(name, values)` had its way with each tensor.
fn write_weights(dir: &Path, change: impl Fn(&str, &mut Vec<f32>)) {
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("embeddings.word_embeddings.weight".into(), vec![WORDS.len(), WIDTH]),
        ("embeddings.position_embeddings.weight".into(), vec![16, WIDTH]),
        ("embeddings.token_type_embeddings.weight".into(), vec![2, WIDTH]),
    ];
    let layer = "encoder.layer.0.";
    for norm in [
        "embeddings.LayerNorm".into(),
        format!("{layer}attention.output.LayerNorm"),
        format!("{layer}output.LayerNorm"),
    ] {
        shapes.push((format!("{norm}.weight"), vec![WIDTH]));
        shapes.push((format!("{norm}.bias"), vec![WIDTH]));
    }
    for (name, n, k) in [
        ("attention.self.query", WIDTH, WIDTH),
        ("attention.self.key", WIDTH, WIDTH),
        ("attention.self.value", WIDTH, WIDTH),
        ("attention.output.dense", WIDTH, WIDTH),
        ("intermediate.dense", INNER, WIDTH),
        ("output.dense", WIDTH, INNER),
    ] {
        shapes.push((format!("{layer}{name}.weight"), vec![n, k]));
        shapes.push((format!("{layer}{name}.bias"), vec![n]));
    }
    let mut state = 1u64;
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let mut values: Vec<f32> = (0..shape.iter().product())
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
                })
                .collect();
            change(&name, &mut values);
            (name, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect())
        })
        .collect();
    let views =
        data.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn a_text_has_one_vector_whoever_it_is_embedded_with() {
    for weights in [EncoderWeights::F32, EncoderWeights::Int8] {
        one_vector_a_text(weights);
    }
}

fn one_vector_a_text(weights: EncoderWeights) {
    let dir = folder();
    let encoder = Encoder::open_with(dir.path(), weights).unwrap();
    // From empty to several windows.
    let texts: Vec<String> = (0..40).map(|i| "a bc cb b ".repeat(i % 7).chars().take(i).collect()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut expected: Option<Vec<Vec<f32>>> = None;
    for tier in Tier::available() {
        let pool = Pool::new(2, tier);
        let mut reports = 0;
        let together = encoder.embed_all(&pool, &texts, &mut |_| reports += 1).unwrap();
        assert!(reports > 0);
        for (text, vector) in texts.iter().zip(&together) {
            assert_eq!(&encoder.embed(&pool, &[text]).unwrap()[0], vector, "{tier}: `{text}`");
            let norm: f32 = vector.iter().map(|x| x * x).sum();
            assert!((norm - 1.0).abs() < 1e-5, "unit length");
        }
        assert_eq!(*expected.get_or_insert_with(|| together.clone()), together, "{tier} is not scalar");
    }
    let expected = expected.unwrap();
    assert_ne!(expected[5], expected[30]);
}

#[test]
fn eight_bits_are_another_base_and_nearly_the_same_vectors() {
    let dir = folder();
    let exact = Encoder::open(dir.path()).unwrap();
    let eight = Encoder::open_with(dir.path(), EncoderWeights::Int8).unwrap();
    assert_eq!(
        exact.base().digest,
        Digest::of_file(&dir.path().join("model.safetensors")).unwrap(),
        "as it always was"
    );
    assert_ne!(exact.base().digest, eight.base().digest);
    let pool = Pool::new(2, Tier::detect());
    let texts = ["", "a", "a b c", "c cb a a b b c a b"];
    for (a, b) in exact.embed(&pool, &texts).unwrap().iter().zip(&eight.embed(&pool, &texts).unwrap()) {
        assert_ne!(a, b);
        assert!(cosine(a, b) > 0.999, "cosine {}", cosine(a, b));
    }
}

#[test]
fn the_folder_chooses_the_pooling() {
    let dir = folder();
    let mean = Encoder::open(dir.path()).unwrap();
    fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    let open = |config: serde_json::Value| {
        fs::write(dir.path().join("1_Pooling/config.json"), config.to_string()).unwrap();
        Encoder::open(dir.path())
    };
    let same = open(serde_json::json!({"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": true})).unwrap();
    assert_eq!(same.base().digest, mean.base().digest);
    let first = open(serde_json::json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false})).unwrap();
    assert_ne!(first.base().digest, mean.base().digest);
    let pool = Pool::new(1, Tier::detect());
    let ids = [TokenId(2), TokenId(4), TokenId(3)];
    assert_ne!(first.embed_window(&pool, &ids).unwrap(), mean.embed_window(&pool, &ids).unwrap());
    // The first hidden row alone, scaled to length 1.
    let mut row = vec![0.0; WIDTH];
    mean.bert.reduce(&pool, &[&ids], &mut row, &|hidden, out| out.copy_from_slice(&hidden[..WIDTH]));
    assert!(cosine(&first.embed_window(&pool, &ids).unwrap(), &mean.finish(&pool, row, 1)) > 0.999_999);
    assert_eq!(open(serde_json::json!({"pooling_mode": "cls"})).unwrap().base().digest, first.base().digest);
    let refused = |config| assert!(matches!(open(config), Err(EncoderError::Pooling { .. })));
    refused(serde_json::json!({"pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": true}));
    refused(serde_json::json!({"pooling_mode": "lasttoken"}));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    /// Whatever arrives and is cancelled when, each request gets the vectors that its texts have alone.
    #[test]
    fn a_queue_gives_what_each_text_has_alone(
        arrivals in proptest::collection::vec((0usize..6, proptest::collection::vec(0usize..60, 1..4), 0u8..8), 1..20),
        int8: bool,
    ) {
        let dir = folder();
        let weights = if int8 { EncoderWeights::Int8 } else { EncoderWeights::F32 };
        let encoder = std::sync::Arc::new(Encoder::open_with(dir.path(), weights).unwrap());
        let pool = Pool::new(2, Tier::detect());
        let mut queue = EncoderQueue::new(std::sync::Arc::clone(&encoder), QueueLimits::default());
        let mut open = BTreeMap::new();
        let answer = |done: Vec<Embedded>, open: &mut BTreeMap<RequestId, Vec<String>>| {
            for Embedded { id, vectors, n_tokens } in done {
                let texts = open.remove(&id).expect("answered once, and not if cancelled");
                assert_eq!(n_tokens, texts.iter().map(|text| encoder.count_tokens(text)).sum::<usize>());
                for (text, vector) in texts.iter().zip(&vectors) {
                    assert_eq!(&encoder.embed(&pool, &[text]).unwrap()[0], vector, "`{text}`");
                }
                assert_eq!(texts.len(), vectors.len());
            }
        };
        for (steps, lens, cancel) in arrivals {
            let texts: Vec<String> = lens.iter().map(|len| "a bc cb b ".repeat(7).chars().take(*len).collect()).collect();
            let id = queue.submit(&texts.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
            open.insert(id, texts);
            if cancel == 0 {
                let victim = *open.keys().next().unwrap();
                queue.cancel(victim);
                open.remove(&victim);
            }
            for _ in 0..steps.saturating_sub(3) {
                answer(queue.step(&pool), &mut open);
            }
        }
        while !queue.is_idle() {
            answer(queue.step(&pool), &mut open);
        }
        assert!(open.is_empty(), "everybody is answered");
        assert_eq!(queue.step(&pool), []);
    }
}

#[test]
fn a_long_document_holds_a_short_text_up_for_one_step() {
    let dir = folder();
    let pool = Pool::new(1, Tier::detect());
    let mut queue = EncoderQueue::new(std::sync::Arc::new(Encoder::open(dir.path()).unwrap()), QueueLimits::default());
    let document = queue.submit(&[&"a b c ".repeat(4 * STEP_TOKENS)]).unwrap();
    assert_eq!(queue.step(&pool), []);
    let short = queue.submit(&["b"]).unwrap();
    let done: Vec<RequestId> = queue.step(&pool).into_iter().map(|embedded| embedded.id).collect();
    assert_eq!(done, [short]);
    let mut steps = 0;
    while queue.step(&pool).iter().all(|embedded| embedded.id != document) {
        steps += 1;
    }
    assert!(steps > 10 && queue.is_idle());
}

#[test]
fn a_queue_says_why_it_takes_nothing_more() {
    let dir = folder();
    let encoder = std::sync::Arc::new(Encoder::open(dir.path()).unwrap());
    let mut queue = EncoderQueue::new(encoder, QueueLimits { max_requests: 2, max_tokens: 18 });
    assert!(matches!(queue.submit(&[]), Err(QueueError::NoTexts)));
    let too_long = " ".repeat(MAX_TEXT_BYTES + 1);
    assert!(matches!(queue.submit(&["", &too_long]), Err(QueueError::Text(EncoderError::TextTooLong { idx: 1, .. }))));
    // Two whole windows: 16 tokens. An empty text has two, which fit; `a` has three.
    let first = queue.submit(&[&"a ".repeat(12)]).unwrap();
    assert!(matches!(queue.submit(&["a"]), Err(QueueError::TooManyTokens { tokens: 3, waiting: 16, limit: 18 })));
    queue.cancel(first);
    queue.submit(&["a"]).unwrap();
    queue.submit(&[""]).unwrap();
    assert!(matches!(queue.submit(&["a"]), Err(QueueError::Full { limit: 2 })));
}

#[test]
fn a_text_has_a_longest_length() {
    let dir = folder();
    let encoder = Encoder::open(dir.path()).unwrap();
    let pool = Pool::new(1, Tier::detect());
    let long = " ".repeat(MAX_TEXT_BYTES);
    assert_eq!(encoder.embed(&pool, &[&long]).unwrap(), encoder.embed(&pool, &[""]).unwrap());
    let error = encoder.embed(&pool, &["a", &format!("{long} ")]).unwrap_err();
    assert!(matches!(error, EncoderError::TextTooLong { idx: 1, .. }), "{error}");
}

#[test]
fn long_texts_are_read_in_windows() {
    let dir = folder();
    let encoder = Encoder::open(dir.path()).unwrap();
    let lens = |text: &str| encoder.windows_of(text).unwrap().iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(lens(""), [2]);
    assert_eq!(lens("a a a a a a"), [8]);
    assert_eq!(lens("a a a a a a a"), [8, 3]);
    assert_eq!(encoder.count_tokens("a a a a a a a"), 11);
    let pool = Pool::new(1, Tier::detect());
    let text = "a b c a b c c";
    let whole = encoder.embed(&pool, &[text]).unwrap().remove(0);
    let first = encoder.embed_window(&pool, &encoder.windows_of(text).unwrap()[0]).unwrap();
    assert_ne!(whole, first, "the second window counts");
    assert!(matches!(encoder.embed_window(&pool, &[]), Err(EncoderError::Window { .. })));
    assert!(matches!(encoder.embed_window(&pool, &[TokenId(4); WINDOW + 1]), Err(EncoderError::Window { .. })));
    assert!(matches!(encoder.embed_window(&pool, &[TokenId(9)]), Err(EncoderError::Window { .. })));
}

#[test]
fn damaged_folders_are_refused_by_name() {
    let says = |dir: &Path, words: &str| {
        let error = Encoder::open(dir).unwrap_err();
        let chain =
            format!("{error}: {}", std::error::Error::source(&error).map_or_else(String::new, ToString::to_string));
        assert!(chain.contains(words), "`{chain}` does not say `{words}`");
    };
    let dir = folder();
    write_weights(dir.path(), |name, values| {
        if name.contains("query.weight") {
            values[7] = f32::NAN;
        }
    });
    says(dir.path(), "query.weight");
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
    says(dir.path(), "model.safetensors");
    let dir = folder();
    let path = dir.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replace("\"intermediate_size\":48", "\"intermediate_size\":64")).unwrap();
    says(dir.path(), "intermediate.dense.weight");
    fs::write(&path, config.replace("\"gelu\"", "\"relu\"")).unwrap();
    says(dir.path(), "hidden_act");
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    fs::write(&path, config).unwrap();
    says(dir.path(), "tokenizer.json");
}
