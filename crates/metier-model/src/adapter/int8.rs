//! An adapter's weights file in 8 bits, and back.
//!
//! ```text
//! ….lora_A.weight          I8  (rank, k)
//! ….lora_A.weight.scales   F32 (rank, ⌈k / 128⌉)      w = q · scale, a scale for each 128 inputs
//! ….lora_B.weight          I8  (n, rank)
//! ….lora_B.weight.scales   F16 (n, 1)                 a scale for each output
//! ```
//!
//! These are the numbers that [`LoraFormat::Int8`](super::LoraFormat) keeps in memory: what is rounded here is not rounded again when it is loaded.
//! Everything else is PEFT's. PEFT itself does not read such a file: [`to_halves`] gives it one.

use half::f16;

use crate::format::{self, FormatError, Safetensors, Stored, Tensor, TensorType};

/// Inputs of A that share a scale, as in memory.
const GROUP: usize = 128;
/// Behind the name of the tensor that they belong to.
const SCALES: &str = ".scales";
const I8: &str = "I8";

/// The same deltas in 8 bits; a file that is so already stays.
///
/// # Errors
///
/// Where the file cannot be read or its numbers are not finite.
pub fn to_int8(weights: &[u8]) -> Result<Vec<u8>, FormatError> {
    let file = Safetensors::parse(weights)?;
    if file.tensors().values().any(|info| is_i8(info.dtype)) {
        return Ok(weights.to_vec());
    }
    let mut tensors = Vec::new();
    for (name, info) in file.tensors() {
        let wrong = |problem: &str| FormatError::Tensor { tensor: name.clone(), problem: problem.to_owned() };
        if name.ends_with(SCALES) {
            return Err(wrong("its name is that of scales"));
        }
        let values = read(&file, weights, name).expect("its name is of this file")?;
        let cols = info.shape.last().copied().unwrap_or(1).max(1);
        let is_b = name.contains(".lora_B.");
        let (mut quants, mut scales) = (Vec::with_capacity(values.len()), Vec::new());
        for row in values.chunks(cols) {
            for group in row.chunks(if is_b { cols } else { GROUP }) {
                let scale = group.iter().fold(0.0f32, |most, w| most.max(w.abs())) / 127.0;
                let scale = if is_b { f16::from_f32(scale).to_f32() } else { scale };
                if !scale.is_finite() || group.iter().any(|w| w.is_nan()) {
                    return Err(wrong("it holds a value that is no finite 16-bit float"));
                }
                let quant = |w: &f32| (w / scale).round_ties_even().clamp(-127.0, 127.0) as i8;
                quants.extend(group.iter().map(|w| if scale > 0.0 { quant(w) } else { 0 }));
                scales.push(scale);
            }
        }
        let rows = values.len() / cols;
        let groups = scales.len() / rows.max(1);
        tensors.push((name.clone(), info.shape.clone(), Stored::I8(quants)));
        let scales = if is_b { Stored::F16(scales) } else { Stored::F32(scales) };
        tensors.push((format!("{name}{SCALES}"), vec![rows, groups], scales));
    }
    Ok(format::write_stored(tensors))
}

/// The same deltas as PEFT's file of IEEE halves: of one in 8 bits the numbers that are served; others stay.
///
/// # Errors
///
/// Where the file cannot be read.
pub fn to_halves(weights: &[u8]) -> Result<Vec<u8>, FormatError> {
    let file = Safetensors::parse(weights)?;
    if !file.tensors().values().any(|info| is_i8(info.dtype)) {
        return Ok(weights.to_vec());
    }
    let mut all = Vec::new();
    for (name, info) in file.tensors().iter().filter(|(name, _)| !is_scales(&file, name)) {
        all.push((name, info, read(&file, weights, name).expect("its name is of this file")?));
    }
    let named = all.iter().map(|(name, info, values)| (name.as_str(), info.shape.as_slice(), values.as_slice()));
    Ok(format::write_f16(named))
}

/// A tensor's numbers, whichever of the two it is kept in; `None` where there is none of that name.
pub(crate) fn read(file: &Safetensors, weights: &[u8], name: &str) -> Option<Result<Vec<f32>, FormatError>> {
    let tensor = file.tensor(weights, name)?;
    if !is_i8(tensor.dtype) {
        return Some(tensor.to_f32());
    }
    Some(scaled(&tensor, file.tensor(weights, &format!("{name}{SCALES}"))))
}

fn scaled(tensor: &Tensor<'_>, scales: Option<Tensor<'_>>) -> Result<Vec<f32>, FormatError> {
    let wrong = |problem: &str| FormatError::Tensor { tensor: tensor.name.to_owned(), problem: problem.to_owned() };
    let is_number = |scales: &Tensor<'_>| matches!(scales.dtype, TensorType::F32 | TensorType::F16);
    let scales = scales.filter(is_number).ok_or_else(|| wrong("it has no scales"))?;
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let &[n, groups] = scales.shape else { return Err(wrong("its scales are no table")) };
    let group = if groups == 1 { cols } else { GROUP };
    if n != rows || rows == 0 || cols == 0 || groups != cols.div_ceil(group) {
        return Err(wrong("its scales do not fit its shape"));
    }
    let scales = scales.to_f32()?;
    let rows = tensor.bytes.chunks_exact(cols).zip(scales.chunks_exact(groups));
    let of_group = |(quants, scale): (&[u8], &f32)| {
        let scale = *scale;
        quants.iter().map(|q| f32::from(*q as i8) * scale).collect::<Vec<f32>>()
    };
    Ok(rows.flat_map(|(row, scales)| row.chunks(group).zip(scales).flat_map(of_group)).collect())
}

/// Whether a tensor is the scales of another, and no delta itself.
pub(super) fn is_scales(file: &Safetensors, name: &str) -> bool {
    let of = name.strip_suffix(SCALES).and_then(|of| file.tensors().get(of));
    of.is_some_and(|info| is_i8(info.dtype))
}

fn is_i8(dtype: TensorType) -> bool {
    matches!(dtype, TensorType::Opaque { name: I8, .. })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    fn values(n: usize, salt: f32) -> Vec<f32> {
        (0..n).map(|i| ((i as f32 + salt) * 0.37).sin() * (1.0 + (i % 7) as f32)).collect()
    }

    fn halves(k: usize, n: usize, rank: usize) -> Vec<u8> {
        let (a, b) = (values(rank * k, 0.1), values(n * rank, 0.7));
        let all = [("m.lora_A.weight", [rank, k], &a), ("m.lora_B.weight", [n, rank], &b)];
        format::write_f16(all.iter().map(|(name, shape, values)| (*name, shape.as_slice(), values.as_slice())))
    }

    #[test]
    fn eight_bits_are_near_and_stay_what_they_are() {
        for (k, n, rank) in [(576, 1536, 16), (300, 48, 4), (128, 16, 1), (5, 3, 130)] {
            let file = halves(k, n, rank);
            let small = to_int8(&file).unwrap();
            assert!(k < 500 || small.len() * 100 < file.len() * 56, "{} of {}", small.len(), file.len());
            assert_eq!(to_int8(&small).unwrap(), small, "what is rounded already stays");
            let (before, after) = (Safetensors::parse(&file).unwrap(), Safetensors::parse(&small).unwrap());
            for (name, rows) in [("m.lora_A.weight", rank), ("m.lora_B.weight", n)] {
                let exact = before.tensor(&file, name).unwrap().to_f32().unwrap();
                let near = read(&after, &small, name).unwrap().unwrap();
                let most = exact.iter().fold(0.0f32, |most, w| most.max(w.abs()));
                let far = exact.iter().zip(&near).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                // Half a step of the largest scale, and what a half cuts off it.
                assert!(far <= most / 127.0 * 0.57, "{name} of {rows} rows: {far} of {most}");
                assert!(is_scales(&after, &format!("{name}.scales")) && !is_scales(&after, name));
            }
            let back = to_halves(&small).unwrap();
            let names: Vec<String> = Safetensors::parse(&back).unwrap().tensors().keys().cloned().collect();
            assert_eq!(names, ["m.lora_A.weight", "m.lora_B.weight"]);
            assert_eq!(to_halves(&file).unwrap(), file, "what PEFT reads stays");
        }
    }

    #[test]
    fn scales_that_do_not_fit_are_refused() {
        let check = |shape: [usize; 2], with: Option<(Vec<usize>, Stored)>, message: &str| {
            let mut all = vec![("w".to_owned(), shape.to_vec(), Stored::I8(vec![1; shape[0] * shape[1]]))];
            all.extend(with.map(|(shape, scales)| ("w.scales".to_owned(), shape, scales)));
            let bytes = format::write_stored(all);
            let error = read(&Safetensors::parse(&bytes).unwrap(), &bytes, "w").unwrap().unwrap_err().to_string();
            assert!(error.contains(message), "`{error}` does not contain `{message}`");
        };
        check([2, 4], None, "no scales");
        check([2, 4], Some((vec![2, 1], Stored::I8(vec![1, 1]))), "no scales");
        check([2, 4], Some((vec![2], Stored::F32(vec![1.0; 2]))), "no table");
        check([2, 4], Some((vec![1, 1], Stored::F32(vec![1.0]))), "do not fit");
        check([2, 300], Some((vec![2, 2], Stored::F32(vec![1.0; 4]))), "do not fit");
        for (name, value) in [("w", f32::NAN), ("w", f32::INFINITY), ("w.scales", 1.0)] {
            assert!(to_int8(&format::write_f32([(name, &[1usize, 1][..], &[value][..])].into_iter())).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in Just(to_int8(&halves(40, 8, 2)).unwrap()), at in 0usize..400, byte: u8) {
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = to_halves(&bytes);
            let _ = to_int8(&bytes);
        }
    }
}
