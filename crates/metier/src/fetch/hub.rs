//! Model hubs, through `hf-hub`: which goes on from the bytes that an interrupted download left.
//!
//! `hf-hub` has no time-outs of its own, so it works in a thread that is watched from here: [`CONNECT_TIMEOUT`] before it starts,
//! [`STALL_TIMEOUT`] between two signs of life.

use std::{
    fs::{self, File},
    net::{TcpStream, ToSocketAddrs},
    panic,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{Api, ApiBuilder, ApiError},
};
use metier_model::{Progress, Unit};
use ureq::http::Uri;

use super::{CatalogueFile, SourceError, place};

/// How long a hub may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a hub may stay silent.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a broken transfer is taken up again within one fetch, while each attempt brings new bytes.
const RESUMES: usize = 4;

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
    let cache = Cache::new(unfinished.to_owned());
    // No token: pinned files are public, and a secret is not sent to whoever HF_ENDPOINT names.
    let mut builder = ApiBuilder::from_cache(cache.clone()).with_progress(false).with_token(None);
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    let api = builder.build().map_err(unreachable)?;
    let repo = Repo::with_revision(address.repo.to_owned(), RepoType::Model, address.revision.to_owned());
    let url = api.repo(repo.clone()).url(address.file);
    connect(&url)?;

    let transfer = Transfer { api, cache, repo, member: address.file.to_owned(), url, expected_bytes: file.bytes };
    let arrived = watched(transfer, file, progress)?;
    let mut reader = File::open(&arrived.blob).map_err(unreachable)?;
    let placed = place::write(&mut reader, file, dir, progress);
    // Right or wrong, it is not needed there any more: right bytes have their place, wrong ones must not be resumed. The pointer goes
    // first: `hf-hub` stumbles over one that points nowhere.
    if let Some(pointer) = arrived.pointer {
        let _ = fs::remove_file(pointer);
    }
    let _ = fs::remove_file(&arrived.blob);
    Ok(placed?)
}

fn unreachable(error: impl std::fmt::Display) -> SourceError {
    SourceError::Unreachable(error.to_string())
}

/// What the transfer's thread tells.
enum Sign {
    Bytes(u64),
    Done(Result<Arrived, SourceError>),
}

/// Where the bytes lie in `hf-hub`'s own cache.
struct Arrived {
    blob: PathBuf,
    pointer: Option<PathBuf>,
}

/// Runs the transfer in a thread, so that a hub that falls silent does not hang us. Such a thread ends with its connection.
fn watched(
    transfer: Transfer,
    file: &CatalogueFile,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Arrived, SourceError> {
    let (tell, signs) = mpsc::channel();
    let worker = thread::spawn(move || {
        let result = transfer.run(&tell);
        let _ = tell.send(Sign::Done(result));
    });
    let stage = format!("downloading {}", file.name);
    loop {
        match signs.recv_timeout(STALL_TIMEOUT) {
            Ok(Sign::Bytes(done)) => {
                progress(Progress { stage: &stage, done, total: Some(file.bytes), unit: Unit::Bytes });
            }
            Ok(Sign::Done(result)) => return result,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                return Err(SourceError::Unreachable(format!(
                    "the hub was silent for {} s; what arrived is kept, the next pull goes on from there",
                    STALL_TIMEOUT.as_secs()
                )));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let _ = worker.join();
                return Err(SourceError::Unreachable("the hub sent more bytes than it announced".to_owned()));
            }
        }
    }
}

struct Transfer {
    api: Api,
    cache: Cache,
    repo: Repo,
    member: String,
    url: String,
    expected_bytes: u64,
}

impl Transfer {
    fn run(&self, tell: &mpsc::Sender<Sign>) -> Result<Arrived, SourceError> {
        let metadata = self.api.metadata(&self.url).map_err(unreachable)?;
        // The hub's words become file names in `hf-hub`'s cache: look at them first.
        for word in [metadata.etag().trim_start_matches("W/"), metadata.commit_hash()] {
            let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
            if !plain {
                return Err(SourceError::Unreachable(format!(
                    "the hub named a file version `{word}`, which is no hash"
                )));
            }
        }
        if metadata.size() as u64 != self.expected_bytes {
            return Err(
                place::PlaceError::Size { found: metadata.size().to_string(), expected: self.expected_bytes }.into()
            );
        }

        let mut part = self.cache.repo(self.repo.clone()).blob_path(metadata.etag());
        part.set_extension("part");
        let part_bytes = || fs::metadata(&part).map_or(0, |found| found.len());
        let mut failure: Option<ApiError> = None;
        for _ in 0..=RESUMES {
            let before = part_bytes();
            if before == self.expected_bytes {
                // Killed after the last byte: `hf-hub` would ask for the bytes after it, which no hub has.
                return Ok(Arrived { blob: part, pointer: None });
            }
            if before > self.expected_bytes {
                let _ = fs::remove_file(&part);
            }
            // `hf-hub`'s own retries may write from the start behind what is there, so it gets none.
            match self.fetch(tell) {
                Ok(pointer) => {
                    let blob = fs::canonicalize(&pointer).map_err(unreachable)?;
                    return Ok(Arrived { blob, pointer: Some(pointer) });
                }
                Err(error) if part_bytes() > before => failure = Some(error),
                Err(error) => return Err(unreachable(error)),
            }
        }
        Err(unreachable(failure.map_or_else(String::new, |error| error.to_string())))
    }

    fn fetch(&self, tell: &mpsc::Sender<Sign>) -> Result<PathBuf, ApiError> {
        let count = Count { done: 0, limit: self.expected_bytes, tell: tell.clone() };
        self.api.repo(self.repo.clone()).download_with_progress(&self.member, count)
    }
}

/// Counts `hf-hub`'s bytes, and ends the transfer where there are too many or nobody waits any more.
struct Count {
    done: u64,
    limit: u64,
    tell: mpsc::Sender<Sign>,
}

impl hf_hub::api::Progress for Count {
    fn init(&mut self, _: usize, _: &str) {
        self.done = 0;
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        if self.done > self.limit || self.tell.send(Sign::Bytes(self.done)).is_err() {
            // `hf-hub` gives its observer no other way to stop: this unwinds the transfer's thread without a word on stderr.
            panic::resume_unwind(Box::new("transfer ended"));
        }
    }

    fn finish(&mut self) {}
}

/// Tries to reach the hub, or the proxy that stands before it, so that a machine without a network hears of it at once.
fn connect(url: &str) -> Result<(), SourceError> {
    let uri: Uri =
        url.parse().ok().filter(|uri: &Uri| uri.scheme().is_some() && uri.host().is_some()).ok_or_else(|| {
            SourceError::Unreachable(format!(
                "HF_ENDPOINT must be an address such as `https://hub.example.com`, but makes `{url}`"
            ))
        })?;
    // `hf-hub`'s client takes its proxy from the environment in this very way.
    let proxy = ureq::Proxy::try_from_env().filter(|proxy| !proxy.is_no_proxy(&uri));
    let (whom, host, port) = match &proxy {
        Some(proxy) => ("proxy", proxy.host(), proxy.port()),
        None => {
            let default_port = if uri.scheme_str() == Some("http") { 80 } else { 443 };
            ("hub", uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(default_port))
        }
    };
    let failed = |why: String| SourceError::Unreachable(format!("cannot reach the {whom} `{host}:{port}`: {why}"));
    // A literal IPv6 address has brackets in an address and none here.
    let addresses =
        (host.trim_matches(['[', ']']), port).to_socket_addrs().map_err(|error| failed(error.to_string()))?;
    let mut last = "no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(failed(last))
}
