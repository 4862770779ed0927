//! A written specialist for other programs: PEFT's folder, merged weights for Transformers, GGUF for llama.cpp. What was written is read
//! again, and asked beside what serves, before it is called good.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::ValueEnum;
use metier_kernels::Pool;
use metier_model::{
    Adapter, Decoder, LoraFormat, Specialist, TokenId,
    adapter::{CONFIG_FILE, WEIGHTS_FILES, to_halves},
    arch::transformer::WeightFormat,
    chat::ChatMessage,
    export,
    specialist::manifest::Stage,
};
use serde_json::json;

use super::super::{Failure, Outcome, bases, build::must_be_new, line};
use crate::config::{Environment, Settings};

/// Prompts that an export is asked, at most: the bundle's probe rows.
pub(super) const PROMPTS: usize = 64;
/// Of so many prompts the first token must be the same: weights in halves may decide what was all but a tie.
pub(super) const LEAST_EQUAL: f64 = 0.95;

/// What an export is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// Another registry of metier's: one signed file with everything
    #[default]
    Bundle,
    /// PEFT over the same base: a folder with the adapter alone
    Peft,
    /// Transformers: a folder with the weights of base and adapter added up, in 16 bits
    Merged,
    /// llama.cpp: the same as one GGUF file
    Gguf,
    /// Transformers: a folder for `AutoModelForSequenceClassification`, of a head that reads an encoder's vectors alone
    Transformers,
}

/// Writes a specialist whose answers are written in a form of other programs.
pub(super) fn run(
    specialist: &Specialist,
    form: Form,
    output: Option<&Path>,
    settings: &Settings,
    environment: &Environment,
    as_json: bool,
) -> Outcome {
    let manifest = specialist.manifest();
    let name = &manifest.name;
    let (Some(files), Some(generation)) = (specialist.adapter_files(), &manifest.generation) else {
        let why = match manifest.stage.name() {
            "linear" | "both" | "tuned" => "its classifier reads hashed n-grams, which Transformers does not make",
            "decoder" => "its head reads its decoder's last row, under an adapter and layers of its own",
            "prompted" => "it is its base as it is, told an instruction",
            _ => "it is a head over an encoder's vectors",
        };
        let other = if manifest.stage == Stage::Head { "`--format transformers` writes that; " } else { "" };
        return Err(Failure::usage(anyhow::anyhow!(
            "`{name}` has no adapter to export ({why}): {other}`--format bundle` takes it to another registry"
        )));
    };
    if let Some(kept) = manifest.kept_layers() {
        return Err(Failure::usage(anyhow::anyhow!(
            "`{name}` runs {} layers of its decoder, and its adapter alone would answer otherwise: `--format bundle` takes it to another registry",
            kept.layers().len()
        )));
    }
    let ending = if form == Form::Gguf { ".gguf" } else { "" };
    let default = || PathBuf::from(format!("{name}-{}-{}{ending}", specialist.id().short(), form_name(form)));
    let output = output.map_or_else(default, Path::to_owned);
    must_be_new(&output)?;
    let base_path = base_file(settings, environment)?;
    let digest = bases::decoder(settings, environment)?.map(|decoder| decoder.base().digest);
    if digest != Some(generation.decoder.digest) {
        return Err(Failure::usage(anyhow::anyhow!(
            "`{name}` was made with the decoder `{}` ({}), and another is at hand: set `decoder`",
            generation.decoder.name,
            generation.decoder.digest.short()
        )));
    }
    let pool = bases::pool(settings, environment)?;
    let open = |path: &Path| {
        let opened = Decoder::open(path, WeightFormat::F32);
        opened.with_context(|| format!("cannot open `{}`", path.display())).map_err(Failure::Environment)
    };
    let base = open(&base_path)?;
    let adapter = Adapter::from_bytes(
        files.config.as_bytes(),
        &files.weights,
        base.network().config(),
        manifest.adapter_format(),
    );
    let adapter = adapter.context("cannot read the adapter of the bundle").map_err(Failure::Environment)?;
    let prompts = prompts(specialist, &base)?;
    let expected = first_tokens(&base, Some(&adapter), &prompts, &pool)?;

    let found = match form {
        Form::Bundle | Form::Transformers => unreachable!("it is written elsewhere"),
        Form::Peft => {
            let halves = to_halves(&files.weights).context("cannot read the adapter of the bundle");
            let folder = [
                (CONFIG_FILE, files.config.clone().into_bytes()),
                (WEIGHTS_FILES[0], halves.map_err(Failure::Environment)?),
                ("README.md", readme(specialist).into_bytes()),
            ];
            write_folder(&output, &folder)?;
            let read = Adapter::open(&output, base.network().config(), LoraFormat::F16);
            let read = read.context("cannot read the folder again").map_err(Failure::Environment)?;
            first_tokens(&base, Some(&read), &prompts, &pool)?
        }
        Form::Merged | Form::Gguf => {
            let merged = || -> anyhow::Result<()> {
                let mut plain = base.network().plain()?;
                export::merge(&mut plain, &files.config, &files.weights)?;
                let bytes = fs::read(&base_path).with_context(|| format!("cannot read `{}`", base_path.display()))?;
                if form == Form::Gguf {
                    return write_file(&output, &export::gguf(&bytes, &plain)?);
                }
                let mut folder = export::hugging_face(&bytes, &plain)?;
                folder.push(("README.md", readme(specialist).into_bytes()));
                write_folder(&output, &folder).map_err(|failure| match failure {
                    Failure::Usage(error) | Failure::Environment(error) => error,
                    Failure::Found => anyhow::anyhow!("cannot write the folder"),
                })
            };
            merged().with_context(|| format!("cannot export `{name}`")).map_err(Failure::Environment)?;
            drop(base);
            first_tokens(&open(&output)?, None, &prompts, &pool)?
        }
    };
    let equal = expected.iter().zip(&found).filter(|(a, b)| a == b).count();
    let n = expected.len();
    if as_json {
        line(&json!({
            "name": name, "id": specialist.id(), "form": form_name(form), "path": output, "prompts": n, "equal": equal,
        }));
    } else {
        println!("{name}: written to `{}`", output.display());
        println!("  read again   {equal} of {n} prompts go on with the same token as in service");
    }
    if (equal as f64) < LEAST_EQUAL * n as f64 {
        return Err(super::super::found(anyhow::anyhow!(
            "the export does not answer as the specialist does: do not use it"
        )));
    }
    Ok(())
}

pub(super) fn form_name(form: Form) -> &'static str {
    match form {
        Form::Bundle => "bundle",
        Form::Peft => "peft",
        Form::Merged => "merged",
        Form::Gguf => "gguf",
        Form::Transformers => "transformers",
    }
}

fn base_file(settings: &Settings, environment: &Environment) -> Result<PathBuf, Failure> {
    if let Some(path) = settings.models.decoder_path() {
        return Ok(path.to_owned());
    }
    let files = bases::decoder_files(settings, environment)?;
    let files = files.ok_or_else(|| Failure::usage(anyhow::anyhow!("the settings say `decoder = \"none\"`")))?;
    Ok(files.decoder_path().to_owned())
}

/// The bundle's probe texts, as they are asked.
fn prompts(specialist: &Specialist, base: &Decoder) -> Result<Vec<Vec<TokenId>>, Failure> {
    let instruction = &specialist.manifest().instruction;
    let prompt = |text: &str| -> anyhow::Result<Vec<TokenId>> {
        let messages = [ChatMessage::new("system", instruction.as_str()), ChatMessage::new("user", text)];
        Ok(base.tokenizer().encode_prompt(&base.render_chat(&messages, true, None)?)?)
    };
    let rows = specialist.probe().iter().take(PROMPTS);
    rows.map(|row| prompt(&row.text)).collect::<anyhow::Result<_>>().map_err(Failure::Environment)
}

fn first_tokens(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    prompts: &[Vec<TokenId>],
    pool: &Pool,
) -> Result<Vec<usize>, Failure> {
    let one = |prompt: &Vec<TokenId>| -> anyhow::Result<usize> {
        let logits = decoder.logits_with(pool, prompt, adapter)?;
        let last = logits.last().context("a prompt has no tokens")?;
        Ok((1..last.len()).fold(0, |best, id| if last[id] > last[best] { id } else { best }))
    };
    prompts.iter().map(one).collect::<anyhow::Result<_>>().map_err(Failure::Environment)
}

/// A folder that is there whole or not at all.
pub(super) fn write_folder(output: &Path, files: &[(&str, Vec<u8>)]) -> Result<(), Failure> {
    let write = || -> anyhow::Result<()> {
        let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let staged = tempfile::Builder::new().prefix(".export-").tempdir_in(parent)?;
        for (name, bytes) in files {
            write_file(&staged.path().join(name), bytes)?;
        }
        #[cfg(unix)]
        fs::set_permissions(staged.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        fs::rename(staged.keep(), output)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write the folder `{}`", output.display())).map_err(Failure::Environment)
}

fn write_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut staged = super::super::staged_beside(path)?;
    staged.write_all(bytes)?;
    staged.as_file().sync_all()?;
    staged.persist_noclobber(path).map_err(|error| error.error)?;
    Ok(())
}

/// How the export is asked: nothing of it stands in the weights.
fn readme(specialist: &Specialist) -> String {
    let manifest = specialist.manifest();
    let decoder = manifest.generation.as_ref().map_or("", |generation| &generation.decoder.name);
    let form = specialist.answer_schema().map_or_else(String::new, |schema| {
        format!("Its answers are JSON of this schema, which the program that serves it must enforce:\n\n```json\n{schema:#}\n```\n\n")
    });
    format!(
        "# {name}\n\nMade by metier over `{decoder}` (bundle `{id}`). Ask it greedily, by the base's own chat template, with this system message and \
         the text as user message:\n\n> {instruction}\n\n{form}What it says here is not checked against a threshold: its certificate holds where \
         metier serves it.\n",
        name = manifest.name,
        id = specialist.id(),
        instruction = manifest.instruction,
    )
}
