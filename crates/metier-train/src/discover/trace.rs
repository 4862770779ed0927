//! *Which rows is this number made of?* Every row of the logs, a line each: in which task it was counted and by what, its tokens, the price that was
//! taken and what it came to; or why it was not counted. The volumes and costs of a roadmap are the sums over these lines.
//!
//! ```text
//! pass 2   rows ─► lines without a task ─► a file, packed      (a task's id and name are known only when all is counted)
//! then     the file ─► lines with their tasks ─► rows.csv.gz
//! ```
//!
//! Memory does not grow with the rows. Deliberately absent: texts, and whatever is not said of a single row.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::Path,
};

use metier_traffic::{Exchange, price::Quote};

use super::{
    read::RowPlace,
    repeats::Look,
    report::csv::plain,
    task::{Task, Volume, Week},
};

/// What the lines say. `rows`, `calls` and the numbers behind them add up to what the report says of all rows, or of those of one task.
pub const HEADER: [&str; 27] = [
    "task_id",
    "task",
    "assigned_by",
    "row_id",
    "place",
    "rows",
    "calls",
    "note",
    "time_ms",
    "week",
    "model",
    "failed",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "estimated",
    "price_model",
    "price_from",
    "price_book",
    "input_picousd_per_token",
    "output_picousd_per_token",
    "cached_picousd_per_token",
    "cost_picousd",
    "unpriced",
    "with_text",
    "looked_for_repeat",
    "repeat",
];
/// Of the columns, those that are the task's.
const OF_TASK: usize = 2;
/// A line of a row that belongs to no task.
const NOWHERE: u64 = u64::MAX;
/// Level of zstd for the file between: speed matters, it lives for minutes.
const STAGED_LEVEL: i32 = 1;
const PACKED_LEVEL: i32 = 3;

/// How a call came to its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// By the prompt that its calls share.
    Template,
    /// By its text's embedding: it was in the sample.
    Embedding,
    /// By its words: it was outside the sample.
    Words,
    /// It fits nowhere else.
    Rest,
    /// By model and name alone: the log holds no texts of it.
    NoText,
}

impl By {
    fn words(self) -> &'static str {
        match self {
            Self::Template => "template",
            Self::Embedding => "embedding",
            Self::Words => "words",
            Self::Rest => "rest",
            Self::NoText => "no text",
        }
    }
}

/// A call as it was counted.
pub(super) struct Counted<'a> {
    pub(super) call: &'a Exchange,
    pub(super) volume: &'a Volume,
    pub(super) quote: Option<Quote<'a>>,
    /// Where it was counted, as [`Trace::placed`] names it.
    pub(super) bin: u64,
    pub(super) by: By,
    /// Was it looked for among earlier prompts?
    pub(super) look: Option<Look>,
}

/// The lines of a run, while it runs.
pub struct Trace {
    staged: zstd::Encoder<'static, BufWriter<File>>,
    line: csv::Writer<Vec<u8>>,
    /// Which task a bin became, by the task's id.
    bins: BTreeMap<u64, String>,
    /// The first thing that went wrong; told when the lines are written.
    broken: Option<io::Error>,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trace").field("bins", &self.bins.len()).finish_non_exhaustive()
    }
}

impl Trace {
    /// Lines that wait in `file`, which is empty, can be read and written, and is thrown away afterwards.
    ///
    /// # Errors
    /// The compressor cannot be made.
    pub fn over(file: File) -> io::Result<Self> {
        let staged = zstd::Encoder::new(BufWriter::with_capacity(1 << 20, file), STAGED_LEVEL)?;
        Ok(Self { staged, line: in_memory(), bins: BTreeMap::new(), broken: None })
    }

    /// A row, or a part of one, that is no call.
    pub(super) fn passed(&mut self, why: &str, place: &RowPlace, begins: bool) {
        let mut cells: [&str; HEADER.len() - OF_TASK] = Default::default();
        let place = place.to_string();
        let place = plain(&place);
        cells[1] = &place;
        cells[2] = &place;
        (cells[3], cells[4], cells[5]) = (flag(begins), "0", why);
        self.put(NOWHERE, &cells);
    }

    /// A call.
    pub(super) fn counted(&mut self, counted: &Counted<'_>, place: &RowPlace, begins: bool) {
        let Counted { call, volume, quote, bin, by, look } = counted;
        let mut assigned = String::new();
        for (has, word) in
            [(!call.tools.is_empty(), "tools+"), (call.schema.is_some(), "schema+"), (call.named.is_some(), "name+")]
        {
            assigned += if has { word } else { "" };
        }
        assigned += by.words();
        let place = place.to_string();
        let odd: Vec<&str> = call.odd.iter().map(|odd| odd.words()).collect();
        let price = quote.map(|quote| {
            let price = quote.price;
            [price.input_picousd, price.output_picousd, price.cached_picousd].map(|price| price.to_string())
        });
        let [input_price, output_price, cached_price] = price.unwrap_or_default();
        let (id, place_cell, model, price_model) = (
            plain(call.id.as_deref().unwrap_or(&place)),
            plain(&place),
            plain(if call.model.is_empty() { "unknown" } else { &call.model }),
            plain(quote.map_or("", |quote| quote.model)),
        );
        let cells: [&str; HEADER.len() - OF_TASK] = [
            &assigned,
            &id,
            &place_cell,
            flag(begins),
            "1",
            &odd.join(" | "),
            &call.time_ms.map(|ms| ms.to_string()).unwrap_or_default(),
            &call.time_ms.map(|ms| Week::of(ms).to_string()).unwrap_or_default(),
            &model,
            flag(call.failed),
            &volume.input_tokens.to_string(),
            &volume.output_tokens.to_string(),
            &volume.cached_tokens.to_string(),
            flag(volume.estimated > 0),
            &price_model,
            quote.map_or("", |quote| quote.from),
            quote.map_or("", |quote| if quote.own { "own" } else { "list" }),
            &input_price,
            &output_price,
            &cached_price,
            // An unknown cost is no number.
            &if quote.is_some() { volume.cost_picousd.to_string() } else { String::new() },
            flag(quote.is_none()),
            flag(*by != By::NoText),
            flag(look.is_some_and(|look| look != Look::Passed)),
            flag(matches!(look, Some(Look::Repeat { .. }))),
        ];
        self.put(*bin, &cells);
    }

    fn put(&mut self, bin: u64, cells: &[&str; HEADER.len() - OF_TASK]) {
        if self.broken.is_some() {
            return;
        }
        self.line.write_record(cells).expect("memory takes every line, and all lines are of one length");
        let whole = std::mem::replace(&mut self.line, in_memory());
        let bytes = whole.into_inner().expect("memory is written at once");
        let length = u32::try_from(bytes.len()).expect("ids and places are shorter than a row of 16 MiB");
        let written = self
            .staged
            .write_all(&bin.to_le_bytes())
            .and_then(|()| self.staged.write_all(&length.to_le_bytes()))
            .and_then(|()| self.staged.write_all(&bytes));
        self.broken = written.err();
    }

    /// What was counted in these bins is the task of this id.
    pub(super) fn placed(&mut self, bins: impl IntoIterator<Item = u64>, id: &str) {
        self.bins.extend(bins.into_iter().map(|bin| (bin, id.to_owned())));
    }

    /// Writes all lines, with the names of their tasks, in the order of the logs; packed as the ending of `path` says. Tells how many.
    ///
    /// # Errors
    /// A file cannot be written or read, now or when a line was put there.
    pub fn write(self, tasks: &[Task], path: &Path, to: File) -> io::Result<u64> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        let mut file = self.staged.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        let mut staged = BufReader::with_capacity(1 << 16, zstd::Decoder::new(file)?);
        let mut to = Packed::new(path, to)?;
        writeln!(to, "{}", HEADER.join(","))?;
        let names: BTreeMap<&str, &str> = tasks.iter().map(|task| (task.id.as_str(), task.name.as_str())).collect();
        let (mut head, mut line, mut lines) = ([0u8; 12], Vec::new(), 0);
        while read_whole(&mut staged, &mut head)? {
            let bin = u64::from_le_bytes(head[..8].try_into().expect("eight bytes"));
            let length = u32::from_le_bytes(head[8..].try_into().expect("four bytes"));
            line.resize(length as usize, 0);
            staged.read_exact(&mut line)?;
            match self.bins.get(&bin) {
                // Ids are of letters, digits and hyphens, and so are names.
                Some(id) => write!(to, "{id},{},", names.get(id.as_str()).copied().unwrap_or_default())?,
                None => to.write_all(b",,")?,
            }
            to.write_all(&line)?;
            lines += 1;
        }
        to.finish()?;
        Ok(lines)
    }
}

fn in_memory() -> csv::Writer<Vec<u8>> {
    csv::Writer::from_writer(Vec::with_capacity(256))
}

fn flag(yes: bool) -> &'static str {
    if yes { "1" } else { "0" }
}

/// False at the end.
fn read_whole(from: &mut impl Read, into: &mut [u8]) -> io::Result<bool> {
    let first = loop {
        match from.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    if first == 0 {
        return Ok(false);
    }
    from.read_exact(&mut into[first..])?;
    Ok(true)
}

/// A file that is packed as its name says.
enum Packed {
    Plain(BufWriter<File>),
    Gzip(flate2::write::GzEncoder<BufWriter<File>>),
    Zstd(zstd::Encoder<'static, BufWriter<File>>),
}

impl Packed {
    fn new(path: &Path, to: File) -> io::Result<Self> {
        let to = BufWriter::with_capacity(1 << 20, to);
        Ok(match path.extension().and_then(|ending| ending.to_str()) {
            Some("gz") => Self::Gzip(flate2::write::GzEncoder::new(to, flate2::Compression::fast())),
            Some("zst") => Self::Zstd(zstd::Encoder::new(to, PACKED_LEVEL)?),
            _ => Self::Plain(to),
        })
    }

    fn finish(self) -> io::Result<()> {
        let mut to = match self {
            Self::Plain(to) => to,
            Self::Gzip(to) => to.finish()?,
            Self::Zstd(to) => to.finish()?,
        };
        to.flush()
    }
}

impl Write for Packed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(to) => to.write(bytes),
            Self::Gzip(to) => to.write(bytes),
            Self::Zstd(to) => to.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(to) => to.flush(),
            Self::Gzip(to) => to.flush(),
            Self::Zstd(to) => to.flush(),
        }
    }
}
