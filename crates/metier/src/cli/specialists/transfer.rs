//! One file from registry to registry: a zip of the bundle, of what lies beside it, and of a signed statement about both.
//!
//! | Member | Holds |
//! |---|---|
//! | `statement.json` | one line, signed by the registry that it comes from: name, id, who built it, who approved it there |
//! | all others | the files of the bundle, whose hash is the id, and `run.json`, `report.html`, `CARD.md` |
//!
//! Nothing in the file is trusted: the statement is read alone and must be signed by a key that is known before anything is unpacked;
//! members are bounded in number and size, names are plain, and the bundle must hash to the id that the statement names.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::Path,
};

use anyhow::Context as _;
use metier_model::{
    SpecialistStore,
    specialist::{
        bundle,
        registry::{PublicKey, Record},
    },
};
use serde_json::json;
use zip::ZipArchive;

use super::{
    super::{CommonArgs, Failure, Outcome, build::must_be_new, desk, desk::Desk, found, line, staged_beside},
    Wanted, find, open_desk, tell_change,
};

const STATEMENT: &str = "statement.json";
/// Most members of a file.
const MAX_MEMBERS: usize = 32;
/// Most bytes of the statement.
const MAX_STATEMENT_BYTES: u64 = 64 << 10;
/// Most bytes of all other members together, unpacked; the bundle has narrower limits of its own for each kind of file.
const MAX_BYTES: u64 = 2 << 30;

pub(super) fn export(desk: &Desk, specialist: &str, output: Option<&Path>, as_json: bool) -> Outcome {
    let (name, id) = find(&desk.registry, specialist, Wanted::Live)?;
    let dir = desk.registry.store().place(&name, id);
    bundle::read(&dir).map_err(found)?;
    let output = output.map_or_else(|| format!("{name}-{}.metier", id.short()).into(), Path::to_owned);
    must_be_new(&output)?;
    let statement = desk.registry.statement(&name, id, &desk.pen(None)).map_err(desk::failure)?;
    let write = || -> anyhow::Result<()> {
        // Whole or not at all: written beside its place, then renamed.
        let mut staged = staged_beside(&output)?;
        let mut zip = zip::ZipWriter::new(staged.as_file_mut());
        let options = zip::write::SimpleFileOptions::default();
        zip.start_file(STATEMENT, options)?;
        zip.write_all(statement.as_bytes())?;
        let mut members: Vec<_> = fs::read_dir(&dir)?.collect::<Result<_, _>>()?;
        members.sort_by_key(fs::DirEntry::file_name);
        for member in members {
            zip.start_file(member.file_name().to_string_lossy(), options)?;
            zip.write_all(&fs::read(member.path())?)?;
        }
        zip.finish()?;
        staged.as_file().sync_all()?;
        staged.persist_noclobber(&output).map_err(|error| error.error)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write `{}`", output.display())).map_err(Failure::Environment)?;
    let key = desk.pen(None).key.public();
    if as_json {
        line(&json!({"name": name, "id": id, "file": output, "key": key}));
    } else {
        println!("{name}@{} is written to `{}`", id.short(), output.display());
        println!("  signed by {key}");
        println!(
            "  there: `metier specialists import {} --trust KEY`, with this key from a place that is trusted",
            output.display()
        );
    }
    Ok(())
}

pub(super) fn import(root: &Path, common: &CommonArgs, file: &Path, keys: &[PublicKey], as_json: bool) -> Outcome {
    let cannot = || format!("cannot import `{}`", file.display());
    let reader = File::open(file).with_context(cannot).map_err(Failure::Usage)?;
    let mut zip = open(reader).with_context(cannot).map_err(found)?;
    // Nothing is unpacked for a stranger.
    let statement = read_statement(&mut zip).with_context(cannot).map_err(found)?;
    if !keys.contains(&statement.key) {
        return Err(found(
            anyhow::anyhow!(
                "it is signed by {}, which is neither in `registry.trusted_keys` nor given with `--trust`: ask whoever sent it for their `{}`",
                statement.key,
                desk::PUBLIC_KEY_FILE
            )
            .context(cannot()),
        ));
    }
    // A desk makes a key and a folder: only once the file is known to be good.
    let scratch = tempfile::tempdir().context("cannot make a temporary folder").map_err(Failure::Environment)?;
    unpack(&mut zip, scratch.path()).with_context(cannot).map_err(found)?;
    let (id, contents) = bundle::read_unnamed(scratch.path()).with_context(cannot).map_err(found)?;
    if id != statement.bundle || contents.manifest.name != statement.name {
        return Err(found(
            anyhow::anyhow!(
                "the statement speaks of {}@{}, but the files are those of {}@{}",
                statement.name,
                statement.bundle.short(),
                contents.manifest.name,
                id.short()
            )
            .context(cannot()),
        ));
    }
    let desk = open_desk(root, common)?;
    let name = &contents.manifest.name;
    place(desk.registry.store(), scratch.path(), name).with_context(cannot).map_err(Failure::Environment)?;
    desk.registry.imported(name, id, &statement, &desk.pen(None)).map_err(desk::failure)?;
    desk.renew_card(name, id)?;
    tell_change(&desk, name, id, &["`metier specialists promote` makes it answer".to_owned()], as_json)
}

/// What is in the file, unread.
fn open(reader: File) -> anyhow::Result<ZipArchive<File>> {
    let zip = ZipArchive::new(reader).context("it is no export of a specialist")?;
    anyhow::ensure!(zip.len() <= MAX_MEMBERS, "it has {} members; at most {MAX_MEMBERS} are read", zip.len());
    Ok(zip)
}

/// The statement alone.
fn read_statement(zip: &mut ZipArchive<File>) -> anyhow::Result<Record> {
    let lacks = || format!("it lacks `{STATEMENT}`: it is no export of a specialist");
    let member = zip.by_name(STATEMENT).with_context(lacks)?;
    let mut text = String::new();
    let read = member.take(MAX_STATEMENT_BYTES + 1).read_to_string(&mut text);
    read.with_context(|| format!("`{STATEMENT}` is no text"))?;
    anyhow::ensure!(
        text.len() as u64 <= MAX_STATEMENT_BYTES,
        "`{STATEMENT}` has more than {MAX_STATEMENT_BYTES} bytes"
    );
    Record::open(text.trim_end()).map_err(|reason| anyhow::anyhow!("`{STATEMENT}`: {reason}"))
}

/// Unpacks all other members into a folder.
fn unpack(zip: &mut ZipArchive<File>, dir: &Path) -> anyhow::Result<()> {
    let mut left = MAX_BYTES;
    for at in 0..zip.len() {
        let member = zip.by_index(at).context("a member cannot be read")?;
        let name = member.name()?.into_owned();
        let is_plain = !name.is_empty()
            && name.len() <= 64
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        anyhow::ensure!(is_plain, "it has a member `{}`, which is no file of a bundle", name.escape_debug());
        if name == STATEMENT {
            continue;
        }
        let cannot = || format!("`{name}` cannot be unpacked");
        let mut file = File::create_new(dir.join(&name)).with_context(cannot)?;
        let copied = io::copy(&mut member.take(left + 1), &mut file).with_context(cannot)?;
        left = left.checked_sub(copied).with_context(|| format!("its files have more than {MAX_BYTES} bytes"))?;
    }
    Ok(())
}

fn place(store: &SpecialistStore, from: &Path, name: &str) -> anyhow::Result<()> {
    let staged = store.stage()?;
    for member in fs::read_dir(from)? {
        let member = member?;
        bundle::write_durably(&staged.dir().join(member.file_name()), &fs::read(member.path())?)?;
    }
    store.add(staged, name)?;
    Ok(())
}
