//! `metier audit`: the record, read without trusting it. Nothing here writes to a log.

use std::{
    fs,
    io::{self, BufWriter, Read as _, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use metier_gateway::audit::{
    self, AuditError, DATABASE_FILE, MAX_RECEIPT_BYTES, PUBLIC_KEY_FILE, Receipt, VerifierKey,
};
use serde_json::json;

use super::{CommonArgs, Failure, Outcome, found, line};

/// The record: verify it, look at it, prove one entry of it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  metier audit head --output monday.head           keep this elsewhere: it pins everything recorded so far
  metier audit verify --head monday.head           exit code 1 if a byte was changed or the tail is missing
  metier audit show 0192f3a4b5c6…                  the entries of one request
  metier audit prove 0192f3a4b5c6… --output r.txt  a receipt that stands alone
  metier audit verify-receipt r.txt --key audit.pub
  metier audit export --output log.jsonl")]
pub struct AuditArgs {
    #[command(subcommand)]
    verb: AuditVerb,
    /// Folder of the audit log; default: as `metier serve`
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Public key of the log; default: `audit.pub` in the folder. Bring your own copy where you do not trust the folder
    #[arg(long, global = true, value_name = "FILE")]
    key: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Subcommand)]
enum AuditVerb {
    /// Recompute every hash from the entries and compare with the signed heads
    Verify {
        /// A head that was saved earlier, elsewhere: its entries must still be there, unchanged
        #[arg(long, value_name = "FILE")]
        head: Option<PathBuf>,
    },
    /// The entries of one request
    Show {
        /// Receipt id (`x-metier-receipt`) or request id (`x-request-id`)
        id: String,
    },
    /// A receipt for a request's last entry: verifies offline, against the public key alone
    Prove {
        /// Receipt id (`x-metier-receipt`) or request id (`x-request-id`)
        id: String,
        /// Where to; default: stdout
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Every entry as a JSON line, verified on the way
    Export {
        /// Where to; default: stdout. A file appears only if the whole log verified
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// The latest signed head
    Head {
        /// Where to; default: stdout
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Verify a receipt offline; needs `--key`, and no log
    VerifyReceipt {
        /// The receipt
        file: PathBuf,
    },
}

/// Runs the verb.
pub fn run(args: &AuditArgs) -> Outcome {
    let as_json = args.common.json;
    if let AuditVerb::VerifyReceipt { file } = &args.verb {
        let Some(key) = &args.key else {
            return Err(Failure::usage(anyhow::anyhow!(
                "`metier audit verify-receipt` trusts only a key that you name: add `--key FILE` (the log's `{PUBLIC_KEY_FILE}`, from a place you trust)"
            )));
        };
        return verify_receipt(file, key, as_json);
    }
    let log = Log::at(args)?;
    match &args.verb {
        AuditVerb::Verify { head } => verify(&log, head.as_deref(), as_json),
        AuditVerb::Show { id } => show(&log, id, as_json),
        AuditVerb::Prove { id, output } => {
            let receipt = audit::prove(&log.database, id, &log.key).map_err(failure)?;
            hand_out("receipt", &receipt.to_string(), output.as_deref(), as_json)
        }
        AuditVerb::Export { output } => export(&log, output.as_deref(), as_json),
        AuditVerb::Head { output } => {
            let head = audit::head(&log.database, &log.key).map_err(failure)?;
            hand_out("head", head.text(), output.as_deref(), as_json)
        }
        AuditVerb::VerifyReceipt { .. } => unreachable!("it needs no log and was run above"),
    }
}

/// A log on disk and the key that it is measured against.
struct Log {
    database: PathBuf,
    key: VerifierKey,
}

impl Log {
    fn at(args: &AuditArgs) -> Result<Self, Failure> {
        let (settings, environment) = args.common.settings()?;
        let state = match &args.state {
            Some(dir) => dir.clone(),
            None => settings.state_dir(&environment).map_err(Failure::usage)?,
        };
        let database = state.join(DATABASE_FILE);
        if !database.is_file() {
            return Err(Failure::environment(anyhow::anyhow!(
                "there is no audit log `{}`: `metier serve` starts one, `--state DIR` names another folder",
                database.display()
            )));
        }
        let key = audit::read_key(args.key.as_deref().unwrap_or(&state.join(PUBLIC_KEY_FILE))).map_err(failure)?;
        Ok(Self { database, key })
    }
}

/// An audit error is a finding, unless the words or the disk are in the way.
fn failure(error: AuditError) -> Failure {
    match error {
        AuditError::Unknown(_) => Failure::usage(error),
        AuditError::File { .. } | AuditError::InUse(_) | AuditError::Export(_) | AuditError::Random(_) => {
            Failure::environment(error)
        }
        // A database that cannot be read as one is not what was written: for whoever verifies that is a finding too.
        _ => found(error),
    }
}

fn verify(log: &Log, head: Option<&Path>, as_json: bool) -> Outcome {
    let head = head.map(|path| audit::open_head_file(path, &log.key)).transpose().map_err(failure)?;
    let verified = audit::verify(&log.database, head.as_ref(), &log.key).map_err(failure)?;
    if as_json {
        line(&verified);
        return Ok(());
    }
    println!("{}: verified", log.database.display());
    println!("  entries  {}, root {}", verified.entries, verified.root);
    println!("  key      {}", log.key);
    match verified.saved_head_entries {
        Some(n) => println!("  head     the first {n} entries are those of the saved head"),
        None => println!(
            "  head     none was given: whoever holds the folder and the key could have rewritten all of it (`metier audit head` saves one)"
        ),
    }
    if verified.open > 0 {
        println!("  open     {} requests are in flight, or were when a server died", verified.open);
    }
    if !verified.head_beside {
        println!(
            "  note     the head file beside the database is missing: a lost tail would go unnoticed without `--head`"
        );
    }
    Ok(())
}

fn show(log: &Log, id: &str, as_json: bool) -> Outcome {
    for (leaf, entry) in audit::show(&log.database, id).map_err(failure)? {
        if as_json {
            line(&json!({"leaf": leaf, "entry": entry}));
            continue;
        }
        println!("entry {leaf}");
        let facts = serde_json::to_value(&entry).expect("an entry has string keys and whole numbers");
        for (name, value) in facts.as_object().into_iter().flatten() {
            match value.as_str() {
                Some(text) => println!("  {name:18} {text}"),
                None => println!("  {name:18} {value}"),
            }
        }
    }
    Ok(())
}

fn export(log: &Log, output: Option<&Path>, as_json: bool) -> Outcome {
    let mut verified = None;
    write_whole(output, |out| {
        verified = Some(audit::export(&log.database, &log.key, out).map_err(failure)?);
        Ok(())
    })?;
    if let (Some(path), Some(verified)) = (output, verified) {
        if as_json {
            line(&json!({"output": path, "entries": verified.entries, "root": verified.root}));
        } else {
            println!("{} verified entries in {}", verified.entries, path.display());
        }
    }
    Ok(())
}

fn verify_receipt(file: &Path, key: &Path, as_json: bool) -> Outcome {
    let key = audit::read_key(key).map_err(failure)?;
    let mut bytes = Vec::new();
    fs::File::open(file)
        // One byte more than is read: what is longer is no receipt.
        .and_then(|opened| opened.take(MAX_RECEIPT_BYTES as u64 + 1).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read the receipt `{}`", file.display()))
        .map_err(Failure::Environment)?;
    let verified = Receipt::verify(&bytes, &key).map_err(failure)?;
    if as_json {
        line(
            &json!({"verified": true, "leaf": verified.leaf, "entries": verified.head.size(), "entry": verified.entry}),
        );
    } else {
        println!(
            "verified: entry {} of the log `{}`, under its signed head over {} entries",
            verified.leaf,
            verified.head.origin(),
            verified.head.size()
        );
        println!("{}", serde_json::to_string_pretty(&verified.entry).expect("an entry is plain data"));
    }
    Ok(())
}

/// Text to a file, whole or not at all, or to stdout.
fn hand_out(what: &str, text: &str, output: Option<&Path>, as_json: bool) -> Outcome {
    match output {
        None if as_json => line(&json!({what: text})),
        None => print!("{text}"),
        Some(path) => {
            write_whole(output, |out| out.write_all(text.as_bytes()).map_err(|error| cannot_write(path, error)))?;
            if as_json { line(&json!({"output": path})) } else { println!("{what} in {}", path.display()) }
        }
    }
    Ok(())
}

/// Runs `write` on stdout, or on a file that appears under its name only when all of it is there. A pipe or a device is written directly:
/// renaming over it would replace it.
fn write_whole(output: Option<&Path>, write: impl FnOnce(&mut dyn Write) -> Outcome) -> Outcome {
    let Some(path) = output else {
        let mut out = BufWriter::new(io::stdout().lock());
        write(&mut out)?;
        return out.flush().context("cannot write to stdout").map_err(Failure::Environment);
    };
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        let device = fs::File::options().write(true).open(path).map_err(|error| cannot_write(path, error))?;
        let mut out = BufWriter::new(device);
        write(&mut out)?;
        return out.flush().map_err(|error| cannot_write(path, error));
    }
    let mut staged = staged(path)?;
    {
        let mut out = BufWriter::new(staged.as_file_mut());
        write(&mut out)?;
        out.flush().map_err(|error| cannot_write(path, error))?;
    }
    staged.persist(path).map_err(|error| cannot_write(path, error.error))?;
    Ok(())
}

fn staged(path: &Path) -> Result<tempfile::NamedTempFile, Failure> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // As any other file of the user's: temporary files are private by default, heads and receipts are made to be given away.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(dir).map_err(|error| cannot_write(path, error))
}

fn cannot_write(path: &Path, error: io::Error) -> Failure {
    Failure::Environment(anyhow::Error::new(error).context(format!("cannot write `{}`", path.display())))
}
