//! New bundles while the server runs: looks at the store once a second and hands the gateway the specialists that are current.
//!
//! A bundle that cannot be opened is reported once and leaves the version before it in service; one whose `current` is gone is no
//! longer served.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use metier_model::specialist::{Specialist, SpecialistStore};

/// How often the store is looked at: a handful of small files.
const INTERVAL: Duration = Duration::from_secs(1);

/// The specialists of a store, as last seen.
#[derive(Debug)]
pub struct Shelf {
    store: SpecialistStore,
    /// name → folder of the bundle that was current when last looked at, good or not
    seen: BTreeMap<String, PathBuf>,
    /// name → what is served
    served: BTreeMap<String, Arc<Specialist>>,
}

impl Shelf {
    /// Nothing seen yet.
    pub fn new(store: SpecialistStore) -> Self {
        Self { store, seen: BTreeMap::new(), served: BTreeMap::new() }
    }

    /// Opens what is new; returns whether anything changed. Reads and hashes files: not for a thread that speaks HTTP.
    pub fn look(&mut self) -> bool {
        let names = match self.store.names() {
            Ok(names) => names,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot look at the specialist store");
                return false;
            }
        };
        let current: BTreeMap<String, PathBuf> =
            names.into_iter().filter_map(|name| Some((name.clone(), self.store.current(&name)?))).collect();
        if current == self.seen {
            return false;
        }
        let mut changed = false;
        for (name, dir) in &current {
            if self.seen.get(name) == Some(dir) {
                continue;
            }
            match Specialist::open(dir) {
                Ok(specialist) => {
                    tracing::info!(name, bundle = %specialist.id().short(), "specialist taken into service");
                    self.served.insert(name.clone(), Arc::new(specialist));
                    changed = true;
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(name, dir = %dir.display(), error, "specialist cannot be opened; what was served before stays");
                }
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

    /// What is served, by name.
    pub fn specialists(&self) -> Vec<Arc<Specialist>> {
        self.served.values().cloned().collect()
    }
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
