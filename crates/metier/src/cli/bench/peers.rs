//! Their side: llama.cpp's own programs and onnxruntime, as `bench/peers/setup.sh` built them. Each has a deadline; each is ended by its
//! process id when it is dropped.

use std::{
    ffi::OsString,
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use metier_model::TokenId;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    runtime::Runtime,
    time::timeout,
};

use super::{
    super::Failure,
    ours::{Clients, Perplexity, served},
};

/// One run of `llama-bench` or `llama-batched-bench`: the 1 B shape needs about half a minute on two cores.
const RUN_TIMEOUT: Duration = Duration::from_secs(240);
/// One text read chunk by chunk: half a minute on two idle cores.
const PERPLEXITY_TIMEOUT: Duration = Duration::from_secs(900);
/// Until a server has loaded its model and eight adapters.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// One request, queued behind seven others.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(240);
/// Between questions to a server that is not ready yet.
const POLL: Duration = Duration::from_millis(50);
/// Tokens of a slot of the server.
const SLOT_TOKENS: usize = 1024;
/// The script that `setup.sh` uses too; it travels in the binary, so that a bench needs the folder alone.
const MINILM: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/peers/minilm_onnx.py"));

/// The folder of the peers.
pub(super) struct Peers {
    dir: PathBuf,
    threads: usize,
    runtime: Runtime,
    http: reqwest::Client,
}

impl Peers {
    pub(super) fn open(dir: &Path, threads: usize) -> Result<Self, Failure> {
        let open = || {
            let dir =
                dir.canonicalize().with_context(|| format!("cannot open the peers' folder `{}`", dir.display()))?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.context("cannot start a client")?;
            // The server closes a connection that was idle for some seconds, as it is while ours is measured: each request gets its own.
            let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).pool_max_idle_per_host(0);
            let http = http.timeout(REQUEST_TIMEOUT).build();
            let http = http.context("cannot make an HTTP client")?;
            Ok(Self { dir, threads, runtime, http })
        };
        open().map_err(Failure::Environment)
    }

    /// A file below the folder, if it is there.
    pub(super) fn file(&self, path: &str) -> Option<PathBuf> {
        Some(self.dir.join(path)).filter(|path| path.exists())
    }

    fn program(&self, name: &str) -> PathBuf {
        self.dir.join("build/bin").join(name)
    }

    /// `llama-bench`, one test: reading `read` tokens or writing `write`; tokens a second.
    pub(super) fn bench(&self, model: &Path, read: usize, write: usize) -> Result<f64, Failure> {
        let numbers = [("-t", self.threads), ("-p", read), ("-n", write), ("-r", 1)];
        let mut args: Vec<OsString> = vec!["-m".into(), model.into(), "-o".into(), "jsonl".into()];
        args.extend(numbers.iter().flat_map(|(flag, n)| [(*flag).into(), n.to_string().into()]));
        self.measured("llama-bench", &args, "avg_ts")
    }

    /// `llama-batched-bench`: `streams` at once that each read 64 tokens and write `write`; tokens a second of writing.
    pub(super) fn batched(&self, model: &Path, streams: usize, read: usize, write: usize) -> Result<f64, Failure> {
        let context = streams * (read + write);
        let numbers = [("-t", self.threads), ("-c", context), ("-npp", read), ("-ntg", write), ("-npl", streams)];
        let mut args: Vec<OsString> = vec!["-m".into(), model.into(), "--output-format".into(), "jsonl".into()];
        args.extend(numbers.iter().flat_map(|(flag, n)| [(*flag).into(), n.to_string().into()]));
        self.measured("llama-batched-bench", &args, "speed_tg")
    }

    fn measured(&self, program: &str, args: &[OsString], field: &str) -> Result<f64, Failure> {
        let run = async {
            let mut command = Command::new(self.program(program));
            command.args(args).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
            let output = timeout(RUN_TIMEOUT, command.output()).await;
            let output = output.with_context(|| format!("`{program}` took more than {} s", RUN_TIMEOUT.as_secs()))?;
            let output = output.with_context(|| format!("cannot run `{program}`"))?;
            let text = String::from_utf8_lossy(&output.stdout);
            let found = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let values: Vec<f64> = found.filter_map(|row| row[field].as_f64()).collect();
            let [value] = values[..] else { bail!("`{program}` ended with {} and no result", output.status) };
            Ok(value)
        };
        self.runtime.block_on(run).map_err(Failure::Environment)
    }

    /// `llama-perplexity` over the first `chunks` of 512 tokens of a text.
    pub(super) fn perplexity(&self, model: &Path, text: &Path, chunks: usize) -> Result<Perplexity, Failure> {
        let run = async {
            let mut command = Command::new(self.program("llama-perplexity"));
            command.arg("-m").arg(model).arg("-f").arg(text).args(["-c", "512", "-b", "512", "--chunks"]);
            command.args([chunks.to_string(), "-t".to_owned(), self.threads.to_string()]);
            command.stdin(Stdio::null()).kill_on_drop(true);
            let output = timeout(PERPLEXITY_TIMEOUT, command.output()).await;
            let output = output.context("`llama-perplexity` took more than a quarter of an hour")?;
            let output = output.context("cannot run `llama-perplexity`")?;
            // On either stream, by version: `Final estimate: PPL = 14.2517 +/- 0.30611`.
            let text =
                [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
            let found = text.split_once("Final estimate: PPL = ").and_then(|(_, rest)| {
                let (value, rest) = rest.split_once(" +/- ")?;
                Some((value.trim().parse().ok()?, rest.split_whitespace().next()?.parse().ok()?))
            });
            let Some((value, error)) = found else {
                bail!("`llama-perplexity` ended with {} and no result", output.status)
            };
            Ok(Perplexity { value, error, tokens: chunks * 255 })
        };
        self.runtime.block_on(run).map_err(Failure::Environment)
    }

    /// A server of one model on a free loopback port.
    pub(super) fn serve(&self, model: &Path, adapters: &[PathBuf], slots: usize) -> Result<Server<'_>, Failure> {
        let start = async {
            let port =
                TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).context("no free port")?.port();
            let log = self.dir.join("llama-server.log");
            let log = File::create(&log).with_context(|| format!("cannot write `{}`", log.display()))?;
            let mut command = Command::new(self.program("llama-server"));
            command.args(["--host", "127.0.0.1", "--no-warmup", "--port", &port.to_string(), "-m"]).arg(model);
            let threads = self.threads.to_string();
            command.args(["-t", &threads, "-tb", &threads, "-np", &slots.to_string()]);
            command.args(["-c", &(slots * SLOT_TOKENS).to_string()]);
            for adapter in adapters {
                command.arg("--lora").arg(adapter);
            }
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
            let mut child = command.spawn().context("cannot run `llama-server`")?;
            let url = format!("http://127.0.0.1:{port}");
            let begun = Instant::now();
            loop {
                if let Some(status) = child.try_wait().context("cannot wait for `llama-server`")? {
                    bail!("`llama-server` ended with {status}");
                }
                let health = self.http.get(format!("{url}/health")).send().await;
                if health.is_ok_and(|health| health.status().is_success()) {
                    break;
                }
                if begun.elapsed() > READY_TIMEOUT {
                    bail!("`llama-server` was not ready within {} s", READY_TIMEOUT.as_secs());
                }
                tokio::time::sleep(POLL).await;
            }
            Ok(Server { peers: self, _child: child, url, adapters: adapters.len() })
        };
        self.runtime.block_on(start).map_err(Failure::Environment)
    }

    /// onnxruntime with MiniLM.
    pub(super) fn minilm(&self) -> Result<Onnx<'_>, Failure> {
        let start = async {
            let mut command = Command::new(self.dir.join("venv/bin/python"));
            command.args(["-c", MINILM, "bench"]).arg(self.dir.join("minilm"));
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
            let mut child = command.spawn().context("cannot run the peers' Python")?;
            let stdin = child.stdin.take().expect("standard input was asked to be a pipe");
            let stdout = child.stdout.take().expect("standard output was asked to be a pipe");
            Ok(Onnx { peers: self, _child: child, stdin, answers: BufReader::new(stdout).lines() })
        };
        self.runtime.block_on(start).map_err(Failure::Environment)
    }
}

/// A running `llama-server`.
pub(super) struct Server<'a> {
    peers: &'a Peers,
    _child: Child,
    url: String,
    adapters: usize,
}

/// What a request of the server took.
struct Asked {
    first_ms: f64,
    tokens: usize,
}

impl Server<'_> {
    /// As [`super::ours::clients`], over HTTP.
    pub(super) fn clients(&self, plan: Clients, mixed: bool, prompts: &[Vec<TokenId>]) -> Result<Vec<f64>, Failure> {
        let ask_all = async {
            let begun = Instant::now();
            let one = |client: usize| async move {
                let mut asked = Vec::new();
                for round in 0..plan.rounds {
                    let prompt = &prompts[round * plan.clients + client];
                    let adapter = mixed.then(|| client % self.adapters);
                    asked.push(self.ask(prompt, plan.new_tokens, adapter, None).await?);
                }
                anyhow::Ok(asked)
            };
            let asked = futures_util::future::try_join_all((0..plan.clients).map(one)).await?;
            let whole = begun.elapsed();
            let asked: Vec<Asked> = asked.into_iter().flatten().collect();
            let firsts: Vec<f64> = asked.iter().map(|asked| asked.first_ms).collect();
            Ok(served(asked.iter().map(|asked| asked.tokens).sum(), whole, &firsts))
        };
        self.peers.runtime.block_on(ask_all).map_err(Failure::Environment)
    }

    /// Milliseconds to the first token, in the slot that is named, whose cache is used.
    pub(super) fn first_token(&self, prompt: &[TokenId], adapter: usize, slot: usize) -> Result<f64, Failure> {
        let asked = self.peers.runtime.block_on(self.ask(prompt, 1, Some(adapter), Some(slot)));
        Ok(asked.map_err(Failure::Environment)?.first_ms)
    }

    /// Every scale is named: an adapter that a request leaves out would otherwise keep the scale that it was loaded with.
    async fn ask(
        &self,
        prompt: &[TokenId],
        new_tokens: usize,
        adapter: Option<usize>,
        slot: Option<usize>,
    ) -> anyhow::Result<Asked> {
        let scales: Vec<Value> = (0..self.adapters)
            .map(|id| json!({"id": id, "scale": if adapter == Some(id) { 1.0 } else { 0.0 }}))
            .collect();
        let mut body = json!({
            "prompt": prompt.iter().map(|id| id.0).collect::<Vec<_>>(),
            "n_predict": new_tokens,
            "ignore_eos": true,
            "temperature": 0,
            "stream": true,
            "cache_prompt": slot.is_some(),
            "lora": scales,
        });
        if let Some(slot) = slot {
            body["id_slot"] = json!(slot);
        }
        let begun = Instant::now();
        let mut response = self.peers.http.post(format!("{}/completion", self.url)).json(&body).send().await?;
        if !response.status().is_success() {
            bail!("`llama-server` answered {}: {}", response.status(), response.text().await.unwrap_or_default());
        }
        let (mut first_ms, mut text) = (None, String::new());
        while let Some(chunk) = response.chunk().await.context("the stream of `llama-server` broke off")? {
            first_ms.get_or_insert_with(|| begun.elapsed().as_secs_f64() * 1e3);
            text.push_str(&String::from_utf8_lossy(&chunk));
        }
        let last = text.lines().filter_map(|line| line.strip_prefix("data: ")).next_back();
        let last: Value =
            serde_json::from_str(last.unwrap_or_default()).context("the stream ended without a result")?;
        let tokens = last["tokens_predicted"].as_u64().ok_or_else(|| anyhow!("the stream ended without a count"))?;
        Ok(Asked { first_ms: first_ms.unwrap_or(f64::NAN), tokens: usize::try_from(tokens)? })
    }
}

/// A running onnxruntime.
pub(super) struct Onnx<'a> {
    peers: &'a Peers,
    _child: Child,
    stdin: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Onnx<'_> {
    /// Sentences a second, median over the repeats; and the first text's vector.
    pub(super) fn embed(&mut self, dtype: &str, texts: &[&str], repeats: usize) -> Result<(f64, Vec<f32>), Failure> {
        let question = json!({"dtype": dtype, "texts": texts, "repeats": repeats});
        let ask = async {
            self.stdin.write_all(format!("{question}\n").as_bytes()).await.context("onnxruntime has ended")?;
            let line = timeout(REQUEST_TIMEOUT, self.answers.next_line()).await.context("onnxruntime is too slow")?;
            let line = line.context("cannot read from onnxruntime")?.context("onnxruntime has ended")?;
            let answer: Value = serde_json::from_str(&line).context("onnxruntime answered no JSON")?;
            let seconds: Vec<f64> = serde_json::from_value(answer["seconds"].clone())?;
            let vector: Vec<f32> = serde_json::from_value(answer["vector"].clone())?;
            let rates: Vec<f64> = seconds.iter().map(|seconds| texts.len() as f64 / seconds).collect();
            anyhow::Ok((super::measure::at_quantile(&rates, 0.5), vector))
        };
        self.peers.runtime.block_on(ask).map_err(Failure::Environment)
    }
}
