//! Blocks of every type → f32. Formulas and layouts: ggml's `ggml-common.h` and `ggml-quants.c`.
//!
//! Cost: a load-time step and one row a token for the embedding, so it is written plainly.

use half::{bf16, f16};

use super::TensorType;

/// Values of a nibble of IQ4_NL.
pub(crate) const IQ4_NL: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Elements of a sub-block that shares one scale and one min in Q4_K, Q5_K and Q5_1.
pub(crate) const SUB_BLOCK: usize = 32;

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Element `j` of 32 nibbles: the first 16 lie in the low halves.
fn nibble(quants: &[u8], j: usize) -> u8 {
    if j < 16 { quants[j] & 15 } else { quants[j - 16] >> 4 }
}

/// Whole blocks → f32; `false` where the type cannot be computed with. Values that are no numbers pass through.
pub(super) fn dequantise(dtype: TensorType, bytes: &[u8], out: &mut [f32]) -> bool {
    let (len, size) = dtype.block();
    debug_assert_eq!(bytes.len() / size * len, out.len(), "ranges agree with shapes");
    if is_affine(dtype) {
        let mut out = out.chunks_exact_mut(SUB_BLOCK);
        affine_blocks(dtype, bytes, |scale, min, quants| {
            let out = out.next().expect("as many sub-blocks as the range has");
            out.iter_mut().zip(quants).for_each(|(out, q)| *out = scale * f32::from(*q) + min);
        });
        return true;
    }
    let blocks = bytes.chunks_exact(size).zip(out.chunks_exact_mut(len));
    match dtype {
        TensorType::F32 => blocks.for_each(|(b, out)| out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        TensorType::F16 => blocks.for_each(|(b, out)| out[0] = half_at(b, 0)),
        TensorType::Bf16 => blocks.for_each(|(b, out)| out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 | TensorType::Iq4Nl => blocks.for_each(|(b, out)| {
            let scale = half_at(b, 0);
            let quants = signed_block(dtype, b).expect("the four types that it knows");
            out.iter_mut().zip(quants).for_each(|(out, q)| *out = scale * f32::from(q));
        }),
        TensorType::Q2K => blocks.for_each(|(b, out)| q2_k(b, out)),
        TensorType::Q3K => blocks.for_each(|(b, out)| q3_k(b, out)),
        TensorType::Q6K => blocks.for_each(|(b, out)| q6_k(b, out)),
        _ => return false,
    }
    true
}

/// The quants of a block of 32 that has a scale and no min, with the scale in its first two bytes.
pub(crate) fn signed_block(dtype: TensorType, block: &[u8]) -> Option<[i8; SUB_BLOCK]> {
    let mut quants = [0i8; SUB_BLOCK];
    for (j, q) in quants.iter_mut().enumerate() {
        *q = match dtype {
            TensorType::Q4_0 => nibble(&block[2..], j).cast_signed() - 8,
            TensorType::Q5_0 => five_bits(&block[2..6], &block[6..], j).cast_signed() - 16,
            TensorType::Q8_0 => block[2 + j].cast_signed(),
            TensorType::Iq4Nl => IQ4_NL[usize::from(nibble(&block[2..], j))],
            _ => return None,
        };
    }
    Some(quants)
}

/// A nibble with its fifth bit.
fn five_bits(high: &[u8], quants: &[u8], j: usize) -> u8 {
    nibble(quants, j) | (((high[j / 8] >> (j % 8)) & 1) << 4)
}

/// Whether every 32 elements are `scale · q + min` with unsigned quants.
pub(crate) fn is_affine(dtype: TensorType) -> bool {
    matches!(dtype, TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4K | TensorType::Q5K)
}

/// Calls `take(scale, min, quants)` for every 32 elements of an affine type. The K types' scale and min are products of an f16
/// and six bits, exact in f32.
///
/// # Panics
///
/// For types that are not affine.
pub(crate) fn affine_blocks(dtype: TensorType, bytes: &[u8], mut take: impl FnMut(f32, f32, &[u8; SUB_BLOCK])) {
    let mut quants = [0u8; SUB_BLOCK];
    for b in bytes.chunks_exact(dtype.block().1) {
        let (d, m) = (half_at(b, 0), half_at(b, 2));
        match dtype {
            TensorType::Q4_1 => {
                quants.iter_mut().enumerate().for_each(|(j, q)| *q = nibble(&b[4..], j));
                take(d, m, &quants);
            }
            TensorType::Q5_1 => {
                quants.iter_mut().enumerate().for_each(|(j, q)| *q = five_bits(&b[4..8], &b[8..], j));
                take(d, m, &quants);
            }
            TensorType::Q4K | TensorType::Q5K => {
                let five = dtype == TensorType::Q5K;
                let low = if five { &b[48..] } else { &b[16..] };
                for sub in 0..8 {
                    let (scale, min) = six_bits(&b[4..16], sub);
                    for (j, q) in quants.iter_mut().enumerate() {
                        let byte = low[sub / 2 * 32 + j];
                        *q = if sub % 2 == 0 { byte & 15 } else { byte >> 4 };
                        if five {
                            *q |= ((b[16 + j] >> sub) & 1) << 4;
                        }
                    }
                    take(d * f32::from(scale), -(m * f32::from(min)), &quants);
                }
            }
            other => panic!("{other} is not affine"),
        }
    }
}

/// Scale and min of sub-block `j` of 8, packed in 12 bytes.
fn six_bits(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let (low, scale_high, min_high) = (packed[j + 4], packed[j - 4] >> 6, packed[j] >> 6);
        ((low & 15) | (scale_high << 4), (low >> 4) | (min_high << 4))
    }
}

/// 16 bytes of scales and mins (a nibble each, for 16 elements), 64 bytes of 2 bits, f16 scale, f16 min.
fn q2_k(b: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(b, 80), half_at(b, 82));
    for (part, out) in out.chunks_exact_mut(16).enumerate() {
        let (scale, min) = (d * f32::from(b[part] & 15), m * f32::from(b[part] >> 4));
        let (from, shift) = (16 + part / 8 * 32 + part % 2 * 16, part % 8 / 2 * 2);
        for (j, out) in out.iter_mut().enumerate() {
            *out = scale * f32::from((b[from + j] >> shift) & 3) - min;
        }
    }
}

/// 32 bytes of third bits, 64 bytes of 2 bits, 12 bytes of scales (6 bits for 16 elements), f16 scale.
fn q3_k(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 108);
    for (part, out) in out.chunks_exact_mut(16).enumerate() {
        let low = if part < 8 { b[96 + part] & 15 } else { b[96 + part - 8] >> 4 };
        let high = (b[104 + part % 4] >> (part / 4 * 2)) & 3;
        let scale = d * f32::from((low | (high << 4)).cast_signed() - 32);
        let (at, shift, bit) = (part % 2 * 16, part % 8 / 2 * 2, part / 2);
        for (j, out) in out.iter_mut().enumerate() {
            let two = ((b[32 + part / 8 * 32 + at + j] >> shift) & 3).cast_signed();
            let missing = if (b[at + j] >> bit) & 1 == 1 { 0 } else { 4 };
            *out = scale * f32::from(two - missing);
        }
    }
}

/// 128 bytes of 4 bits, 64 bytes of 2 bits, 16 × i8 scales (for 16 elements), f16 scale.
fn q6_k(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 208);
    for (part, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(b[192 + part].cast_signed());
        let (half, quarter, at) = (part / 8, part % 8 / 2, part % 2 * 16);
        for (j, out) in out.iter_mut().enumerate() {
            let byte = b[half * 64 + quarter % 2 * 32 + at + j];
            let low = if quarter < 2 { byte & 15 } else { byte >> 4 };
            let high = (b[128 + half * 32 + at + j] >> (quarter * 2)) & 3;
            *out = scale * f32::from((low | (high << 4)).cast_signed() - 32);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Two rows of 256 elements of each type, by the `gguf` package: `tests/goldens/make_formats.py`.
    const GOLDEN: &[u8] = include_bytes!("../../tests/goldens/formats.bin");

    #[test]
    fn every_type_means_what_the_reference_says() {
        use TensorType::*;
        let mut rest = GOLDEN;
        for dtype in [F32, F16, Bf16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, Iq4Nl] {
            let (bytes, after) = rest.split_at(dtype.bytes_of(512).unwrap());
            let (expected, after) = after.split_at(512 * 4);
            rest = after;
            let mut out = [f32::NAN; 512];
            assert!(dequantise(dtype, bytes, &mut out));
            for (i, expected) in expected.chunks_exact(4).enumerate() {
                let expected = f32::from_le_bytes(expected.try_into().unwrap());
                assert_eq!(out[i], expected, "{dtype}[{i}]");
            }
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn damaged_scales_pass_as_what_they_are() {
        let mut block = vec![0x11; 144];
        block[..2].copy_from_slice(&f16::NAN.to_le_bytes());
        let mut out = [0.0; 256];
        assert!(dequantise(TensorType::Q4K, &block, &mut out));
        assert!(out.iter().all(|x| x.is_nan()));
    }
}
