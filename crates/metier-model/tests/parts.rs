//! A GGUF file that was split into parts is one model again, or is refused by the name of what is wrong.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fs, path::PathBuf};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Decoder, TokenId,
    arch::transformer::WeightFormat,
    format::{Gguf, gguf::Value, gguf_write::GgufWriter},
    tiny,
};
use tempfile::TempDir;

const PARTS: usize = 3;

/// A model in three parts.
struct Model(TempDir);

/// What a part says of itself, to be lied about.
struct Claims {
    no: usize,
    count: usize,
    tensors: usize,
}

impl Model {
    fn split(seed: u64) -> Self {
        let model = Self(TempDir::new().unwrap());
        for no in 0..PARTS {
            fs::write(model.path(no), part(seed, no, |_| ())).unwrap();
        }
        model
    }

    fn path(&self, no: usize) -> PathBuf {
        self.0.path().join(format!("tiny-{:05}-of-{PARTS:05}.gguf", no + 1))
    }

    fn replaced(self, no: usize, bytes: &[u8]) -> Self {
        fs::write(self.path(no), bytes).unwrap();
        self
    }

    #[track_caller]
    fn is_refused(&self, message: &str) {
        let error = Decoder::open(&self.path(0), WeightFormat::F32).unwrap_err().to_string();
        assert!(error.contains(message), "`{error}` does not say `{message}`");
    }
}

/// Part `no` of the tiny model: every third tensor, the metadata in the first.
fn part(seed: u64, no: usize, lie: impl FnOnce(&mut Claims)) -> Vec<u8> {
    let bytes = tiny::gguf(seed);
    let gguf = Gguf::parse(&bytes).unwrap();
    let mut claims = Claims { no, count: PARTS, tensors: gguf.tensors().len() };
    lie(&mut claims);
    let int = |n: usize| Value::Int(n as i64);
    let mut writer = GgufWriter::new()
        .metadata("split.no", int(claims.no))
        .metadata("split.count", int(claims.count))
        .metadata("split.tensors.count", int(claims.tensors));
    if no == 0 {
        for (key, value) in gguf.metadata() {
            writer = writer.metadata(key, value.clone());
        }
    }
    for (name, info) in gguf.tensors().iter().skip(no).step_by(PARTS) {
        let shape: Vec<u64> = info.shape.iter().map(|d| *d as u64).collect();
        writer = writer.tensor(name, &shape, info.dtype, bytes[info.range.clone()].to_vec());
    }
    writer.finish()
}

#[test]
fn parts_are_one_model() {
    let model = Model::split(1);
    let whole = Decoder::from_bytes(tiny::gguf(1), "tiny", WeightFormat::AsFile).unwrap();
    let parts = Decoder::open(&model.path(0), WeightFormat::AsFile).unwrap();
    let (pool, ids): (_, Vec<_>) = (Pool::new(1, Tier::detect()), (0..9).map(TokenId).collect());
    assert_eq!(parts.logits(&pool, &ids).unwrap(), whole.logits(&pool, &ids).unwrap());
    assert_eq!(parts.base().name, "tiny");
    // Another last part is another base.
    let other = Model::split(1).replaced(2, &part(2, 2, |_| ()));
    assert_ne!(Decoder::open(&other.path(0), WeightFormat::AsFile).unwrap().base().digest, parts.base().digest);
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let model = Model::split(1);
    fs::remove_file(model.path(1)).unwrap();
    model.is_refused("tiny-00002-of-00003.gguf` is missing: it is part 2 of 3");
    let swapped = Model::split(1).replaced(1, &part(1, 2, |_| ())).replaced(2, &part(1, 1, |_| ()));
    swapped.is_refused("is part 3 of 3 by its content, not 2");
    Model::split(1).replaced(1, &tiny::gguf(1)).is_refused("is no part of the same file as the first of 3");
    let of_four = part(1, 1, |claims| claims.count = 4);
    Model::split(1).replaced(1, &of_four).is_refused("is no part of the same file as the first of 3");
    let of_another = part(1, 1, |claims| claims.tensors += 1);
    Model::split(1).replaced(1, &of_another).is_refused("is no part of the same file as the first of 3");
    // The same tensors twice, under the right number.
    let twice = part(1, 0, |claims| claims.no = 1);
    Model::split(1).replaced(1, &twice).is_refused("tiny-00001-of-00003.gguf` too");
    let mut fewer = Model::split(1);
    for no in 0..PARTS {
        fewer = fewer.replaced(no, &part(1, no, |claims| claims.tensors = 99));
    }
    fewer.is_refused("99 are announced");
}

#[test]
fn the_first_part_is_the_one_to_open() {
    let model = Model::split(1);
    let error = Decoder::open(&model.path(1), WeightFormat::F32).unwrap_err().to_string();
    assert!(error.contains("open the first, `tiny-00001-of-00003.gguf`"), "{error}");
    let renamed = model.0.path().join("tiny.gguf");
    fs::rename(model.path(0), &renamed).unwrap();
    let error = Decoder::open(&renamed, WeightFormat::F32).unwrap_err().to_string();
    assert!(error.contains("its name must end with `-00001-of-00003.gguf`"), "{error}");
    let error = Decoder::from_bytes(part(1, 0, |_| ()), "tiny", WeightFormat::F32).unwrap_err().to_string();
    assert!(error.contains("read from files only"), "{error}");
    for lie in [0, 1 << 20] {
        let bytes = part(1, 0, |claims| claims.count = lie);
        Model::split(1).replaced(0, &bytes).is_refused("parts");
    }
    let bytes = part(1, 0, |claims| claims.no = 3);
    Model::split(1).replaced(0, &bytes).is_refused("`split.no` does not say which");
}
