//! Which adapters of the base are served?
//!
//! Which question: *under which names does the base answer with a delta over it, and with whose?* In go adapters with names; out comes,
//! for a name, a backend that shares the base's thread, engine and batches, and the digest that goes on record. Deliberately absent: files
//! and folders (the roof reads them), and what an adapter computes (the engine's).
//!
//! ```text
//! load ──▶ engine has it ──▶ name answers … another takes the name, or unload ──▶ requests under way end ──▶ engine lets go
//! ```

use std::sync::{Arc, PoisonError, RwLock};

use metier_model::{Digest, adapter::Adapter, engine::LoadAdapterError, specialist::is_name};
use metier_traffic::wire::ModelEntry;

use crate::{backend::Backend, gateway::Gateway, route::AUTO};

/// An adapter is not served.
#[derive(Debug, thiserror::Error)]
pub enum AdapterRefused {
    /// There is nothing that it could be a delta of.
    #[error("this server has no decoder to adapt")]
    NoBase,
    /// Not `[a-z0-9][a-z0-9-]{0,62}`.
    #[error("`{0}` is no name of an adapter: lower-case letters, digits and hyphens, at most 63, no hyphen first")]
    Name(String),
    /// `auto`, a base model, a backend or its model.
    #[error("`{0}` stands for something else on this server: give the adapter another name")]
    Taken(String),
    /// The engine does not take it.
    #[error("the engine does not take the adapter")]
    Engine(#[from] LoadAdapterError),
    /// The decoder's thread has ended.
    #[error("the decoder has stopped: restart the server")]
    Stopped,
}

/// An adapter with its name.
pub(crate) struct AdapterSlot {
    pub(crate) name: String,
    /// For people.
    pub(crate) description: Option<String>,
    pub(crate) digest: Digest,
    /// The base with this adapter. Dropping the last handle makes the engine let go of it.
    pub(crate) backend: Arc<dyn Backend>,
}

type Slots = Arc<Vec<Arc<AdapterSlot>>>;

/// All that are served, by name. A reader keeps what it found, whatever comes and goes meanwhile.
#[derive(Default)]
pub(crate) struct Adapters(RwLock<Slots>);

impl Adapters {
    pub(crate) fn all(&self) -> Slots {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts one in, in the place of the one of its name.
    pub(crate) fn put(&self, slot: AdapterSlot) {
        self.change(|slots| {
            slots.retain(|known| known.name != slot.name);
            slots.push(Arc::new(slot));
            slots.sort_by(|a, b| a.name.cmp(&b.name));
        });
    }

    /// Takes one out; says whether it was there.
    pub(crate) fn remove(&self, name: &str) -> bool {
        self.change(|slots| {
            let before = slots.len();
            slots.retain(|slot| slot.name != name);
            slots.len() < before
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Vec<Arc<AdapterSlot>>) -> T) -> T {
        let mut slots = self.0.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut slots))
    }
}

impl AdapterSlot {
    pub(crate) fn entry(&self, base: Option<&str>) -> ModelEntry {
        ModelEntry {
            parent: base.map(str::to_owned),
            description: self.description.clone(),
            ..ModelEntry::new(&self.name, "metier-adapter")
        }
    }
}

impl Gateway {
    /// Serves an adapter over the base under a name, or puts it in the place of the one of that name; requests under way end with what they
    /// began with. `description` is one line for people. Waits for the engine's thread, which takes it between two steps.
    pub fn load_adapter(
        &self,
        name: &str,
        description: Option<String>,
        adapter: Arc<Adapter>,
    ) -> Result<(), AdapterRefused> {
        if !is_name(name) {
            return Err(AdapterRefused::Name(name.to_owned()));
        }
        if name == AUTO || self.configured_names().any(|known| known == name) {
            return Err(AdapterRefused::Taken(name.to_owned()));
        }
        let base = self.adaptable().ok_or(AdapterRefused::NoBase)?;
        let digest = adapter.digest();
        let backend = Arc::new(base.with_adapter(name, adapter)?);
        self.adapters().put(AdapterSlot { name: name.to_owned(), description, digest, backend });
        Ok(())
    }

    /// Stops serving an adapter; says whether it was served. Requests under way end with it.
    pub fn unload_adapter(&self, name: &str) -> bool {
        self.adapters().remove(name)
    }
}
