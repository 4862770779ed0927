//! The official `openai` Python package, unchanged, talks to the server. The checks themselves are in `openai_client.py`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod fixture;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use fixture::{DECODER, ENCODER, SPECIALIST, Server};

/// The version that the checks were written against.
const OPENAI: &str = "openai==3.54.0";
/// A held-out row that the example's specialist is sure of, and one that is far from its task.
const TEXT: &str = "I forgot my password and the reset e-mail never arrives, please let me back into my account.";
const LABEL: &str = "account_access";
const FAR_TEXT: &str = "Write a haiku about the moon over a frozen lake.";

#[test]
fn the_official_client_works_unchanged() {
    let python = match python_with_openai() {
        Ok(python) => python,
        Err(reason) => {
            eprintln!(
                "SKIPPED the_official_client_works_unchanged: no Python with `{OPENAI}` can be made here: {reason}"
            );
            return;
        }
    };
    let store = fixture::store();
    let server = Server::start(&["--specialists", store.to_str().unwrap()]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai_client.py");
    let output = Command::new(python)
        .arg(script)
        .args([&server.url("/v1"), DECODER, ENCODER, SPECIALIST, TEXT, LABEL, FAR_TEXT])
        .env_remove("HTTP_PROXY")
        .env_remove("http_proxy")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    eprintln!("{told}");
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("0 failed"), "{told}");
}

/// A virtual environment in the build folder, made once.
fn python_with_openai() -> Result<PathBuf, String> {
    let scratch = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let turn = File::create(scratch.join("openai.lock")).unwrap();
    turn.lock().unwrap();
    let venv = scratch.join("openai");
    let python = venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    let made = venv.join("made");
    if fs::read_to_string(&made).is_ok_and(|text| text == OPENAI) {
        return Ok(python);
    }
    let _ = fs::remove_dir_all(&venv);
    let base = ["python3", "python"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok())
        .ok_or("no Python was found")?;
    run(Command::new(base).args(["-m", "venv"]).arg(&venv))?;
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", OPENAI]))?;
    fs::write(made, OPENAI).unwrap();
    Ok(python)
}

/// Runs a command; the last line of what it complained of is the error.
fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    Err(told.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it failed without a word").to_owned())
}
