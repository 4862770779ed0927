//! Stop texts, which may span tokens.

use crate::tokenizer::Utf8Stream;

/// Lets text through until a stop text appears; holds back what could be the beginning of one.
pub(super) struct StopFilter {
    stops: Vec<String>,
    utf8: Utf8Stream,
    held: String,
    stopped: bool,
}

impl StopFilter {
    pub(super) fn new(stops: &[String]) -> Self {
        Self { stops: stops.to_vec(), utf8: Utf8Stream::default(), held: String::new(), stopped: false }
    }

    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Adds a token's bytes; returns the text that is certain now.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        let text = self.utf8.push(bytes);
        self.admit(&text)
    }

    fn admit(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            self.stopped = true;
            return std::mem::take(&mut self.held);
        }
        let certain = (0..=self.held.len())
            .filter(|&at| self.held.is_char_boundary(at))
            .find(|&at| self.stops.iter().any(|stop| at < self.held.len() && stop.starts_with(&self.held[at..])))
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }

    /// The end: what was held back is text after all.
    pub(super) fn finish(&mut self) -> String {
        let text = self.utf8.finish();
        let mut out = self.admit(&text);
        if !self.stopped {
            out.push_str(&std::mem::take(&mut self.held));
        }
        out
    }
}
