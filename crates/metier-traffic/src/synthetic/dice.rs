//! Dice that are thrown by hashing, and patterns that they fill: no state but a counter, so a call is the same whatever was made before it.

use metier_model::specialist::mix;

/// A die that is thrown by hashing: no state but a counter.
pub(super) struct Dice {
    pub(super) key: u64,
    pub(super) n: u64,
}

impl Dice {
    pub(super) fn new(seed: u64, key: u64) -> Self {
        Self { key: mix(seed ^ mix(key ^ 0x9e37_79b9_7f4a_7c15)), n: 0 }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.n += 1;
        mix(self.key.wrapping_add(self.n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(super) fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len() as u64) as usize]
    }

    /// Fills a pattern: `[a|b]` is one of these, `<thing>` a thing, `<order>` a number of an order.
    pub(super) fn fill(&mut self, pattern: &str) -> String {
        let mut out = String::new();
        let mut rest = pattern;
        while let Some(at) = rest.find(['[', '<']) {
            out.push_str(&rest[..at]);
            let (open, close) = if rest.as_bytes()[at] == b'[' { ('[', ']') } else { ('<', '>') };
            let mut depth = 0;
            let end = rest[at..].find(|c: char| {
                depth += i32::from(c == open) - i32::from(c == close);
                depth == 0
            });
            let Some(end) = end else { break };
            let inner = &rest[at + 1..at + end];
            if close == ']' {
                // Choices may hold choices and slots of their own.
                let mut depth = 0;
                let choices: Vec<&str> = inner
                    .split(|c: char| {
                        depth += i32::from(c == '[') - i32::from(c == ']');
                        c == '|' && depth == 0
                    })
                    .collect();
                let chosen = self.one(&choices);
                let chosen = self.fill(chosen);
                out.push_str(&chosen);
            } else {
                let filled = self.slot(inner);
                out.push_str(&filled);
            }
            rest = &rest[at + end + 1..];
        }
        out.push_str(rest);
        out
    }

    pub(super) fn slot(&mut self, name: &str) -> String {
        match name {
            "thing" => {
                let kind = self.one(&[
                    "pH meter",
                    "centrifuge",
                    "balance",
                    "spectrometer",
                    "pump",
                    "incubator",
                    "microscope",
                    "shaker",
                    "titrator",
                    "thermostat",
                    "pipette set",
                    "autoclave",
                ]);
                let model = self.one(&["N", "NX", "Pro", "Lab", "Eco", "S", "Q"]);
                format!("{kind} {model}-{}", 10 + self.below(90) * 10)
            }
            "part" => {
                let kind = self.one(&[
                    "rotor seal",
                    "glass electrode",
                    "fuse 2A",
                    "drain hose",
                    "lamp",
                    "door gasket",
                    "filter cartridge",
                    "drive belt",
                    "power supply",
                    "sensor cable",
                ]);
                kind.to_owned()
            }
            "order" => format!("NW-{}", 100_000 + self.below(900_000)),
            "n" => (2 + self.below(58)).to_string(),
            "days" => (1 + self.below(30)).to_string(),
            "money" => format!("{}.{:02}", 12 + self.below(4800), self.below(100)),
            "date" => format!("2026-{:02}-{:02}", 1 + self.below(12), 1 + self.below(28)),
            "city" => self
                .one(&[
                    "Ghent", "Porto", "Graz", "Leeds", "Turin", "Malmö", "Lyon", "Brno", "Cork", "Aarhus", "Split",
                    "Bergen",
                ])
                .to_owned(),
            "firm" => {
                let first = self.one(&[
                    "Alder", "Birch", "Cobalt", "Delta", "Ember", "Fjord", "Garnet", "Harbour", "Iris", "Juniper",
                    "Krypton", "Lumen",
                ]);
                let second = self.one(&[
                    "Labs",
                    "Clinics",
                    "Foods",
                    "Chemicals",
                    "University",
                    "Water Works",
                    "Diagnostics",
                    "Polymers",
                ]);
                format!("{first} {second}")
            }
            "first" => self
                .one(&[
                    "Amara", "Bjorn", "Chiara", "Dmitri", "Elif", "Farid", "Greta", "Hiro", "Ines", "Jonas", "Katya",
                    "Luis", "Mira", "Nils", "Oona", "Pavel",
                ])
                .to_owned(),
            "last" => self
                .one(&[
                    "Abara",
                    "Brandt",
                    "Costa",
                    "Dufour",
                    "Eriksen",
                    "Fontana",
                    "Gruber",
                    "Hanley",
                    "Ivanov",
                    "Jansen",
                    "Kowal",
                    "Lindqvist",
                    "Moreau",
                    "Novak",
                ])
                .to_owned(),
            "mail" => {
                let (first, last) = (self.slot("first"), self.slot("last"));
                format!("{}.{}@example.org", first.to_lowercase(), last.to_lowercase())
            }
            // Reserved for fiction by the numbering plans of North America and of the United Kingdom.
            "phone" => format!("+1 202-555-01{:02}", self.below(100)),
            // The example of ISO 13616 and others whose check digits are right.
            "iban" => self
                .one(&[
                    "GB82 WEST 1234 5698 7654 32",
                    "DE89 3704 0044 0532 0130 00",
                    "FR14 2004 1010 0505 0001 3M02 606",
                ])
                .to_owned(),
            "since" => self.fill("[yesterday|last Monday|two weeks ago|this morning|<date>|Friday]"),
            "hello" => self.fill("[Hello|Hi|Good morning|Dear team|Hi there|To whom it may concern|Hey]"),
            "bye" => self.fill("[Thanks|Best regards|Kind regards|Thank you|Cheers|Sincerely]"),
            other => other.to_owned(),
        }
    }

    /// A pattern for a label, filled, among sentences that fit anything.
    pub(super) fn letter(&mut self, says: &str) -> String {
        let before = self.fill("[|<hello>, |<hello>! |<hello>, we are a customer in <city>. |We bought a <thing> in <city>. |I write for <firm>. ]");
        let after = self.fill("[| <bye>| Please advise.| We need this solved by <date>.| This is the [second|third] time I write.| <bye>, <firm>| Order <order>.]");
        format!("{before}{}{after}", self.fill(says))
    }
}
