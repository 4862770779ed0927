//! Server-sent events, as far as the protocol uses them: `data:` lines, ended by a blank line. Bytes may come cut anywhere.

/// Largest event that is collected, in bytes.
pub(crate) const MAX_EVENT_BYTES: usize = 1 << 20;

/// The event is too long.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Collects bytes into events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// The line so far.
    line: Vec<u8>,
    /// The event's data so far.
    data: Vec<u8>,
    has_data: bool,
}

impl Events {
    /// Takes the next bytes and returns the data of the events that they complete.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TooLong> {
        let mut events = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                if self.line.len() + self.data.len() >= MAX_EVENT_BYTES {
                    return Err(TooLong);
                }
                self.line.push(*byte);
                continue;
            }
            if self.line.last() == Some(&b'\r') {
                self.line.pop();
            }
            self.end_line(&mut events);
        }
        Ok(events)
    }

    fn end_line(&mut self, events: &mut Vec<Vec<u8>>) {
        if self.line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                events.push(std::mem::take(&mut self.data));
            }
        } else if let Some(data) = self.line.strip_prefix(b"data:") {
            if self.has_data {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
            self.has_data = true;
        }
        // Comments and other fields say nothing here.
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    const TEXT: &[u8] =
        ": ping\n\ndata: {\"a\":1}\r\n\r\nevent: x\ndata:two\ndata: lines\n\ndata: [DONE]\n\ndata: unfinished"
            .as_bytes();

    fn expected() -> Vec<Vec<u8>> {
        vec![b"{\"a\":1}".to_vec(), b"two\nlines".to_vec(), b"[DONE]".to_vec()]
    }

    #[test]
    fn reads_events() {
        assert_eq!(Events::default().push(TEXT).unwrap(), expected());
    }

    #[test]
    fn the_limit_holds_on_both_sides() {
        let line = |n: usize| [b"data:".as_slice(), &vec![b'x'; n - 5], b"\n\n"].concat();
        assert_eq!(Events::default().push(&line(MAX_EVENT_BYTES)).unwrap().len(), 1);
        assert_eq!(Events::default().push(&line(MAX_EVENT_BYTES + 1)), Err(TooLong));
        let many = b"data: x\n".repeat(MAX_EVENT_BYTES);
        assert_eq!(Events::default().push(&many), Err(TooLong), "many short lines of one event");
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(cuts in prop::collection::vec(0..TEXT.len(), 0..8)) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let (mut events, mut from, mut found) = (Events::default(), 0, Vec::new());
            for to in cuts.into_iter().chain([TEXT.len()]) {
                found.extend(events.push(&TEXT[from..to]).unwrap());
                from = to;
            }
            prop_assert_eq!(found, expected());
        }
    }
}
