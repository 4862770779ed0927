//! Any bytes as a record of a log. What is read as a call must survive being written in every format and read again, and being cut into tokens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use metier_traffic::logs::{self, Format, Row};

fuzz_target!(|bytes: &[u8]| {
    let Ok(record) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
    let Ok((_, Row::Calls(calls))) = logs::read(&record) else { return };
    for call in calls.iter().take(4) {
        for format in Format::ALL {
            let _ = logs::read(&logs::write(format, call));
        }
        let own = logs::write(Format::Metier, call);
        if let Ok((Format::Metier, Row::Calls(again))) = logs::read(&own) {
            assert_eq!(again[0].messages, call.messages, "our own form says what it was given");
        }
    }
});
