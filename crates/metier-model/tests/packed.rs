//! Weights that were packed before: the same logits, and nothing in the cache is trusted.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Decoder, PackedCache, PackedOutcome, TokenId, arch::transformer::WeightFormat, decoder::DecoderOptions,
    format::TensorType, tiny,
};
use proptest::prelude::*;
use tempfile::TempDir;

struct Place {
    folder: TempDir,
    model: PathBuf,
}

impl Place {
    fn new(dtype: TensorType) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("tiny.gguf");
        fs::write(&model, tiny::gguf_with(7, dtype)).unwrap();
        Self { folder, model }
    }

    fn cache(&self) -> PackedCache {
        PackedCache { min_source_bytes: 0, ..PackedCache::new(self.folder.path().join("cache/packed"), 1 << 30) }
    }

    fn open(&self, weights: WeightFormat) -> Decoder {
        self.open_with(weights, self.cache())
    }

    fn open_with(&self, weights: WeightFormat, cache: PackedCache) -> Decoder {
        Decoder::open_with(&self.model, DecoderOptions { packed: Some(cache), ..DecoderOptions::new(weights) }).unwrap()
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(self.cache().dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn packed(&self) -> PathBuf {
        let files = self.files();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }
}

fn logits(decoder: &Decoder) -> Vec<Vec<f32>> {
    let tokens: Vec<TokenId> = (5..30).map(TokenId).collect();
    decoder.logits(&Pool::new(2, Tier::detect()), &tokens).unwrap()
}

fn was_written(decoder: &Decoder) -> bool {
    matches!(decoder.packed(), PackedOutcome::Written { .. })
}

#[test]
fn the_second_opening_reads_what_the_first_packed_and_answers_the_same() {
    for dtype in [TensorType::F32, TensorType::F16, TensorType::Q4_0, TensorType::Q4_1, TensorType::Q8_0] {
        for weights in [WeightFormat::AsFile, WeightFormat::Int8] {
            let place = Place::new(dtype);
            let plain = Decoder::open(&place.model, weights).unwrap();
            assert_eq!(*plain.packed(), PackedOutcome::Off);
            let first = place.open(weights);
            let PackedOutcome::Written { bytes } = *first.packed() else { panic!("{:?}", first.packed()) };
            assert_eq!(bytes, fs::metadata(place.packed()).unwrap().len());
            let second = place.open(weights);
            assert_eq!(*second.packed(), PackedOutcome::Read, "{dtype} {weights:?}");
            for decoder in [&first, &second] {
                assert_eq!(logits(decoder), logits(&plain), "{dtype} {weights:?}");
            }
        }
    }
}

#[test]
fn dense_weights_and_small_files_are_not_kept() {
    let place = Place::new(TensorType::F16);
    for weights in [WeightFormat::F16, WeightFormat::F32] {
        assert_eq!(*place.open(weights).packed(), PackedOutcome::Off);
    }
    let cache = PackedCache::new(place.cache().dir, 1 << 30);
    assert_eq!(*place.open_with(WeightFormat::AsFile, cache).packed(), PackedOutcome::Off);
}

#[test]
fn another_model_another_form_and_another_version_are_packed_anew() {
    let place = Place::new(TensorType::Q4_1);
    assert!(was_written(&place.open(WeightFormat::AsFile)));
    assert!(was_written(&place.open(WeightFormat::Int8)));
    let file = place.packed_of("as-file");
    // The file of this model under the name of another: its index says whose it is.
    fs::write(&place.model, tiny::gguf_with(8, TensorType::Q4_1)).unwrap();
    let other = place.open(WeightFormat::AsFile);
    assert!(was_written(&other));
    let own =
        place.files().into_iter().find(|path| *path != file && path.to_string_lossy().contains("as-file")).unwrap();
    fs::copy(&file, &own).unwrap();
    let again = place.open(WeightFormat::AsFile);
    assert!(was_written(&again));
    assert_eq!(logits(&again), logits(&other));
    assert_eq!(*place.open(WeightFormat::AsFile).packed(), PackedOutcome::Read);
}

impl Place {
    fn packed_of(&self, word: &str) -> PathBuf {
        self.files().into_iter().find(|path| path.to_string_lossy().contains(word)).unwrap()
    }
}

#[test]
fn the_oldest_go_where_room_ends_and_what_a_killed_process_left_goes_too() {
    let place = Place::new(TensorType::Q4_1);
    assert!(was_written(&place.open(WeightFormat::AsFile)));
    let first = place.packed();
    fs::write(first.with_extension("4242-0.draft"), "half of it").unwrap();
    let small = PackedCache { limit_bytes: fs::metadata(&first).unwrap().len(), ..place.cache() };
    assert!(was_written(&place.open_with(WeightFormat::Int8, small)));
    assert!(place.packed().to_string_lossy().ends_with("-int8.packed"));
}

#[cfg(unix)]
#[test]
fn nobody_else_reads_the_folder_and_a_folder_that_cannot_be_made_costs_time_alone() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new(TensorType::Q4_1);
    assert!(was_written(&place.open(WeightFormat::AsFile)));
    assert_eq!(fs::metadata(place.cache().dir).unwrap().permissions().mode() & 0o777, 0o700);
    let file_in_the_way = PackedCache { dir: place.model.join("packed"), ..place.cache() };
    let decoder = place.open_with(WeightFormat::AsFile, file_in_the_way);
    assert!(matches!(decoder.packed(), PackedOutcome::NotWritten { .. }), "{:?}", decoder.packed());
}

/// What is damaged is packed anew, and the file with it.
fn check_damage(damage: &dyn Fn(&mut Vec<u8>)) {
    let place = Place::new(TensorType::Q4_1);
    let whole = logits(&place.open(WeightFormat::AsFile));
    let file = place.packed();
    let written = fs::read(&file).unwrap();
    let mut damaged = written.clone();
    damage(&mut damaged);
    replace(&file, &damaged);
    let decoder = place.open(WeightFormat::AsFile);
    assert_eq!(logits(&decoder), whole);
    assert_eq!(was_written(&decoder), damaged != written && !is_only_padding(&written, &damaged));
    assert_eq!(*place.open(WeightFormat::AsFile).packed(), PackedOutcome::Read);
}

/// Bytes between index and parts, and behind parts, mean nothing.
fn is_only_padding(written: &[u8], damaged: &[u8]) -> bool {
    let index = 24 + u64::from_le_bytes(written[8..16].try_into().unwrap()) as usize;
    let differs = |range: std::ops::Range<usize>| written[range.clone()] != damaged[range];
    written.len() == damaged.len() && !differs(0..index) && !differs(index.next_multiple_of(64)..written.len())
}

/// As the cache itself does: a mapped file is never written to.
fn replace(path: &Path, bytes: &[u8]) {
    let draft = path.with_extension("test");
    fs::write(&draft, bytes).unwrap();
    fs::rename(draft, path).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damage_anywhere_is_found(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        check_damage(&|bytes| {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        });
    }

    #[test]
    fn a_file_that_ends_anywhere_is_packed_anew(len in any::<prop::sample::Index>()) {
        check_damage(&|bytes| bytes.truncate(len.index(bytes.len())));
    }
}

#[test]
fn an_index_that_lies_with_a_right_checksum_is_not_believed() {
    let lies: [(&str, &str); 8] = [
        ("\"at\":0", "\"at\":18446744073709551600"),
        ("\"at\":0", "\"at\":63"),
        ("\"at\":0", "\"at\":1000000000"),
        ("\"version\":1", "\"version\":2"),
        ("\"k\":64", "\"k\":96"),
        ("\"k\":64", "\"k\":18446744073709551615"),
        ("\"form\":\"q4_1\"", "\"form\":\"q4_9\""),
        ("\"matrices\":{", "\"matrices\":{\"head\":[],\"x\":["),
    ];
    for (from, to) in lies {
        check_damage(&|bytes| {
            let len = u64::from_le_bytes(bytes[8..16].try_into().unwrap()) as usize;
            let index = String::from_utf8(bytes[24..24 + len].to_vec()).unwrap();
            assert!(index.contains(from), "{index}");
            let index = index.replacen(from, to, 1).into_bytes();
            let mut lying = bytes[..8].to_vec();
            lying.extend((index.len() as u64).to_le_bytes());
            lying.extend(xxhash_rust::xxh3::xxh3_64(&index).to_le_bytes());
            lying.extend(&index);
            lying.resize(lying.len().next_multiple_of(64), 0);
            lying.extend(&bytes[(24 + len).next_multiple_of(64)..]);
            *bytes = lying;
        });
    }
}
