//! Which tokenizer does a decoder's `tokenizer.json` describe? A BPE, byte-level or over pieces with `▁` for a space.
//!
//! The file's own rules cut and merge; its added tokens are sorted first. A token that only the template may write (see
//! [`ControlWords`]) is taken out of the rules, so that no text from outside becomes it. The others, such as Gemma's runs of spaces
//! and HTML tags, stay.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::{
    MAX_VOCABULARY, Rules, Special, TokenId, Tokenizer, TokenizerError, byte_of_char, complete, leftmost_longest,
    pieces, read,
};

/// What a decoder's folder says about its tokens beside `tokenizer.json`.
pub(crate) struct ControlWords<'a> {
    /// The token that a text begins with.
    pub(crate) begin: Option<&'a str>,
    /// Whether every prompt begins with it; `None`: as the post-processor says.
    pub(crate) adds_begin: Option<bool>,
    /// Control tokens by name.
    pub(crate) named: Vec<&'a str>,
    /// What the chat template writes itself are control tokens, whatever `tokenizer.json` says of them.
    pub(crate) template: &'a str,
}

/// What ids stand for.
#[derive(Clone, Copy, PartialEq)]
enum Alphabet {
    /// One character a byte.
    Bytes,
    /// Text with `▁` for a space, and `<0x41>` for bytes.
    Pieces,
}

/// An added token.
struct Added {
    text: String,
    id: TokenId,
    special: bool,
    strips_before: bool,
    strips_after: bool,
}

impl Tokenizer {
    /// The tokenizer of a decoder, from its `tokenizer.json`.
    pub(crate) fn for_decoder(text: &str, control: &ControlWords<'_>) -> Result<Self, TokenizerError> {
        let mut document: Json = serde_json::from_str(text).map_err(|e| TokenizerError::Json(e.to_string()))?;
        let alphabet = alphabet(&document)?;
        let added = added_tokens(&document)?;
        let (taken, kept): (Vec<_>, Vec<_>) = added.into_iter().partition(|token| is_control(token, alphabet, control));
        let ids = all_ids(&document, taken.iter().chain(&kept))?;
        let vocabulary = ids.values().max().map_or(0, |id| id.0 as usize + 1);
        if let Some(list) = document.get_mut("added_tokens").and_then(Json::as_array_mut) {
            let is_kept = |token: &Json| kept.iter().any(|kept| token["content"].as_str() == Some(&kept.text));
            list.retain(is_kept);
        }
        let begins = control.adds_begin.unwrap_or_else(|| first_special(&document).is_some());
        let begin = control.begin.or_else(|| first_special(&document));
        let begin = begin.filter(|_| begins).and_then(|begin| ids.get(begin)).copied();
        document["post_processor"] = Json::Null;
        document["truncation"] = Json::Null;
        document["padding"] = Json::Null;
        let bytes = bytes_of_ids(&ids, vocabulary, alphabet, &taken, &kept)?;
        let strips_space = alphabet == Alphabet::Pieces && any(&document["decoder"], &takes_space_off);
        if let (Alphabet::Bytes, Some(words)) = (alphabet, document["model"]["vocab"].as_object_mut()) {
            complete(words, vocabulary);
        }
        let first = read(&document.to_string())?;
        // A space is put before the text, but not before what follows a control token.
        let later = if any(&document["pre_tokenizer"], &|part| part["prepend_scheme"] == "first") {
            set_everywhere(&mut document["pre_tokenizer"], "prepend_scheme", "first", "never");
            Some(read(&document.to_string())?)
        } else {
            None
        };
        let specials: Vec<Special> = taken
            .into_iter()
            .filter(|token| !token.text.is_empty())
            .map(|Added { text, id, strips_before, strips_after, .. }| Special {
                text,
                id,
                strips_before,
                strips_after,
            })
            .collect();
        let texts: Vec<&str> = specials.iter().map(|special| special.text.as_str()).collect();
        let finder = if texts.is_empty() { None } else { Some(leftmost_longest(&texts)?) };
        let rules = Rules::Library { first, later };
        let tokenizer = Self { rules, specials, finder, bytes, ids, vocabulary, begin, strips_space };
        tokenizer.check_forgery(document["model"]["unk_token"].as_str())?;
        Ok(tokenizer)
    }

    /// A control token that the rules make of its own text would be a hole in every prompt. `unknown`: what stands for characters
    /// that are no tokens, which any text may hold.
    fn check_forgery(&self, unknown: Option<&str>) -> Result<(), TokenizerError> {
        for special in self.specials.iter().filter(|special| Some(special.text.as_str()) != unknown) {
            if self.encode(&special.text)?.contains(&special.id) {
                let problem = format!("its rules make the control token `{}` of plain text", special.text);
                return Err(TokenizerError::Vocabulary(problem));
            }
        }
        Ok(())
    }
}

/// Whether a condition holds for a part of the pipeline, however deep in sequences.
fn any(part: &Json, condition: &dyn Fn(&Json) -> bool) -> bool {
    let nested = ["pretokenizers", "normalizers", "decoders", "processors"];
    let below = nested.iter().filter_map(|key| part.get(key)?.as_array()).flatten();
    condition(part) || below.into_iter().any(|part| any(part, condition))
}

fn set_everywhere(part: &mut Json, key: &str, from: &str, to: &str) {
    if part[key] == from {
        part[key] = json!(to);
    }
    if let Some(parts) = part.get_mut("pretokenizers").and_then(Json::as_array_mut) {
        parts.iter_mut().for_each(|part| set_everywhere(part, key, from, to));
    }
}

fn alphabet(document: &Json) -> Result<Alphabet, TokenizerError> {
    let model = &document["model"];
    if model.get("type").is_some_and(|kind| kind != "BPE") || !model["merges"].is_array() {
        let kind = model["type"].as_str().unwrap_or("without a model");
        return Err(TokenizerError::Unsupported(format!("tokenizer.json/{kind}")));
    }
    let byte_level = |part: &Json| part["type"] == "ByteLevel";
    if any(&document["decoder"], &byte_level) || any(&document["pre_tokenizer"], &byte_level) {
        return Ok(Alphabet::Bytes);
    }
    let with_spaces = |part: &Json| {
        part["type"] == "Metaspace" || (part["type"] == "Replace" && part["pattern"]["String"] == pieces::SPACE)
    };
    if any(&document["decoder"], &with_spaces) {
        return Ok(Alphabet::Pieces);
    }
    Err(TokenizerError::Unsupported("tokenizer.json/BPE that is neither byte-level nor of pieces".to_owned()))
}

/// Whether this part of a decoder takes the space off that was put before the text.
fn takes_space_off(part: &Json) -> bool {
    let strip = part["type"] == "Strip" && part["content"] == " " && part["start"] == 1;
    let old_style = part.get("add_prefix_space").and_then(Json::as_bool).unwrap_or(true);
    let scheme = part.get("prepend_scheme").and_then(Json::as_str);
    strip || (part["type"] == "Metaspace" && scheme.map_or(old_style, |scheme| scheme != "never"))
}

fn added_tokens(document: &Json) -> Result<Vec<Added>, TokenizerError> {
    let list = document.get("added_tokens").and_then(Json::as_array);
    let flag = |token: &Json, key: &str| token.get(key).and_then(Json::as_bool).unwrap_or(false);
    list.into_iter()
        .flatten()
        .map(|token| {
            let text = token["content"].as_str();
            let text = text.ok_or_else(|| TokenizerError::Vocabulary("an added token has no text".to_owned()))?;
            Ok(Added {
                text: text.to_owned(),
                id: usable_id(text, &token["id"])?,
                special: flag(token, "special"),
                strips_before: flag(token, "lstrip"),
                strips_after: flag(token, "rstrip"),
            })
        })
        .collect()
}

fn usable_id(word: &str, id: &Json) -> Result<TokenId, TokenizerError> {
    let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < MAX_VOCABULARY);
    id.map(TokenId).ok_or_else(|| TokenizerError::Vocabulary(format!("token `{word}` has no usable id")))
}

fn is_control(token: &Added, alphabet: Alphabet, control: &ControlWords<'_>) -> bool {
    let text = token.text.as_str();
    // What users added to a byte-level BPE are marks such as `<tool_call>`.
    let written = || text.len() > 2 && !text.contains(char::is_whitespace) && control.template.contains(text);
    token.special || alphabet == Alphabet::Bytes || control.named.contains(&text) || written()
}

fn all_ids<'a>(
    document: &Json,
    added: impl Iterator<Item = &'a Added>,
) -> Result<BTreeMap<String, TokenId>, TokenizerError> {
    let mut ids = BTreeMap::new();
    let words = document.pointer("/model/vocab").and_then(Json::as_object);
    for (word, id) in words.into_iter().flatten() {
        ids.insert(word.clone(), usable_id(word, id)?);
    }
    for token in added {
        match ids.insert(token.text.clone(), token.id) {
            Some(other) if other != token.id => {
                let problem = format!("token `{}` has the ids {other} and {}", token.text, token.id);
                return Err(TokenizerError::Vocabulary(problem));
            }
            _ => {}
        }
    }
    let mut words: Vec<Option<&str>> = Vec::new();
    for (word, id) in &ids {
        let at = id.0 as usize;
        words.resize(words.len().max(at + 1), None);
        if let Some(other) = words[at].replace(word) {
            return Err(TokenizerError::Vocabulary(format!("id {id} is of both `{other}` and `{word}`")));
        }
    }
    if words.is_empty() { Err(TokenizerError::Vocabulary("it is empty".to_owned())) } else { Ok(ids) }
}

/// The bytes of every id; none for control tokens and for ids without a token.
fn bytes_of_ids(
    ids: &BTreeMap<String, TokenId>,
    vocabulary: usize,
    alphabet: Alphabet,
    control: &[Added],
    kept: &[Added],
) -> Result<Vec<Box<[u8]>>, TokenizerError> {
    let byte_of = byte_of_char();
    let mut bytes = vec![Box::default(); vocabulary];
    for (word, id) in ids {
        bytes[id.0 as usize] = match alphabet {
            Alphabet::Bytes => {
                let decoded: Option<Vec<u8>> = word.chars().map(|c| byte_of.get(&c).copied()).collect();
                // Added tokens are written as they are read.
                decoded.unwrap_or_else(|| word.clone().into_bytes()).into_boxed_slice()
            }
            Alphabet::Pieces => match pieces::byte_of(word) {
                Some(byte) => Box::new([byte]),
                None => word.replace(pieces::SPACE, " ").into_bytes().into_boxed_slice(),
            },
        };
    }
    for token in kept {
        bytes[token.id.0 as usize] = token.text.replace(pieces::SPACE, " ").into_bytes().into_boxed_slice();
    }
    for token in control {
        bytes[token.id.0 as usize] = Box::default();
    }
    Ok(bytes)
}

/// The control token that the post-processor puts first.
fn first_special(document: &Json) -> Option<&str> {
    let post = document.get("post_processor")?;
    let parts = post.get("processors").and_then(Json::as_array);
    let parts: Vec<&Json> = parts.map_or_else(|| vec![post], |parts| parts.iter().collect());
    let template = parts.into_iter().find(|part| part["type"] == "TemplateProcessing")?;
    template["single"].get(0)?.get("SpecialToken")?.get("id")?.as_str()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// By the reference: `tests/goldens/make_json_tokenizers.py`.
    fn golden() -> Json {
        serde_json::from_str(include_str!("../../tests/goldens/json-tokenizers.json")).unwrap()
    }

    fn open(document: &Json, template: &str) -> Result<Tokenizer, TokenizerError> {
        let control = ControlWords { begin: None, adds_begin: None, named: Vec::new(), template };
        Tokenizer::for_decoder(&document.to_string(), &control)
    }

    #[track_caller]
    fn check(kind: &str) {
        let golden = golden();
        let expected = &golden["tokenizers"][kind];
        let tokenizer = open(&expected["json"], "").unwrap();
        for (i, text) in golden["texts"].as_array().unwrap().iter().enumerate() {
            let text = text.as_str().unwrap();
            let ids: Vec<TokenId> = serde_json::from_value(expected["ids"][i].clone()).unwrap();
            assert_eq!(tokenizer.encode_with_specials(text).unwrap(), ids, "{kind}: {text:?}");
            assert_eq!(tokenizer.decode(&ids), expected["decoded"][i].as_str().unwrap(), "{kind}: {text:?}");
            let plain = tokenizer.encode(text).unwrap();
            assert!(plain.iter().all(|id| !tokenizer.is_special(*id)), "{kind}: {text:?} forges a control token");
        }
        assert_eq!(tokenizer.begin, Some(TokenId(1)), "{kind}: the post-processor puts it first");
    }

    #[test]
    fn a_space_before_every_text() {
        check("legacy");
    }

    #[test]
    fn a_space_before_the_first_text() {
        check("first");
    }

    #[test]
    fn no_space_and_tokens_that_are_no_control_tokens() {
        check("plain");
        let document = golden()["tokenizers"]["plain"]["json"].clone();
        let table = open(&document, "").unwrap().encode("<table>").unwrap();
        assert_eq!(table.len(), 1);
        // What the template writes itself no text may become.
        let written = open(&document, "{{ '<table>' + messages[0].content }}").unwrap();
        assert!(written.is_special(table[0]));
        assert!(!written.encode("<table>").unwrap().contains(&table[0]));
    }

    #[test]
    fn a_token_that_takes_the_space_behind_it() {
        check("marks");
    }

    /// As SmolLM2's own `tokenizer.json`, which Transformers reads.
    #[test]
    fn a_byte_without_a_token_is_left_out() {
        let missing = '\u{104}'; // stands for the byte 04
        let words: serde_json::Map<String, Json> = byte_of_char()
            .into_keys()
            .filter(|byte| *byte != missing)
            .enumerate()
            .map(|(id, byte)| (byte.to_string(), json!(id)))
            .collect();
        let document = json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": words, "merges": []},
        });
        let tokenizer = open(&document, "").unwrap();
        assert_eq!(tokenizer.vocabulary(), 255);
        let ids = tokenizer.encode("a\u{4}b").unwrap();
        assert_eq!((ids.len(), tokenizer.decode(&ids)), (2, "ab".to_owned()));
    }

    #[test]
    fn a_vocabulary_that_lies_is_refused() {
        let refuses = |change: &dyn Fn(&mut Json), message: &str| {
            let mut document = golden()["tokenizers"]["legacy"]["json"].clone();
            change(&mut document);
            let error = open(&document, "").unwrap_err().to_string();
            assert!(error.contains(message), "`{error}` does not say `{message}`");
        };
        refuses(&|document| document["model"]["type"] = json!("Unigram"), "`tokenizer.json/Unigram` is not supported");
        refuses(&|document| document["decoder"] = Json::Null, "neither byte-level nor of pieces");
        refuses(&|document| document["added_tokens"][0]["id"] = json!(1 << 20), "token `<unk>` has no usable id");
        refuses(&|document| document["added_tokens"][0]["id"] = json!(-1), "token `<unk>` has no usable id");
        refuses(&|document| document["added_tokens"][0]["id"] = json!(7), "token `<unk>` has the ids 0 and 7");
        refuses(&|document| document["model"]["vocab"]["<s>"] = json!(2), "`<s>` has the ids 2 and 1");
        refuses(&|document| document["model"]["vocab"]["new one"] = json!(5), "id 5 is of both");
        refuses(&|document| document["added_tokens"][0]["content"] = json!(3), "an added token has no text");
        refuses(&|document| *document = json!([]), "without a model");
        let control = ControlWords { begin: None, adds_begin: None, named: Vec::new(), template: "" };
        assert!(matches!(Tokenizer::for_decoder("{", &control), Err(TokenizerError::Json(_))));
    }
}
