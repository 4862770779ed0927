//! A file of the cache of packed weights: an index after nothing, `====`, then the parts. Its checksums are made right, so that only what the
//! index says stands between it and the kernels. What opens reads three tokens: no place or shape that passes may panic later.
#![no_main]

use std::{fs, path::PathBuf, sync::OnceLock};

use libfuzzer_sys::fuzz_target;
use metier_kernels::{
    Pool, Tier,
    quant::{BlockFormat, QuantMatrix},
};
use metier_model::{
    Decoder, PackedCache, PackedOutcome, TokenId, arch::transformer::WeightFormat, decoder::DecoderOptions, tiny,
};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

struct Place {
    model: PathBuf,
    cache: PackedCache,
    /// What the cache calls the model's file.
    packed: PathBuf,
    /// What it holds when it is written by the cache itself.
    whole: Vec<u8>,
    pool: Pool,
}

fn place() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    PLACE.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("metier-fuzz-packed-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let model = folder.join("tiny.gguf");
        fs::write(&model, tiny::gguf(7)).unwrap();
        let cache = PackedCache { min_source_bytes: 0, ..PackedCache::new(folder.join("packed"), 1 << 30) };
        let options = DecoderOptions { packed: Some(cache.clone()), ..DecoderOptions::new(WeightFormat::AsFile) };
        Decoder::open_with(&model, options).unwrap();
        let packed = fs::read_dir(&cache.dir).unwrap().next().unwrap().unwrap().path();
        let whole = fs::read(&packed).unwrap();
        Place { model, cache, packed, whole, pool: Pool::new(1, Tier::detect()) }
    })
}

/// The file with right checksums.
fn file(index: &[u8], data: &[u8]) -> Vec<u8> {
    let mut index: Value = serde_json::from_slice(index).unwrap_or_default();
    let parts = index["matrices"].as_object_mut().into_iter().flat_map(|matrices| matrices.values_mut());
    for part in parts.filter_map(Value::as_array_mut).flatten().filter_map(Value::as_object_mut) {
        let number = |key: &str| part.get(key).and_then(Value::as_u64).map(|n| n as usize);
        let form = match part.get("form").and_then(Value::as_str) {
            Some("q4_0") => BlockFormat::Q4_0,
            Some("q4_1") => BlockFormat::Q4_1,
            Some("u8_min") => BlockFormat::U8Min,
            _ => BlockFormat::Q8_0,
        };
        let bytes = (|| data.get(number("at")?..)?.get(..QuantMatrix::packed_len(form, number("n")?, number("k")?)?))();
        if let Some(bytes) = bytes {
            part.insert("xxh3".into(), xxh3_64(bytes).into());
        }
    }
    let index = index.to_string().into_bytes();
    let mut file = b"metierpk".to_vec();
    file.extend((index.len() as u64).to_le_bytes());
    file.extend(xxh3_64(&index).to_le_bytes());
    file.extend(index);
    file.resize(file.len().next_multiple_of(64), 0);
    file.extend(data);
    file
}

fuzz_target!(|bytes: &[u8]| {
    let place = place();
    let cut = bytes.windows(6).position(|window| window == b"\n====\n");
    let file = match cut {
        Some(cut) => file(&bytes[..cut], &bytes[cut + 6..]),
        // An index over the parts that the cache itself wrote.
        None => {
            let index = 24 + u64::from_le_bytes(place.whole[8..16].try_into().unwrap()) as usize;
            file(bytes, &place.whole[index.next_multiple_of(64)..])
        }
    };
    let draft = place.packed.with_extension("fuzz");
    fs::write(&draft, file).unwrap();
    fs::rename(draft, &place.packed).unwrap();
    let options = DecoderOptions { packed: Some(place.cache.clone()), ..DecoderOptions::new(WeightFormat::AsFile) };
    let decoder = Decoder::open_with(&place.model, options).unwrap();
    assert!(!matches!(decoder.packed(), PackedOutcome::Off));
    let last = decoder.network().config().vocabulary as u32 - 1;
    decoder.logits(&place.pool, &[TokenId(0), TokenId(last), TokenId(1)]).unwrap();
});
