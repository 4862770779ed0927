//! Which adapters are resident.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use super::Engine;
use crate::adapter::Adapter;

/// Names an adapter of one engine; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdapterId(pub u64);

/// An adapter is not loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadAdapterError {
    /// It has the shape of another base.
    #[error("the adapter was made for another base")]
    OtherBase,
    /// No room; unload others, and wait for the sequences that still run with them.
    #[error("the adapter needs {bytes} bytes beside {resident} resident ones, the limit is {limit}")]
    Full {
        /// Its bytes.
        bytes: usize,
        /// Bytes of those that are loaded or still in use.
        resident: usize,
        /// The bound.
        limit: usize,
    },
}

/// The adapters of one engine.
#[derive(Debug, Default)]
pub(super) struct Adapters {
    loaded: BTreeMap<AdapterId, Arc<Adapter>>,
    /// Unloaded, but perhaps still held by sequences.
    leaving: Vec<Weak<Adapter>>,
    next_id: u64,
}

impl Adapters {
    pub(super) fn get(&self, id: AdapterId) -> Option<&Arc<Adapter>> {
        self.loaded.get(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.loaded.len()
    }

    pub(super) fn bytes(&self) -> usize {
        let leaving = self.leaving.iter().filter_map(Weak::upgrade).map(|adapter| adapter.bytes());
        self.loaded.values().map(|adapter| adapter.bytes()).sum::<usize>() + leaving.sum::<usize>()
    }
}

impl Engine {
    /// Makes an adapter known to requests. At any time, also while sequences run.
    pub fn load_adapter(&mut self, adapter: Arc<Adapter>) -> Result<AdapterId, LoadAdapterError> {
        if !adapter.fits(self.decoder.network().config()) {
            return Err(LoadAdapterError::OtherBase);
        }
        self.adapters.leaving.retain(|adapter| adapter.strong_count() > 0);
        let (bytes, resident, limit) = (adapter.bytes(), self.adapters.bytes(), self.limits.adapter_bytes);
        if resident.saturating_add(bytes) > limit {
            return Err(LoadAdapterError::Full { bytes, resident, limit });
        }
        let id = AdapterId(self.adapters.next_id);
        self.adapters.next_id += 1;
        self.adapters.loaded.insert(id, adapter);
        Ok(id)
    }

    /// Lets go of an adapter: new requests cannot name it, those that were submitted keep it until they end. What was remembered
    /// for it is forgotten. Says whether it was there.
    pub fn unload_adapter(&mut self, id: AdapterId) -> bool {
        let Some(adapter) = self.adapters.loaded.remove(&id) else { return false };
        self.adapters.leaving.push(Arc::downgrade(&adapter));
        self.cache.forget(|key| key.adapter == Some(id.0));
        for sequence in self.running.iter_mut().filter(|sequence| sequence.request.adapter == Some(id)) {
            sequence.key = None;
        }
        true
    }
}
