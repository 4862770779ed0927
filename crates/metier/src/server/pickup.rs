//! New bundles while the server runs: looks at the registry once a second and hands the gateway the specialists that are live.
//!
//! A bundle that cannot be opened, or whose records do not verify, is reported once and leaves the version before it in service; one
//! that is live no longer is no longer served.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use metier_model::{
    Digest,
    specialist::{
        Registry, RegistryError, Specialist,
        registry::{Serving, Trust},
    },
};

/// How often the store is looked at: a handful of small files.
const INTERVAL: Duration = Duration::from_secs(1);

/// The specialists of a store, as last seen.
#[derive(Debug)]
pub struct Shelf {
    registry: Registry,
    trust: Trust,
    /// name → its records when they were last verified, and what they said, good or not
    seen: BTreeMap<String, (Option<Digest>, Seen)>,
    /// name → what is served
    served: BTreeMap<String, Arc<Specialist>>,
}

/// What the records of a name said; equal means that nothing happened since.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Live(Serving),
    Wrong(String),
}

impl Shelf {
    /// Nothing seen yet.
    pub fn new(registry: Registry, trust: Trust) -> Self {
        Self { registry, trust, seen: BTreeMap::new(), served: BTreeMap::new() }
    }

    /// Opens what is new; returns whether anything changed. Reads and hashes files: not for a thread that speaks HTTP.
    pub fn look(&mut self) -> bool {
        let names = match self.registry.names() {
            Ok(names) => names,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot look at the specialist store");
                return false;
            }
        };
        let current: BTreeMap<String, (Option<Digest>, Seen)> = names
            .into_iter()
            .filter_map(|name| {
                let records = self.registry.fingerprint(&name);
                let unchanged = |(before, _): &&(Option<Digest>, Seen)| before.is_some() && *before == records;
                let seen = match self.seen.get(&name).filter(unchanged) {
                    // Signatures take longer than a hash.
                    Some((_, seen)) => seen.clone(),
                    None => match self.registry.serving(&name, &self.trust) {
                        Ok(serving) => Seen::Live(serving?),
                        Err(error) => Seen::Wrong(chain(&error)),
                    },
                };
                Some((name, (records, seen)))
            })
            .collect();
        let mut changed = false;
        for (name, (_, seen)) in &current {
            if self.seen.get(name).map(|(_, before)| before) != Some(seen) {
                changed |= self.take_up(name, seen);
            }
        }
        let gone: Vec<String> = self.served.keys().filter(|name| !current.contains_key(*name)).cloned().collect();
        for name in gone {
            tracing::info!(name, "specialist taken out of service");
            self.served.remove(&name);
            changed = true;
        }
        self.seen = current;
        changed
    }

    /// Takes up what is new under a name; returns whether something else is served now.
    fn take_up(&mut self, name: &str, seen: &Seen) -> bool {
        let serving = match seen {
            Seen::Live(serving) => serving,
            Seen::Wrong(error) => {
                tracing::warn!(name, error, "records of a specialist are not accepted; what was served before stays");
                return false;
            }
        };
        if self.served.get(name).is_some_and(|served| served.id() == serving.id) {
            return false;
        }
        match Specialist::open(&serving.dir) {
            Ok(specialist) if specialist.manifest().name == name => {
                if let Some(remark) = &serving.remark {
                    tracing::warn!(name, bundle = %serving.id.short(), remark, "served as it is: `registry.require_approval` is not set");
                }
                tracing::info!(name, bundle = %serving.id.short(), "specialist taken into service");
                self.served.insert(name.to_owned(), Arc::new(specialist));
                true
            }
            Ok(specialist) => {
                let actual = &specialist.manifest().name;
                tracing::warn!(
                    name,
                    actual,
                    "a bundle lies under another name than its own; what was served before stays"
                );
                false
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(name, dir = %serving.dir.display(), error, "specialist cannot be opened; what was served before stays");
                false
            }
        }
    }

    /// What is served, by name.
    pub fn specialists(&self) -> Vec<Arc<Specialist>> {
        self.served.values().cloned().collect()
    }
}

fn chain(error: &RegistryError) -> String {
    let mut told = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        told = format!("{told}: {error}");
        cause = error.source();
    }
    told
}

/// Looks again and again until dropped, at a shelf of whatever kind.
pub async fn watch<S: Send + 'static>(mut shelf: S, look: impl Fn(&mut S) + Send + Sync + 'static) {
    let look = Arc::new(look);
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let look = Arc::clone(&look);
        let looked = tokio::task::spawn_blocking(move || {
            look(&mut shelf);
            shelf
        });
        match looked.await {
            Ok(theirs) => shelf = theirs,
            // A panic while something is opened: what is served stays, nothing new is taken up.
            Err(error) => {
                tracing::error!(%error, kind = std::any::type_name::<S>(), "no longer looking for what is new");
                return;
            }
        }
    }
}
