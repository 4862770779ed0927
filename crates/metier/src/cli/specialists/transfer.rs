//! One file from registry to registry: a zip of the bundle, of what lies beside it, and of a signed statement about both.
//!
//! | Member | Holds |
//! |---|---|
//! | `statement.json` | one line, signed by the registry that it comes from: name, id, who built it, who approved it there |
//! | all others | the files of the bundle, whose hash is the id, and `run.json`, `report.html`, `CARD.md` |
//!
//! Nothing in the file is trusted: members are bounded in number and size, names are plain, the statement must be signed by a key
//! that is known, and the bundle must hash to the id that the statement names.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
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

use super::{
    super::{CommonArgs, Failure, Outcome, build::must_be_new, desk, desk::Desk, found, line, staged_beside},
    Wanted, find, open_desk, tell_change,
};

const STATEMENT: &str = "statement.json";
/// Most members of a file.
const MAX_MEMBERS: usize = 32;
/// Most bytes of a member; the bundle has narrower limits of its own for each kind of file.
const MAX_MEMBER_BYTES: u64 = 1 << 30;

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
    // A desk makes a key and a folder: only once the file is known to be good.
    let scratch = tempfile::tempdir().context("cannot make a temporary folder").map_err(Failure::Environment)?;
    let statement = unpack(reader, scratch.path()).with_context(cannot).map_err(found)?;
    let statement = Record::open(statement.trim_end())
        .map_err(|reason| found(anyhow::anyhow!("`{STATEMENT}`: {reason}").context(cannot())))?;
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

/// Unpacks the members into a folder and returns the statement.
fn unpack(reader: File, dir: &Path) -> anyhow::Result<String> {
    let mut zip = zip::ZipArchive::new(reader).context("it is no export of a specialist")?;
    anyhow::ensure!(zip.len() <= MAX_MEMBERS, "it has {} members; at most {MAX_MEMBERS} are read", zip.len());
    let mut statement = None;
    for at in 0..zip.len() {
        let member = zip.by_index(at).context("a member cannot be read")?;
        let name = member.name()?.into_owned();
        let is_plain = !name.is_empty()
            && name.len() <= 64
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        anyhow::ensure!(is_plain, "it has a member `{}`, which is no file of a bundle", name.escape_debug());
        let mut bytes = Vec::new();
        member
            .take(MAX_MEMBER_BYTES + 1)
            .read_to_end(&mut bytes)
            .with_context(|| format!("`{name}` cannot be read"))?;
        anyhow::ensure!(bytes.len() as u64 <= MAX_MEMBER_BYTES, "`{name}` has more than {MAX_MEMBER_BYTES} bytes");
        if name == STATEMENT {
            statement = Some(String::from_utf8(bytes).with_context(|| format!("`{name}` is no text"))?);
        } else {
            let mut file = File::create_new(dir.join(&name)).with_context(|| format!("`{name}` cannot be unpacked"))?;
            file.write_all(&bytes).with_context(|| format!("`{name}` cannot be unpacked"))?;
        }
    }
    statement.with_context(|| format!("it lacks `{STATEMENT}`: it is no export of a specialist"))
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
