//! What does a head read of a decoder? The row behind a text's last token, at unit length.
//!
//! ```text
//! text → ids, at most 512 of them → the token that ends an answer → network under adapter, its kept layers → last row / its length
//! ```
//!
//! No instruction and no template: a head knows its task, and every token costs time. A text that is longer is read from its beginning.

use crate::{
    Decoder,
    tokenizer::{TokenId, TokenizerError},
};

/// Tokens of a text that are read, at most.
pub const MAX_TOKENS: usize = 512;

/// The ids that are read of a text; at least one.
///
/// # Errors
///
/// Where the tokenizer refuses.
pub fn prompt(decoder: &Decoder, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
    let mut ids = decoder.tokenizer().encode(text)?;
    ids.truncate(MAX_TOKENS.min(decoder.context_len()).saturating_sub(1));
    // One and the same token behind every text: what it gathers is what the head was trained on.
    ids.push(decoder.ends().first().copied().unwrap_or(TokenId(0)));
    Ok(ids)
}

/// A row at unit length; zeros stay zeros.
pub fn unit(row: &[f32]) -> Vec<f32> {
    let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let scale = if norm > 0.0 { (1.0 / norm) as f32 } else { 0.0 };
    row.iter().map(|x| x * scale).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::{engine::WeightFormat, tiny};

    #[test]
    fn a_text_ends_with_one_token_and_is_never_longer_than_the_context() {
        let decoder = Decoder::from_bytes(tiny::gguf(7), "tiny", WeightFormat::AsFile).unwrap();
        let end = decoder.ends()[0];
        for text in ["", "hello", &"long ".repeat(1_000)] {
            let ids = prompt(&decoder, text).unwrap();
            assert!(ids.last() == Some(&end) && ids.len() <= decoder.context_len(), "{}", ids.len());
            let whole = decoder.tokenizer().encode(text).unwrap();
            assert!(whole.starts_with(&ids[..ids.len() - 1]));
        }
    }

    #[test]
    fn unit_rows_have_unit_length() {
        assert_eq!(unit(&[3.0, -4.0]), [0.6, -0.8]);
        assert_eq!(unit(&[0.0, 0.0]), [0.0, 0.0]);
    }
}
