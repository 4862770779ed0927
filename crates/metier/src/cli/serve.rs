//! `metier serve`: the server, from arguments to the last byte.
//!
//! ```text
//! settings ─► port bound ─► models here ─► log verified, orphans closed ─► gateway ─► specialists, adapters ─► "ready on …" ─► … ─► stop ─► grace ─► log closed
//! ```

use std::{
    collections::BTreeSet,
    io::IsTerminal as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use metier_gateway::{BackendConfig, Gateway, GatewayConfig, Limits, LocalModels, Meter, OpenError, Secret};
use metier_model::{Decoder, SpecialistStore, adapter::LoraFormat, specialist::Registry};

use super::{Failure, Outcome, bases, child::READY, desk};
use crate::{
    config::{AdapterFormat, BackendSettings, Boundary, Environment, PrefixCache, Settings, variable},
    server,
};

/// Threads that speak HTTP; arithmetic has threads of its own.
const HTTP_THREADS: usize = 2;
/// How long requests that were cut may take to be closed on record.
const LAST_ENTRIES: Duration = Duration::from_secs(2);
/// Threads that may block on files beside them.
const BLOCKING_THREADS: usize = 8;

/// Serves specialists, base models, their adapters and `auto` behind the OpenAI API.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  metier serve                                        every specialist of the store on http://127.0.0.1:8080/v1
  metier serve --bind 127.0.0.1:0 --ready-file ready  a free port, written to a file once it answers
  metier serve --backend llm=https://api.example/v1,big-model,outside
  metier serve --base-only                            the decoder alone, as an OpenAI-compatible model")]
pub struct ServeArgs {
    /// Settings; default: `metier.toml` in the working folder, if there
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address and port; only loopback while there are no API keys
    #[arg(long, value_name = "ADDRESS:PORT")]
    bind: Option<SocketAddr>,
    /// Folder of the audit log and its keys, and of the specialists unless `--specialists` says otherwise
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Folder of the specialists
    #[arg(long, value_name = "DIR")]
    specialists: Option<PathBuf>,
    /// Folder of LoRA adapters, each in a folder of its own as PEFT saves it
    #[arg(long, value_name = "DIR")]
    adapters: Option<PathBuf>,
    /// A place that answers when a specialist defers: NAME=URL,MODEL,inside|outside
    #[arg(long = "backend", value_name = "SPEC", value_parser = backend)]
    backends: Vec<BackendSettings>,
    /// Serve the decoder and its adapters alone: no specialists, no encoder, no `auto`
    #[arg(long)]
    base_only: bool,
    /// Written, with the URL, once requests are answered
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// What is logged on stderr: error, warn, info, debug, or a filter such as `metier=debug,info`
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
    /// Stop when standard input ends: for a server that must not outlive its starter
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

/// `name=URL,model,inside|outside`; the rest of a backend's settings stands in `metier.toml`.
fn backend(text: &str) -> Result<BackendSettings, String> {
    let parts = text.split_once('=').map(|(name, rest)| (name, rest.split(',').collect::<Vec<_>>()));
    let Some((name, [url, model, boundary])) = parts.as_ref().map(|(name, parts)| (*name, parts.as_slice())) else {
        return Err("must be NAME=URL,MODEL,inside|outside".to_owned());
    };
    let boundary = match *boundary {
        "inside" => Boundary::Inside,
        "outside" => Boundary::Outside,
        other => return Err(format!("`{other}` is neither `inside` nor `outside`")),
    };
    Ok(BackendSettings::new(name, *url, *model, boundary))
}

/// Runs the server until it is asked to stop.
pub fn run(args: &ServeArgs) -> Outcome {
    log_to_stderr(&args.log)?;
    let mut environment = Environment::read();
    // The command line stands above the environment, which stands above the file.
    environment.state = args.state.clone().or(environment.state);
    let settings = settings(args)?;
    // Before anything that takes time: a port in use is told at once.
    let listener = server::bind(settings.server.bind).map_err(|error| match error {
        server::ListenError::NotLoopback(_) => Failure::usage(error),
        server::ListenError::Bind { .. } => Failure::environment(error),
    })?;
    let port =
        listener.local_addr().context("cannot ask the system for the port").map_err(Failure::Environment)?.port();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .context("cannot start the threads that speak HTTP")
        .map_err(Failure::Environment)?;
    let decoder = bases::decoder(&settings, &environment)?.map(Arc::new);
    let with = With { encoder: !args.base_only, backends: !args.base_only };
    let gateway = Arc::new(open_gateway(with, &settings, &environment, decoder.clone())?);
    let adapters = decoder.map(|decoder| open_adapters(&gateway, &settings, &environment, decoder)).transpose()?;
    let shelf = if args.base_only { None } else { Some(open_shelf(&gateway, &settings, &environment)?) };
    let router = server::router(Arc::new(server::App::new(Arc::clone(&gateway), port, &settings.server)));
    let grace = Duration::from_millis(settings.server.grace_ms);
    runtime.block_on(async {
        if let Some(shelf) = shelf {
            let gateway = Arc::clone(&gateway);
            // Ends with the runtime.
            tokio::spawn(server::watch(shelf, move |shelf| {
                if shelf.look() {
                    gateway.reload_specialists(shelf.specialists());
                }
            }));
        }
        if let Some(shelf) = adapters {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(server::watch(shelf, move |shelf| shelf.look(&gateway)));
        }
        announce(&listener, args.ready_file.as_deref())?;
        let finished = server::serve(listener, router, server::stop(args.until_stdin_closes), grace)
            .await
            .context("cannot serve on the socket")
            .map_err(Failure::Environment)?;
        if !finished {
            tracing::warn!(grace_ms = settings.server.grace_ms, "requests that were still running have been cut");
        }
        gateway.shutdown(LAST_ENTRIES).await;
        Ok(())
    })
}

/// What a gateway has beside its decoder and its record.
#[derive(Clone, Copy, Debug)]
pub(super) struct With {
    pub(super) encoder: bool,
    pub(super) backends: bool,
}

/// Models, record and backends.
pub(super) fn open_gateway(
    with: With,
    settings: &Settings,
    environment: &Environment,
    decoder: Option<Arc<Decoder>>,
) -> Result<Gateway, Failure> {
    let pool = bases::pool(settings, environment)?;
    let encoder = if with.encoder { Some(Arc::new(bases::encoder(settings, environment)?)) } else { None };
    let backends = if with.backends { backends(settings)? } else { Vec::new() };
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).context("cannot get random bytes").map_err(Failure::Environment)?;
    let config = GatewayConfig {
        state_dir: settings.state_dir(environment).map_err(Failure::usage)?,
        backends,
        meter: Meter::default(),
        limits: Limits { max_concurrency: settings.server.max_concurrency, max_queue: settings.server.max_queue },
        share_prefixes: settings.server.prefix_cache == PrefixCache::Shared,
        retry_seed: u64::from_le_bytes(seed),
    };
    Gateway::open(config, LocalModels { encoder, decoder, pool }, Box::new(server::now_ms)).map_err(|error| match error
    {
        OpenError::Backend(_) | OpenError::BackendTwice(_) => Failure::usage(error),
        OpenError::Audit { .. } | OpenError::Thread(..) => Failure::environment(error),
    })
}

/// The specialists that are live now, in service.
fn open_shelf(gateway: &Gateway, settings: &Settings, environment: &Environment) -> Result<server::Shelf, Failure> {
    let dir = settings.specialists_dir(environment).map_err(Failure::usage)?;
    let registry = Registry::new(SpecialistStore::open(&dir).map_err(Failure::environment)?);
    if settings.registry.require_approval {
        // This deployment's key is there before the first build asks for it: else its own records would be a stranger's.
        let state = settings.state_dir(environment).map_err(Failure::usage)?;
        desk::Desk::open(registry.store(), &state, environment)?;
    }
    let mut shelf = server::Shelf::new(registry, desk::trust(settings, environment)?);
    shelf.look();
    gateway.reload_specialists(shelf.specialists());
    Ok(shelf)
}

/// The adapters of the settings, which must all be good, and those that lie in their folder now, of which the good ones are served.
fn open_adapters(
    gateway: &Gateway,
    settings: &Settings,
    environment: &Environment,
    decoder: Arc<Decoder>,
) -> Result<server::AdapterShelf, Failure> {
    let opener = |format| server::AdapterOpener {
        decoder: Arc::clone(&decoder),
        format: match format {
            AdapterFormat::F16 => LoraFormat::F16,
            AdapterFormat::Int8 => LoraFormat::Int8,
        },
    };
    for adapter in &settings.adapters {
        let (named, served) = (&settings.models.decoder, &decoder.base().name);
        if adapter.base != *named && adapter.base != *served {
            let (name, base) = (&adapter.name, &adapter.base);
            let wrong = anyhow::anyhow!("the adapter `{name}` is for the base `{base}`, but the decoder is `{served}`");
            return Err(Failure::usage(wrong));
        }
        let served = opener(adapter.format).serve(gateway, &adapter.name, adapter.description.clone(), &adapter.path);
        let told = || format!("cannot serve the adapter `{}` in `{}`", adapter.name, adapter.path.display());
        served.with_context(told).map_err(Failure::Usage)?;
    }
    let names: BTreeSet<String> = settings.adapters.iter().map(|adapter| adapter.name.clone()).collect();
    let dir = settings.adapters_dir(environment).map_err(Failure::usage)?;
    let mut shelf = server::AdapterShelf::new(dir, opener(settings.models.adapter_format), names);
    shelf.look(gateway);
    Ok(shelf)
}

/// The backends of the settings, with their keys out of the environment.
fn backends(settings: &Settings) -> Result<Vec<BackendConfig>, Failure> {
    let read = |backend: &BackendSettings| {
        let key = |name: &String| {
            let unset = || anyhow::anyhow!("backend `{}` takes its key from `{name}`, which is not set", backend.name);
            variable(name).map(Secret).ok_or_else(|| Failure::usage(unset()))
        };
        Ok(BackendConfig {
            id: backend.name.clone(),
            url: backend.url.clone(),
            model: backend.model.clone(),
            boundary: match backend.boundary {
                Boundary::Inside => metier_gateway::Boundary::Inside,
                Boundary::Outside => metier_gateway::Boundary::Outside,
            },
            direct: backend.direct,
            api_key: backend.api_key_env.as_ref().map(key).transpose()?,
            deadline: Duration::from_millis(backend.deadline_ms),
            price: backend.price.clone(),
        })
    };
    settings.backend.iter().map(read).collect()
}

/// The file, with the command line on top.
fn settings(args: &ServeArgs) -> Result<Settings, Failure> {
    let mut settings = Settings::read(args.config.as_deref()).map_err(Failure::usage)?;
    if let Some(bind) = args.bind {
        settings.server.bind = bind;
    }
    if let Some(dir) = &args.specialists {
        settings.state.specialists = Some(dir.clone());
    }
    if let Some(dir) = &args.adapters {
        settings.state.adapters = Some(dir.clone());
    }
    for backend in &args.backends {
        settings.backend.retain(|known| known.name != backend.name);
        settings.backend.push(backend.clone());
    }
    Ok(settings)
}

fn log_to_stderr(filter: &str) -> Outcome {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .with_context(|| format!("`--log {filter}` is no filter"))
        .map_err(Failure::Usage)?;
    let terminal = std::io::stderr().is_terminal();
    // Fails only where a test has one already.
    let _ =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).try_init();
    Ok(())
}

/// Tells whoever waits: the line for programs, the file for scripts.
fn announce(listener: &std::net::TcpListener, ready_file: Option<&Path>) -> Outcome {
    let address = listener.local_addr().context("cannot ask the system for the port").map_err(Failure::Environment)?;
    let url = format!("http://{address}");
    if let Some(path) = ready_file {
        let mut staged = path.as_os_str().to_owned();
        staged.push(".new");
        std::fs::write(&staged, format!("{url}\n"))
            .and_then(|()| std::fs::rename(&staged, path))
            .with_context(|| format!("cannot write the ready file `{}`", path.display()))
            .map_err(Failure::Environment)?;
    }
    println!("{READY}{url}");
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn backends_are_read_from_the_command_line() {
        let read = backend("llm=https://api.example/v1,big,outside").unwrap();
        assert_eq!(
            (read.name.as_str(), read.url.as_str(), read.model.as_str()),
            ("llm", "https://api.example/v1", "big")
        );
        assert!(read.boundary == Boundary::Outside && !read.direct, "only a configuration file allows asking by name");
        for wrong in
            ["llm", "llm=https://x", "llm=https://x,big", "llm=https://x,big,abroad", "llm=https://x,big,outside,more"]
        {
            assert!(backend(wrong).is_err(), "{wrong}");
        }
    }
}
