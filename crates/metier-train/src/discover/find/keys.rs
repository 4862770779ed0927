//! *What is told apart before any text is looked at?* Tools, response schema, and the name that a log gives its calls.

use std::collections::{BTreeSet, HashMap};

use metier_traffic::Exchange;

/// Kinds of calls (tools, schema, name) that are told apart.
const MAX_KEYS: usize = 4096;
/// Names that a log gives its calls: more than these are names of single calls, not of tasks.
const MAX_NAMES: usize = 64;

/// Kinds of calls: what is told apart before any text is looked at.
#[derive(Default)]
pub(super) struct Keys {
    pub(super) by_text: HashMap<String, u32>,
    pub(super) all: Vec<Key>,
    pub(super) names: BTreeSet<String>,
    pub(super) by_caller: HashMap<String, u32>,
    pub(super) callers: Vec<(u32, String)>,
}

#[derive(Clone, Default)]
pub(super) struct Key {
    pub(super) tools: Vec<String>,
    pub(super) schema: Option<String>,
    pub(super) named: Option<String>,
}

impl Keys {
    pub(super) fn of(&mut self, call: &Exchange) -> u32 {
        let named = call.named.as_deref().map(numberless).filter(|name| {
            self.names.contains(name) || (self.names.len() < MAX_NAMES && self.names.insert(name.clone()))
        });
        let text = format!("{:?} {:?} {named:?}", call.tools, call.schema);
        if let Some(&at) = self.by_text.get(&text) {
            return at;
        }
        if self.all.len() == MAX_KEYS {
            return 0;
        }
        let at = self.all.len() as u32;
        self.all.push(Key { tools: call.tools.clone(), schema: call.schema.clone(), named });
        self.by_text.insert(text, at);
        at
    }

    /// Calls without texts: told apart by what the log calls them, else by their model.
    pub(super) fn caller(&mut self, call: &Exchange, key: u32) -> u32 {
        let named = self.all[key as usize].named.clone();
        let name =
            named.unwrap_or_else(|| if call.model.is_empty() { "unknown".to_owned() } else { call.model.clone() });
        let text = format!("{key} {name}");
        if let Some(&at) = self.by_caller.get(&text) {
            return at;
        }
        if self.callers.len() == MAX_KEYS {
            return 0;
        }
        let at = self.callers.len() as u32;
        self.callers.push((key, name));
        self.by_caller.insert(text, at);
        at
    }
}

/// A name without the numbers that single calls have in it.
pub(super) fn numberless(name: &str) -> String {
    let mut out = String::new();
    for word in name.split_inclusive(|c: char| !c.is_alphanumeric()) {
        let digits = word.chars().filter(char::is_ascii_digit).count();
        // A version stays, a number or a hash goes.
        if digits > 2 && digits * 3 >= word.len() { out.push('#') } else { out.push_str(word) }
    }
    out.chars().take(80).collect()
}
