//! `metier models quantise` on a tiny decoder.

use metier_model::{
    Decoder,
    engine::WeightFormat,
    format::{Gguf, TensorType},
    tiny,
};

use super::Desk;

fn text() -> String {
    let words = ["invoice", "late", "order", "refund", "please", "the", "number", "parcel", "was", "not"];
    (0..900).map(|i| format!("{} {}.\n", words[i * 7 % 10], words[(i * i + 3) % 10])).collect()
}

#[test]
fn a_decoder_is_written_in_four_bits() {
    let desk = Desk::new();
    desk.write("base.gguf", tiny::gguf_with(3, TensorType::F32));
    desk.write("mails.txt", text());
    let quantise = "models quantise base.gguf --text mails.txt --tokens 600 --out four.gguf";
    let ran = desk.run(quantise);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("as it is") && ran.out.contains("calibrated"), "{}", ran.out);
    let bytes = std::fs::read(desk.path("four.gguf")).unwrap();
    let index = Gguf::parse(&bytes).unwrap();
    assert_eq!(index.tensors()["blk.1.ffn_down.weight"].dtype, TensorType::Q4_1);
    assert_eq!(index.tensors()["token_embd.weight"].dtype, TensorType::Q8_0);
    Decoder::from_bytes(bytes, "four", WeightFormat::AsFile).unwrap();

    // Nothing is written over, and the same goes by the other spelling and as JSON.
    let again = desk.run(quantise);
    assert!(again.code == 2 && again.err.contains("is there already"), "{}", again.err);
    desk.write(
        "rows.jsonl",
        text().lines().map(|text| format!("{{\"id\": 1, \"text\": \"{text}\"}}\n")).collect::<String>(),
    );
    let json =
        "models quantize base.gguf --text rows.jsonl --field text --tokens 600 --format q4_0 --out zero.gguf --json";
    let ran = desk.run(json);
    let answer: serde_json::Value = serde_json::from_str(ran.out.lines().last().unwrap()).unwrap();
    assert_eq!(answer["measured"].as_array().unwrap().len(), 3);
    assert!(answer["measured"][0]["perplexity"].as_f64().unwrap() > 1.0, "{answer}");
}

#[test]
fn what_cannot_be_quantised_is_said() {
    let desk = Desk::new();
    desk.write("base.gguf", tiny::gguf_with(3, TensorType::F32));
    desk.write("short.txt", "Hello.\n");
    desk.write("rows.jsonl", "{\"text\": \"a\"}\n{\"body\": \"b\"}\n");
    desk.write("mails.txt", text());
    for (arguments, says) in [
        ("models quantise base.gguf --text short.txt --out x.gguf", "to calibrate and one to measure on"),
        ("models quantise base.gguf --text rows.jsonl --field text --out x.gguf", "line 2: no text in a field `text`"),
        ("models quantise base.gguf --text none.txt --out x.gguf", "cannot read"),
        ("models quantise none.gguf --text mails.txt --out x.gguf", "cannot read"),
        ("models quantise mails.txt --text mails.txt --out x.gguf", "GGUF"),
    ] {
        let ran = desk.run(arguments);
        assert!(ran.code > 1 && ran.err.contains(says), "{arguments}: {} {}", ran.code, ran.err);
        assert!(!desk.path("x.gguf").exists());
    }
}
