//! Base models as every verb gets them: named in the settings, fetched if need be, opened under their catalogue name, and the threads they
//! run on. A decoder may be named by its path instead: it is opened where it lies, under the name of its file or folder.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use metier_kernels::{Pool, Tier, ceilings};
use metier_model::{Decoder, Encoder, PackedCache, PackedOutcome, decoder::DecoderOptions};

use super::{Failure, models, progress::Bars};
use crate::{
    config::{Environment, Settings, cache_dir, fetcher, path_of},
    fetch::{Catalogue, LocalModel, ModelKind},
};

/// What `models.decoder` says when there shall be none.
pub const NONE: &str = "none";

/// The compute threads, at the tier that the environment forces or the one that is fastest here.
///
/// # Errors
/// `METIER_TIER` names no tier of this CPU.
pub fn pool(settings: &Settings, environment: &Environment) -> Result<Arc<Pool>, Failure> {
    let tier = match environment.tier.as_deref() {
        None => ceilings::fastest(&ceilings::probe()),
        Some(name) => {
            let tier = Tier::parse(name).context("cannot use METIER_TIER").map_err(Failure::Usage)?;
            if !Tier::available().contains(&tier) {
                return Err(Failure::usage(anyhow::anyhow!(
                    "METIER_TIER asks for `{tier}`, which this CPU does not have"
                )));
            }
            tier
        }
    };
    Ok(Arc::new(Pool::new(settings.threads(), tier)))
}

/// The folder of the encoder.
///
/// # Errors
/// It is not in the catalogue or cannot be fetched.
pub fn encoder_files(settings: &Settings, environment: &Environment) -> Result<LocalModel, Failure> {
    ensure(settings, environment, &settings.models.encoder, ModelKind::Encoder)
}

/// The encoder of heads and of `auto`, with its weights as the settings want them.
///
/// # Errors
/// It is not in the catalogue, cannot be fetched, or cannot be opened.
pub fn encoder(settings: &Settings, environment: &Environment) -> Result<Encoder, Failure> {
    let model = ensure(settings, environment, &settings.models.encoder, ModelKind::Encoder)?;
    let encoder = Encoder::open_with(&model.dir, settings.models.encoder_weights)
        .with_context(|| format!("cannot open the encoder `{}`", model.name));
    Ok(encoder.map_err(Failure::Environment)?.with_name(&model.name))
}

/// The files of the decoder; `None` where the settings say `none`.
///
/// # Errors
/// It is not in the catalogue or cannot be fetched.
pub fn decoder_files(settings: &Settings, environment: &Environment) -> Result<Option<LocalModel>, Failure> {
    let name = &settings.models.decoder;
    if name == NONE { Ok(None) } else { ensure(settings, environment, name, ModelKind::Decoder).map(Some) }
}

/// The decoder, with its weights as the settings want them; `None` where they say `none`.
///
/// # Errors
/// As [`decoder_files`], or it cannot be opened.
pub fn decoder(settings: &Settings, environment: &Environment) -> Result<Option<Decoder>, Failure> {
    let name = &settings.models.decoder;
    if name == NONE { Ok(None) } else { decoder_named(name, settings, environment).map(Some) }
}

/// A decoder by its name or path, with its weights as the settings want them.
///
/// # Errors
/// It is not in the catalogue, cannot be fetched, or cannot be opened.
pub fn decoder_named(name: &str, settings: &Settings, environment: &Environment) -> Result<Decoder, Failure> {
    let models = &settings.models;
    let options = DecoderOptions {
        weights: models.decoder_weights.into(),
        context: models.decoder_context,
        kv: models.decoder_kv.into(),
        packed: packed_cache(settings, environment),
    };
    let open = |path: &Path| {
        let decoder = Decoder::open_with(path, options.clone());
        let decoder = decoder.with_context(|| format!("cannot open the decoder `{name}`"));
        let decoder = decoder.map_err(Failure::Environment)?;
        match decoder.packed() {
            PackedOutcome::Off | PackedOutcome::Read => {}
            PackedOutcome::Written { bytes } => tracing::info!(bytes, "packed weights kept for the next start"),
            PackedOutcome::NotWritten { problem } => {
                tracing::warn!(problem, "packed weights cannot be kept for the next start");
            }
        }
        Ok(decoder)
    };
    if let Some(path) = path_of(name) {
        return open(path);
    }
    let model = ensure(settings, environment, name, ModelKind::Decoder)?;
    Ok(open(model.decoder_path())?.with_name(&model.name))
}

/// Where packed weights are kept; `None` where none shall be, or there is no cache folder.
fn packed_cache(settings: &Settings, environment: &Environment) -> Option<PackedCache> {
    let limit_bytes = settings.models.packed_cache_mb.saturating_mul(1_000_000);
    let dir = cache_dir(environment).ok()?.join("packed");
    (limit_bytes > 0).then(|| PackedCache::new(dir, limit_bytes))
}

fn ensure(
    settings: &Settings,
    environment: &Environment,
    name: &str,
    wanted: ModelKind,
) -> Result<LocalModel, Failure> {
    let catalogue = match settings.models.catalogue.as_deref() {
        Some(path) => Catalogue::with_file(path).map_err(models::failure)?,
        None => Catalogue::embedded(),
    };
    let kind = catalogue.get(name).map_err(models::failure)?.kind;
    if kind != wanted {
        let (is, asked) = (format!("{kind:?}").to_lowercase(), format!("{wanted:?}").to_lowercase());
        return Err(Failure::usage(anyhow::anyhow!("`{name}` is no {asked} but a model of kind `{is}`")));
    }
    let fetcher = fetcher(environment).map_err(Failure::usage)?;
    let mut bars = Bars::new();
    fetcher.ensure(&catalogue, name, None, &mut |progress| bars.show(progress)).map_err(models::failure)
}
