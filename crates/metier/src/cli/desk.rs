//! The registry as the verbs use it: the key on disk, whose name goes on record, and the gate before anything answers.
//!
//! | File of the state folder | Holds | For |
//! |---|---|---|
//! | `registry.key` | the private key that signs records, readable by its owner only | this deployment |
//! | `registry.pub` | the public key | servers, and other registries that trust this one |

use std::{
    fs,
    io::{ErrorKind, Write as _},
    path::Path,
};

use anyhow::Context as _;
use metier_model::{
    Digest, Specialist, SpecialistStore,
    specialist::{
        Registry, RegistryError, RegistryKey,
        registry::{Pen, Standing, State, Trust, UNKNOWN},
    },
};
use metier_train::{
    BuildOutcome,
    build::Evidence,
    eval::card::{self, CARD, RUN},
};

use super::Failure;
use crate::{
    config::{Environment, Settings},
    server::now_ms,
};

const KEY_FILE: &str = "registry.key";
/// The public key, in the state folder.
pub const PUBLIC_KEY_FILE: &str = "registry.pub";

/// The keys that count here: this deployment's, if it has one, and those of the settings.
///
/// # Errors
/// A key of the settings is none, or the state folder cannot be read.
pub fn trust(settings: &Settings, environment: &Environment) -> Result<Trust, Failure> {
    let mut keys = Vec::new();
    for text in &settings.registry.trusted_keys {
        keys.push(text.parse().context("cannot use `registry.trusted_keys`").map_err(Failure::Usage)?);
    }
    let path = settings.state_dir(environment).map_err(Failure::usage)?.join(PUBLIC_KEY_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let key = text.parse().with_context(|| format!("cannot use `{}`", path.display()));
            keys.push(key.map_err(Failure::Environment)?);
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            return Err(Failure::environment(
                anyhow::Error::new(error).context(format!("cannot read `{}`", path.display())),
            ));
        }
    }
    Ok(Trust { keys, require_approval: settings.registry.require_approval })
}

/// A registry that is written to.
pub struct Desk {
    /// The store and its records.
    pub registry: Registry,
    key: RegistryKey,
    by: String,
}

impl Desk {
    /// The registry of a store, with this deployment's key, which is made if there is none yet.
    ///
    /// # Errors
    /// The key cannot be read or made.
    pub fn open(store: &SpecialistStore, state: &Path, environment: &Environment) -> Result<Self, Failure> {
        let by = environment.user.clone().unwrap_or_else(|| UNKNOWN.to_owned());
        let key = open_key(state)
            .with_context(|| format!("cannot use the registry's key in `{}`", state.display()))
            .map_err(Failure::Environment)?;
        Ok(Self { registry: Registry::new(store.clone()), key, by })
    }

    /// Who writes, now, with which key.
    pub fn pen<'a>(&'a self, note: Option<&'a str>) -> Pen<'a> {
        Pen { key: &self.key, by: &self.by, at_ms: now_ms(), note }
    }

    /// Puts a bundle that was just built on record; where no approval is required it answers from now on.
    ///
    /// # Errors
    /// The records cannot be written.
    pub fn built(&self, name: &str, id: Digest, require_approval: bool) -> Result<State, Failure> {
        self.registry.built(name, id, &self.pen(None)).map_err(failure)?;
        if !require_approval {
            self.registry.publish(name, id, &self.pen(None)).map_err(failure)?;
        }
        self.renew_card(name, id)?;
        let standing = self.registry.history(name).map_err(failure)?.standing(id);
        Ok(standing.map_or(State::Draft, |standing| standing.state))
    }

    /// Renders the card of a bundle again, with what the records say now. A bundle without its run keeps the card that it has.
    ///
    /// # Errors
    /// The records or the card cannot be read or written.
    pub fn renew_card(&self, name: &str, id: Digest) -> Result<(), Failure> {
        let dir = self.registry.store().place(name, id);
        let Some(run) = fs::read_to_string(dir.join(RUN)).ok() else { return Ok(()) };
        let Ok(outcome) = serde_json::from_str::<BuildOutcome>(&run) else { return Ok(()) };
        let specialist = Specialist::open(&dir).map_err(Failure::environment)?;
        let standing = self.registry.history(name).map_err(failure)?.standing(id);
        let text = card::render(&specialist, &outcome, standing.as_ref());
        self.registry.store().put_beside(name, id, CARD, text.as_bytes()).map_err(Failure::environment)
    }
}

/// Whose fault it is that the registry refused.
pub fn failure(error: RegistryError) -> Failure {
    match error {
        RegistryError::Refused { .. } | RegistryError::Record { .. } | RegistryError::Bundle(_) => super::found(error),
        RegistryError::Key(_)
        | RegistryError::NoBundle { .. }
        | RegistryError::NothingBefore(_)
        | RegistryError::Words(_) => Failure::usage(error),
        RegistryError::Store(_) | RegistryError::Io { .. } => Failure::environment(error),
    }
}

/// May this specialist answer? The half of the gate that looks at the proof; who approves is the registry's half.
///
/// # Errors
/// It may not, with the reason.
pub fn check_proof(specialist: &Specialist) -> Result<Vec<String>, String> {
    let manifest = specialist.manifest();
    if manifest.certificate.is_none() {
        let needed = manifest.refusal.and_then(|refusal| refusal.rows_needed);
        return Err(match needed {
            Some(rows) => format!("it has no certificate: about {rows} calibration rows are needed"),
            None => "it has no certificate, and more rows would not help: its surest answers err too often".to_owned(),
        });
    }
    let evidence: Evidence = serde_json::from_str(&specialist.contents().evidence)
        .map_err(|error| format!("its evidence cannot be read ({error})"))?;
    let Some(loss) = evidence.evaluation.test_loss else {
        return Err("its evidence does not say how the certificate fared on held-out rows".to_owned());
    };
    if !loss.held {
        return Err(format!(
            "its certificate did not hold on {} {} rows: {:.2} % [{:.2}, {:.2}] accepted and wrong against ε = {:.2} %",
            evidence.evaluation.n,
            evidence.rows,
            100.0 * loss.loss,
            100.0 * loss.interval[0],
            100.0 * loss.interval[1],
            100.0 * loss.epsilon
        ));
    }
    let mut remarks = vec![format!(
        "certificate held on {} {} rows: {:.2} % [{:.2}, {:.2}] accepted and wrong, ε = {:.2} %",
        evidence.evaluation.n,
        evidence.rows,
        100.0 * loss.loss,
        100.0 * loss.interval[0],
        100.0 * loss.interval[1],
        100.0 * loss.epsilon
    )];
    if !loss.shown {
        remarks.push(format!(
            "these rows are too few to show that it holds: {:.2} % may be wrong for all that they say",
            100.0 * loss.interval[1]
        ));
    }
    if evidence.rows != "test" {
        remarks.push("there were no test rows: those rows also chose the rung".to_owned());
    }
    Ok(remarks)
}

/// Who brought a bundle where it stands, in words.
pub fn people(standing: &Standing) -> String {
    let built = match &standing.built_by {
        Some(builder) => format!("built by {builder}"),
        None => "no record says who built it".to_owned(),
    };
    let approved = standing.approved_by.as_deref().map(|approver| format!("approved by {approver}"));
    let from = standing.imported_from.map(|key| format!("imported from {}", key.short()));
    [Some(built), approved, from].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Whether the key, if there is one, can be used. Nothing is written.
///
/// # Errors
/// It cannot be read, or is none.
pub fn check_key(state: &Path) -> Result<(), Failure> {
    let key = read_key(&state.join(KEY_FILE));
    key.map(drop).map_err(Failure::Environment)
}

/// `None` where there is no such file.
fn read_key(path: &Path) -> anyhow::Result<Option<RegistryKey>> {
    match fs::read_to_string(path) {
        Ok(text) => match RegistryKey::parse_secret(&text) {
            Some(key) => Ok(Some(key)),
            None => anyhow::bail!(
                "`{}` is no key of a registry: restore it, or move it away to get a new one",
                path.display()
            ),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read `{}`", path.display())),
    }
}

fn open_key(state: &Path) -> anyhow::Result<RegistryKey> {
    let path = state.join(KEY_FILE);
    let key = match read_key(&path)? {
        Some(key) => key,
        None => {
            fs::create_dir_all(state).context("cannot make the folder")?;
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).context("cannot get random bytes")?;
            // Temporary files are readable by their owner alone; a process that was faster keeps its key.
            let mut staged = tempfile::NamedTempFile::new_in(state).context("cannot write the key")?;
            staged
                .write_all(RegistryKey::from_seed(&seed).to_secret_text().as_bytes())
                .context("cannot write the key")?;
            staged.as_file().sync_all().context("cannot write the key")?;
            match staged.persist_noclobber(&path) {
                Ok(_) => {}
                Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.error).context("cannot write the key"),
            }
            read_key(&path)?.context("the key that was just written is gone")?
        }
    };
    let (public, text) = (state.join(PUBLIC_KEY_FILE), format!("{}\n", key.public()));
    if fs::read_to_string(&public).ok().as_deref() != Some(&text) {
        let mut staged = tempfile::NamedTempFile::new_in(state).context("cannot write the public key")?;
        staged.write_all(text.as_bytes()).context("cannot write the public key")?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let readable = fs::Permissions::from_mode(0o644);
            staged.as_file().set_permissions(readable).context("cannot write the public key")?;
        }
        staged.persist(&public).map_err(|error| error.error).context("cannot write the public key")?;
    }
    Ok(key)
}
