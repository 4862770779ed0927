//! A second `metier serve` beside this process: the demo's stand-in for an LLM, the server under a bench, the server under a test.
//!
//! The child ends with its parent: it is started with `--until-stdin-closes`, and its standard input is a pipe that this process
//! holds. A parent that is killed closes it without having to do anything.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

/// A server with its models in the cache is ready within two seconds; slow disks get more.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// What the ready line on standard output begins with.
pub const READY: &str = "ready on ";
/// Lines of the child's log that an error repeats.
const TAIL_LINES: usize = 6;

/// Why a child server is not there.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// The system cannot start it.
    #[error("cannot start `{} serve`", exe.display())]
    Start {
        /// The program.
        exe: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It ended before it was ready.
    #[error("the server ended before it was ready ({status}):\n{tail}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        tail: String,
    },
    /// It is not ready in time.
    #[error("the server was not ready within {} s; its log is `{}`", READY_TIMEOUT.as_secs(), log.display())]
    Slow {
        /// Its log.
        log: PathBuf,
    },
}

/// A running `metier serve`; killed when dropped.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    stdin: Option<ChildStdin>,
    url: String,
    ready_after: Duration,
}

impl ServerProcess {
    /// Starts `exe serve ARGS` on a free loopback port unless `args` say otherwise, and waits for its ready line. Its log goes to `log`.
    ///
    /// # Errors
    /// It cannot be started, ends early, or takes too long.
    pub fn start<A: AsRef<OsStr>>(
        exe: &Path,
        args: &[A],
        environment: &[(&str, OsString)],
        log: &Path,
    ) -> Result<Self, ChildError> {
        let start = |source| ChildError::Start { exe: exe.to_owned(), source };
        let begun = Instant::now();
        let mut command = Command::new(exe);
        command.args(["serve", "--until-stdin-closes"]);
        if !args.iter().any(|arg| arg.as_ref() == "--bind") {
            command.args(["--bind", "127.0.0.1:0"]);
        }
        let mut child = command
            .args(args)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(log).map_err(start)?)
            .spawn()
            .map_err(start)?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("standard output was asked to be a pipe");
        let (tell, told) = mpsc::channel();
        // Reads on after the ready line, so that the child never blocks on a full pipe; ends with the child.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(url) = line.strip_prefix(READY) {
                    let _ = tell.send(url.to_owned());
                }
            }
        });
        let mut this = Self { child, stdin, url: String::new(), ready_after: Duration::ZERO };
        match told.recv_timeout(READY_TIMEOUT) {
            Ok(url) => {
                this.url = url;
                this.ready_after = begun.elapsed();
                Ok(this)
            }
            Err(mpsc::RecvTimeoutError::Timeout) => Err(ChildError::Slow { log: log.to_owned() }),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = this.child.wait().map_err(start)?;
                Err(ChildError::Ended { status, tail: tail(log) })
            }
        }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// From start to the ready line.
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// Lets it finish what it does and end; waits for that.
    ///
    /// # Errors
    /// The system cannot tell how it ended.
    pub fn stop(mut self) -> io::Result<ExitStatus> {
        drop(self.stdin.take());
        self.child.wait()
    }

    /// Waits for it to end by itself, as after a signal.
    ///
    /// # Errors
    /// The system cannot tell how it ended.
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        // `Child::wait` would close a standard input that is still inside the child: ours is outside.
        self.child.wait()
    }

    /// Ends it as a power cut would: SIGKILL.
    ///
    /// # Errors
    /// The system cannot end it.
    pub fn kill(mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a log, indented.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..]
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
