//! Model hubs, through `hf-hub`: which resumes an unfinished download from the bytes that are there.

use std::{
    fs::{self, File},
    net::{TcpStream, ToSocketAddrs},
    path::Path,
    time::Duration,
};

use hf_hub::{Repo, RepoType, api::sync::ApiBuilder};
use metier_model::{Progress, Unit};

use super::{CatalogueFile, SourceError, place};

/// How long a hub may take to accept a connection. `hf-hub` has no setting for it, so it is tried beforehand.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Tries of `hf-hub` for a connection that breaks; each goes on where the last one ended.
const RETRIES: usize = 2;

/// One file of one repository.
pub(super) struct Address<'a> {
    pub(super) repo: &'a str,
    pub(super) revision: &'a str,
    pub(super) file: &'a str,
}

/// Downloads into `unfinished`, and from there into the model's folder once the hash is right.
pub(super) fn download(
    unfinished: &Path,
    endpoint: Option<&str>,
    address: &Address<'_>,
    file: &CatalogueFile,
    dir: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), SourceError> {
    let failed = |error: &dyn std::fmt::Display| SourceError::Unreachable(error.to_string());
    let mut builder = ApiBuilder::new()
        .with_cache_dir(unfinished.to_owned())
        .with_retries(RETRIES)
        .with_progress(false)
        .with_token(None);
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    let api = builder.build().map_err(|error| failed(&error))?;
    let repo = api.repo(Repo::with_revision(address.repo.to_owned(), RepoType::Model, address.revision.to_owned()));
    let url = repo.url(address.file);
    connect(&url)?;

    // The hub's words become file names in `hf-hub`'s cache: look at them first.
    let metadata = api.metadata(&url).map_err(|error| failed(&error))?;
    for word in [metadata.etag(), metadata.commit_hash()] {
        let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if !plain {
            return Err(SourceError::Unreachable(format!("the hub named a file version `{word}`, which is no hash")));
        }
    }
    if metadata.size() as u64 != file.bytes {
        return Err(place::PlaceError::Size { found: metadata.size().to_string(), expected: file.bytes }.into());
    }

    let watch = Watch { stage: format!("downloading {}", file.name), done: 0, total: file.bytes, progress };
    let pointer = repo.download_with_progress(address.file, watch).map_err(|error| failed(&error))?;
    let blob = fs::canonicalize(&pointer).map_err(|error| failed(&error))?;
    let mut reader = File::open(&blob).map_err(|error| failed(&error))?;
    let placed = place::write(&mut reader, file, dir, progress);
    // Right or wrong, it is not needed there any more: right bytes have their place, wrong ones must not be resumed.
    let _ = fs::remove_file(&blob);
    let _ = fs::remove_file(&pointer);
    Ok(placed?)
}

/// Tries to reach the hub within [`CONNECT_TIMEOUT`], so that a machine without a network hears of it at once.
fn connect(url: &str) -> Result<(), SourceError> {
    let (scheme, rest) = url.split_once("://").ok_or_else(|| {
        SourceError::Unreachable(format!(
            "HF_ENDPOINT must be an address such as `https://hub.example.com`, not `{url}`"
        ))
    })?;
    let authority = rest.split('/').next().unwrap_or_default();
    let unreachable =
        |why: String| SourceError::Unreachable(format!("cannot reach the hub `{scheme}://{authority}`: {why}"));
    let default_port = if scheme == "http" { 80 } else { 443 };
    let with_port = if authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        authority.to_owned()
    } else {
        format!("{authority}:{default_port}")
    };
    let addresses = with_port.to_socket_addrs().map_err(|error| unreachable(error.to_string()))?;
    let mut last = "no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(unreachable(last))
}

/// Hands `hf-hub`'s progress on as ours.
struct Watch<'a> {
    stage: String,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(Progress<'_>),
}

impl hf_hub::api::Progress for Watch<'_> {
    fn init(&mut self, size: usize, _: &str) {
        self.done = 0;
        self.total = size as u64;
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        (self.progress)(Progress { stage: &self.stage, done: self.done, total: Some(self.total), unit: Unit::Bytes });
    }

    fn finish(&mut self) {}
}
