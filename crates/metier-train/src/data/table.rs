//! CSV, TSV, JSONL and Parquet files → rows. Every complaint names file and line (of Parquet: the row).

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use metier_model::specialist::{inputs::cell, render_inputs};

use super::{
    Place,
    answers::{self, Answers},
    nearest, parquet,
};

/// Most rows of one file.
pub const MAX_ROWS: usize = 2_000_000;
/// Most bytes of one cell.
pub const MAX_CELL_BYTES: usize = 64 << 10;
/// Most bytes of one file after decompression: 4 GiB.
pub const MAX_FILE_BYTES: u64 = 4 << 30;
/// Most bytes of one line of JSON.
const MAX_LINE_BYTES: usize = 1 << 20;

/// One example.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The text that a specialist reads.
    pub text: String,
    /// The gold label.
    pub label: String,
    /// Value of the group column.
    pub group: Option<String>,
    /// What the reference answered.
    pub reference: Option<String>,
    /// Values of all other columns: `(column, value)`, in the file's order.
    pub extra: Vec<(Arc<str>, String)>,
    /// Where it stands.
    pub place: Place,
}

/// Which columns hold what.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// Inputs, at least one.
    pub text: &'a [String],
    /// Label.
    pub label: &'a str,
    /// Group, if rows are grouped.
    pub group: Option<&'a str>,
    /// Answers of the reference.
    pub reference: Option<&'a str>,
    /// A teacher's answers in the place of the label's column; rows without one are left out.
    pub label_answers: Option<&'a Answers>,
    /// A teacher's answers in the place of the reference's column.
    pub reference_answers: Option<&'a Answers>,
}

impl<'a> Columns<'a> {
    /// Inputs and label, nothing else.
    pub fn new(text: &'a [String], label: &'a str) -> Self {
        Self { text, label, group: None, reference: None, label_answers: None, reference_answers: None }
    }
}

/// Rows cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file cannot be read or decompressed.
    #[error("cannot read `{path}`")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The name ends in nothing that this version reads.
    #[error(
        "cannot tell the format of `{0}`: names end in .csv, .tsv or .jsonl, then optionally .gz or .zst, or in .parquet"
    )]
    Format(PathBuf),
    /// One row is wrong.
    #[error("{place}: {message}")]
    Row {
        /// Where.
        place: Place,
        /// What is wrong.
        message: String,
    },
    /// The file as a whole is wrong.
    #[error("`{path}` {message}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// All rows together are no task.
    #[error("{0}")]
    Task(String),
}

impl DataError {
    pub(crate) fn row(place: &Place, message: impl Into<String>) -> Self {
        Self::Row { place: place.clone(), message: message.into() }
    }
}

/// Reads all rows of a file.
pub fn read(path: &Path, columns: &Columns<'_>) -> Result<Vec<Row>, DataError> {
    let mut rows = Vec::new();
    for_each_record(path, &mut |record| {
        if rows.len() == MAX_ROWS {
            return Err(DataError::row(
                &record.place,
                format!("more than {MAX_ROWS} rows; this version reads no more"),
            ));
        }
        rows.extend(row(record, columns)?);
        Ok(true)
    })?;
    if rows.is_empty() && columns.label_answers.is_some() {
        let message = "holds no row that has an answer: `metier dataset label` asks for them";
        return Err(DataError::File { path: path.to_owned(), message: message.to_owned() });
    }
    if rows.is_empty() {
        return Err(DataError::File { path: path.to_owned(), message: "holds no rows".to_owned() });
    }
    Ok(rows)
}

/// What a specialist would read of one record, whether there is a label or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// The text that a specialist reads.
    pub text: String,
    /// The gold label, where there is one.
    pub label: Option<String>,
    /// Where it stands.
    pub place: Place,
}

/// The inputs of all records of a file; `label`: the column that may hold a gold label. A record without text is an error, as it is for a
/// build.
///
/// # Errors
/// As [`read`], for what concerns the inputs.
pub fn inputs(path: &Path, text: &[String], label: &str) -> Result<Vec<Input>, DataError> {
    let mut inputs = Vec::new();
    for_each_record(path, &mut |record| {
        if inputs.len() == MAX_ROWS {
            return Err(DataError::row(
                &record.place,
                format!("more than {MAX_ROWS} rows; this version reads no more"),
            ));
        }
        let gold = record.header.iter().position(|name| &**name == label);
        let gold = gold.map(|at| record.values[at].trim().to_owned()).filter(|gold| !gold.is_empty());
        // Any column will do as the label: the row is read for its text alone.
        let Some(Row { text, place, .. }) = row(record, &Columns::new(text, &text[0]))? else { return Ok(true) };
        inputs.push(Input { text, label: gold, place });
        Ok(true)
    })?;
    Ok(inputs)
}

/// One record as it stands in a file.
pub(crate) struct Record {
    pub(crate) place: Place,
    pub(crate) header: Arc<[Arc<str>]>,
    pub(crate) values: Vec<String>,
}

/// `None` where a teacher was to answer and has not.
fn row(record: Record, columns: &Columns<'_>) -> Result<Option<Row>, DataError> {
    let Record { place, header, mut values } = record;
    if let Some(at) = values.iter().position(|value| value.len() > MAX_CELL_BYTES) {
        let message = format!("`{}` has {} bytes; at most {MAX_CELL_BYTES} are read", header[at], values[at].len());
        return Err(DataError::row(&place, message));
    }
    let find = |column: &str| {
        header.iter().position(|name| &**name == column).ok_or_else(|| {
            let there: Vec<String> = header.iter().map(|name| format!("`{name}`")).collect();
            let near = nearest(column, header.iter().map(|name| &**name));
            let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            DataError::row(&place, format!("there is no column `{column}` among {}{near}", there.join(", ")))
        })
    };
    let text = columns.text.iter().map(|column| find(column)).collect::<Result<Vec<_>, _>>()?;
    let label = if columns.label_answers.is_some() { None } else { Some(find(columns.label)?) };
    let group = columns.group.map(find).transpose()?;
    let reference = columns.reference.map(find).transpose()?;
    if let Some(&empty) = text.iter().find(|&&at| values[at].trim().is_empty())
        && text.iter().all(|&at| values[at].trim().is_empty())
    {
        return Err(DataError::row(&place, format!("`{}` is empty", header[empty])));
    }
    for at in [label, group].into_iter().flatten() {
        if values[at].trim().is_empty() {
            return Err(DataError::row(&place, format!("`{}` is empty", header[at])));
        }
    }
    let inputs: Vec<&str> = text.iter().map(|&at| values[at].as_str()).collect();
    let rendered = render_inputs(columns.text, &inputs);
    let extra = (0..values.len())
        .filter(|at| !text.contains(at) && ![label, group, reference].contains(&Some(*at)))
        .map(|at| (Arc::clone(&header[at]), values[at].clone()))
        .collect();
    let answered = |answers: &Answers| answers.first.get(&answers::key(&rendered))?.answer.clone();
    let label = match (columns.label_answers, label) {
        (Some(answers), _) => answered(answers),
        (None, Some(at)) => Some(values[at].trim().to_owned()),
        (None, None) => None,
    };
    let Some(label) = label else { return Ok(None) };
    let reference = match columns.reference_answers {
        // What it did not answer, or not with a label, is no answer of the reference: it is never right there.
        Some(answers) => Some(answered(answers).unwrap_or_default()),
        None => reference.map(|at| values[at].trim().to_owned()),
    };
    let group = group.map(|at| std::mem::take(&mut values[at]));
    Ok(Some(Row { text: rendered, group, reference, label, extra, place }))
}

/// Calls `take` with every record until it says false.
pub(crate) fn for_each_record(
    path: &Path,
    take: &mut dyn FnMut(Record) -> Result<bool, DataError>,
) -> Result<(), DataError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
    let plain = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    let delimiter = match plain.rsplit_once('.').map(|(_, ending)| ending) {
        Some("csv") => Some(b','),
        Some("tsv") => Some(b'\t'),
        Some("jsonl" | "ndjson") => None,
        Some("parquet") if plain == name => return parquet_records(path, take),
        _ => return Err(DataError::Format(path.to_owned())),
    };
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let file = BufReader::new(File::open(path).map_err(io)?);
    let decompressed: Box<dyn Read> = if name.ends_with(".gz") {
        Box::new(flate2::read::MultiGzDecoder::new(file))
    } else if name.ends_with(".zst") {
        Box::new(zstd::stream::read::Decoder::with_buffer(file).map_err(io)?)
    } else {
        Box::new(file)
    };
    let bounded = Bounded { inner: decompressed, left: MAX_FILE_BYTES, carriage_return: false };
    match delimiter {
        Some(delimiter) => csv_records(path, bounded, delimiter, take),
        None => json_records(path, bounded, take),
    }
}

/// Fails, where `Read::take` would silently end the file, and turns `\r\n` into `\n`: the csv crate counts lines at the
/// end of `\n`, so that with `\r\n` its numbers would be one too small.
struct Bounded {
    inner: Box<dyn Read>,
    left: u64,
    carriage_return: bool, // seen, not yet handed on
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(buffer.len() >= 2, "both readers above this one buffer kilobytes");
        // One byte is kept free for a carriage return carried over from the last read.
        let mut raw = vec![0; buffer.len() - 1];
        loop {
            let n = self.inner.read(&mut raw)?;
            self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
                let message = format!("more than {MAX_FILE_BYTES} bytes when decompressed");
                io::Error::new(io::ErrorKind::FileTooLarge, message)
            })?;
            let mut written = 0;
            let mut put = |byte: u8| {
                buffer[written] = byte;
                written += 1;
            };
            if n == 0 && std::mem::take(&mut self.carriage_return) {
                put(b'\r');
            }
            for &byte in &raw[..n] {
                if std::mem::take(&mut self.carriage_return) && byte != b'\n' {
                    put(b'\r');
                }
                if byte == b'\r' { self.carriage_return = true } else { put(byte) }
            }
            // Nothing written from something read: a lone carriage return that waits for its successor.
            if written > 0 || n == 0 {
                return Ok(written);
            }
        }
    }
}

fn csv_records(
    path: &Path,
    reader: Bounded,
    delimiter: u8,
    take: &mut dyn FnMut(Record) -> Result<bool, DataError>,
) -> Result<(), DataError> {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).has_headers(false).from_reader(reader);
    let mut record = csv::ByteRecord::new();
    let mut header: Option<Arc<[Arc<str>]>> = None;
    loop {
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => return Err(csv_error(path, error)),
        }
        let line = record.position().map_or(0, csv::Position::line);
        let place = Place { file: path.to_owned(), line };
        let values = record.iter().enumerate().map(|(at, cell)| {
            std::str::from_utf8(cell).map(str::to_owned).map_err(|_| {
                let column = header.as_ref().and_then(|header| header.get(at));
                let column = column.map_or_else(|| format!("column {}", at + 1), |name| format!("`{name}`"));
                DataError::row(&place, format!("{column} is not valid UTF-8{}", encoding(cell)))
            })
        });
        let values = values.collect::<Result<Vec<String>, _>>()?;
        match &header {
            None => {
                let names: Arc<[Arc<str>]> = values.iter().map(|name| Arc::from(name.trim())).collect();
                if let Some(twice) = (1..names.len()).find(|&at| names[..at].contains(&names[at])) {
                    return Err(DataError::row(&place, format!("two columns are named `{}`", names[twice])));
                }
                header = Some(names);
            }
            Some(header) => {
                if !take(Record { place, header: Arc::clone(header), values })? {
                    return Ok(());
                }
            }
        }
    }
}

/// What bytes that are no UTF-8 probably are, and what to do.
fn encoding(bytes: &[u8]) -> &'static str {
    match bytes {
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => ": the file is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`",
        _ if bytes.contains(&0) => ": it holds zero bytes; is this a text file?",
        _ => "; if it comes from an older Windows program, `iconv -f WINDOWS-1252 -t UTF-8` converts it",
    }
}

fn csv_error(path: &Path, error: csv::Error) -> DataError {
    let line = error.position().map_or(0, csv::Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(source) => DataError::Io { path: path.to_owned(), source },
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => DataError::row(
            &Place { file: path.to_owned(), line },
            format!("{len} cells, the header has {expected_len}; is a quote or a comma missing?"),
        ),
        other => DataError::row(&Place { file: path.to_owned(), line }, format!("{other:?}")),
    }
}

fn json_records(
    path: &Path,
    reader: Bounded,
    take: &mut dyn FnMut(Record) -> Result<bool, DataError>,
) -> Result<(), DataError> {
    let mut reader = BufReader::new(reader);
    let mut line_bytes = Vec::new();
    let mut header: Arc<[Arc<str>]> = Arc::from([]);
    for line in 1.. {
        line_bytes.clear();
        let limit = MAX_LINE_BYTES as u64 + 1;
        let n = reader.by_ref().take(limit).read_until(b'\n', &mut line_bytes);
        let n = n.map_err(|source| DataError::Io { path: path.to_owned(), source })?;
        let place = Place { file: path.to_owned(), line };
        if n == 0 {
            return Ok(());
        }
        if n > MAX_LINE_BYTES {
            return Err(DataError::row(&place, format!("a line of more than {MAX_LINE_BYTES} bytes")));
        }
        let text = std::str::from_utf8(&line_bytes).map_err(|_| {
            let message = format!("not valid UTF-8{}", encoding(&line_bytes));
            DataError::row(&place, message)
        })?;
        let text = if line == 1 { text.trim_start_matches('\u{feff}') } else { text };
        if text.trim().is_empty() {
            continue;
        }
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)
            .map_err(|error| DataError::row(&place, format!("not a JSON object (column {})", error.column())))?;
        if !take(record(place, &object, &mut header))? {
            return Ok(());
        }
    }
    Ok(())
}

/// `header`: that of the record before, which most share.
fn record(place: Place, object: &serde_json::Map<String, serde_json::Value>, header: &mut Arc<[Arc<str>]>) -> Record {
    if header.len() != object.len() || !header.iter().zip(object.keys()).all(|(a, b)| **a == **b) {
        *header = object.keys().map(|key| Arc::from(key.as_str())).collect();
    }
    Record { place, header: Arc::clone(header), values: object.values().map(cell).collect() }
}

fn parquet_records(path: &Path, take: &mut dyn FnMut(Record) -> Result<bool, DataError>) -> Result<(), DataError> {
    let file = File::open(path).map_err(|source| DataError::Io { path: path.to_owned(), source })?;
    let mut header: Arc<[Arc<str>]> = Arc::from([]);
    let mut taken = Ok(true);
    let read = parquet::for_each_row(file, &mut |nth, object| {
        taken = take(record(Place { file: path.to_owned(), line: nth }, &object, &mut header));
        matches!(taken, Ok(true))
    });
    taken?;
    read.map_err(|error| DataError::File {
        path: path.to_owned(),
        message: format!("cannot be read as Parquet: {error}"),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::io::Write as _;

    use super::*;

    fn read_bytes(name: &str, bytes: &[u8]) -> Result<Vec<Row>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let text = ["text".to_owned()];
        let columns = Columns::new(&text, "label");
        let folder = format!("{}/", dir.path().display());
        read(&path, &columns).map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{error}{cause}").replace(&folder, "")
        })
    }

    #[track_caller]
    fn check(name: &str, bytes: &[u8], message: &str) {
        let error = read_bytes(name, bytes).expect_err("must be refused");
        assert!(error.contains(message), "`{error}` does not contain `{message}`");
    }

    #[test]
    fn parquet_rows_are_rows() {
        let bytes = parquet::tests::file(&["one", "two"], &["a", "b"], ::parquet::basic::Compression::SNAPPY);
        let rows = read_bytes("rows.parquet", &bytes).unwrap();
        assert_eq!((rows[1].text.as_str(), rows[1].label.as_str(), rows[1].place.line), ("two", "b", 2));
        assert_eq!(rows[1].extra[1], (Arc::from("weight"), "0.25".to_owned()));
        let bytes = parquet::tests::file(&["one", "two"], &["a", ""], ::parquet::basic::Compression::UNCOMPRESSED);
        assert_eq!(read_bytes("rows.parquet", &bytes).unwrap_err(), "rows.parquet:2: `label` is empty");
    }

    #[test]
    fn a_list_stays_a_list_for_whoever_reads_spans() {
        let rows = read_bytes("a.jsonl", b"{\"text\":\"a b\",\"label\":[{\"start\":0,\"end\":1}]}").unwrap();
        assert_eq!(rows[0].label, "[{\"start\":0,\"end\":1}]");
    }

    #[test]
    fn refuses_with_file_and_line() {
        check("a.csv", b"", "`a.csv` holds no rows");
        check("a.csv", b"text,label\n", "`a.csv` holds no rows");
        check(
            "a.csv",
            b"text,lable\na,b\n",
            "a.csv:2: there is no column `label` among `text`, `lable`; did you mean `lable`?",
        );
        check("a.csv", b"text,label\na,b\n ,b\n", "a.csv:3: `text` is empty");
        check("a.csv", b"text,label\na,b\nc,\n", "a.csv:3: `label` is empty");
        check("a.csv", b"text,label\na,b\nc\xff,d\n", "a.csv:3: `text` is not valid UTF-8");
        check("a.csv", b"text,label\na,b\nc\n", "a.csv:3: 1 cells, the header has 2");
        check("a.csv", b"text,text\na,b\n", "a.csv:1: two columns are named `text`");
        check("a.jsonl", b"{\"text\":\"a\",\"label\":\"b\"}\n\n{\"text\":1", "a.jsonl:3: not a JSON object");
        check("a.jsonl", b"{\"text\":\"a\"}", "a.jsonl:1: there is no column `label` among `text`");
        check("a.parquet", b"PAR1", "`a.parquet` cannot be read as Parquet");
        check("a.parquet.gz", b"PAR1", "cannot tell the format of `a.parquet.gz`");
        check("a.csv.gz", b"not gzip", "cannot read `a.csv.gz`");
        let long = [b"text,label\n".as_slice(), &vec![b'x'; MAX_CELL_BYTES + 1], b",b\n"].concat();
        check("a.csv", &long, "a.csv:2: `text` has 65537 bytes; at most 65536 are read");
        let fits = [b"text,label\n".as_slice(), &vec![b'x'; MAX_CELL_BYTES], b",b\n"].concat();
        assert_eq!(read_bytes("a.csv", &fits).unwrap().len(), 1);
    }

    #[test]
    fn reads_every_format_alike() {
        let csv = "\u{feff}text,label,region\r\n\"a \"\"b\"\"\nc\", x ,eu\r\nd,y,us\r\n".as_bytes();
        let rows = read_bytes("a.csv", csv).unwrap();
        assert_eq!(rows[0].text, "a \"b\"\nc");
        assert_eq!((rows[0].label.as_str(), rows[1].place.line), ("x", 4));
        assert_eq!(rows[0].extra, [(Arc::from("region"), "eu".to_owned())]);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(csv).unwrap();
        let object = read_bytes("a.jsonl", br#"{"text": {"b": [1, "x"], "a": null, "c": {"d": 2.0}}, "label": true}"#);
        assert_eq!(
            object.map(|rows| (rows[0].text.clone(), rows[0].label.clone())),
            Ok(("b: 1, x\nc.d: 2.0".into(), "true".into()))
        );
        let others = [
            ("a.csv.gz", gz.finish().unwrap()),
            ("a.tsv", "text\tlabel\tregion\n\"a \"\"b\"\"\nc\"\tx\teu\nd\ty\tus\n".into()),
            ("a.jsonl", "{\"text\":\"a \\\"b\\\"\\nc\",\"label\":\"x\",\"region\":\"eu\"}\n{\"text\":\"d\",\"label\":\"y\",\"region\":\"us\"}".into()),
        ];
        for (name, bytes) in others {
            let texts: Vec<_> =
                read_bytes(name, &bytes).unwrap().into_iter().map(|r| (r.text, r.label, r.extra)).collect();
            let expected: Vec<_> = rows.iter().cloned().map(|r| (r.text, r.label, r.extra)).collect();
            assert_eq!(texts, expected, "{name}");
        }
    }
}
