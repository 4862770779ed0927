//! Which rows train, which choose, which calibrate, which are only looked at?
//!
//! | part | used for |
//! |---|---|
//! | train | features and weights |
//! | validation | settings, rung, calibrator |
//! | calibration | once, by Learn-then-Test, for exactly the weights that ship |
//! | test | nothing: it is measured on, last |
//!
//! A part that has a file is that file; each other takes a tenth of the training rows, by SHA-256 of seed and group (or
//! text, folded): adding rows later moves no other row, and equal texts never part.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use metier_model::{Digest, features::fold, specialist::manifest::DataFile};
use serde::{Deserialize, Serialize};

use super::{
    Place, TaskFile,
    answers::Answers,
    hierarchy,
    leak::{self, LeakReport},
    nearest,
    sets::{self, Loaded, is_list},
    table::{self, Columns, DataError, Row},
};

/// Fewest rows of a label in the training file: with less there is nothing to split.
pub const MIN_ROWS_A_LABEL: usize = 3;
/// Most labels of a task.
pub const MAX_LABELS: usize = 2_000;
/// A part without a file takes this many thousandths of the training rows.
const SHARE_PER_MILLE: u64 = 100;

/// One of the four uses of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Features and weights.
    Train,
    /// Settings, rung, calibrator.
    Validation,
    /// The certificate.
    Calibration,
    /// Measured on.
    Test,
}

impl Part {
    /// All four, in order of use.
    pub const ALL: [Self; 4] = [Self::Train, Self::Validation, Self::Calibration, Self::Test];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Calibration => "calibration",
            Self::Test => "test",
        }
    }
}

/// A row with its class.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The row as read.
    pub row: Row,
    /// Index of its label in [`Splits::labels`].
    pub class: usize,
}

/// All rows of a task, parted.
#[derive(Clone, Debug)]
pub struct Splits {
    /// Labels, sorted.
    pub labels: Vec<String>,
    /// Rows by part.
    parts: [Vec<Example>; 4],
    /// Files that were read.
    pub files: Vec<DataFile>,
    /// What is suspicious.
    pub leak: LeakReport,
    /// Training rows that a hash had sent elsewhere, but that are the only ones of their label.
    pub moved_to_train: u64,
}

impl Splits {
    /// Rows that somebody else has parted, less training rows that are like those that are measured on. `labels` are sorted.
    pub(crate) fn parted(labels: Vec<String>, mut parts: [Vec<Example>; 4], inputs: &[String]) -> Self {
        let leak = leak::check(&mut parts, inputs);
        Self { labels, parts, files: Vec::new(), leak, moved_to_train: 0 }
    }

    /// Further training rows, less those that are like rows that are measured on and those whose text is there already; how many are left.
    pub(crate) fn extend(&mut self, rows: Vec<Example>, inputs: &[String]) -> usize {
        let mut known: BTreeSet<String> = self.part(Part::Train).iter().map(|row| fold(&row.row.text)).collect();
        let rows: Vec<Example> = rows.into_iter().filter(|row| known.insert(fold(&row.row.text))).collect();
        let [_, validation, calibration, test] = &self.parts;
        let mut parts = [rows, validation.clone(), calibration.clone(), test.clone()];
        self.leak.removed += leak::check(&mut parts, inputs).removed;
        let [rows, ..] = parts;
        let n = rows.len();
        self.parts[Part::Train as usize].extend(rows);
        n
    }

    /// The rows of a part.
    pub fn part(&self, part: Part) -> &[Example] {
        &self.parts[part as usize]
    }

    /// Rows by part, as the manifest lists them.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        Part::ALL.iter().map(|&part| (part.name().to_owned(), self.part(part).len() as u64)).collect()
    }
}

/// Reads all files of a task and parts the rows, which have one label each.
///
/// # Errors
/// Also where they have several: see [`load_any`].
pub fn load(task: &TaskFile, seed: u64) -> Result<Splits, DataError> {
    match load_any(task, seed)? {
        Loaded::Classes(splits) => Ok(*splits),
        Loaded::Sets(_) => Err(DataError::Task(format!(
            "several labels a row (a list in `{}`) are not supported here: give each row one",
            task.data.label
        ))),
    }
}

/// Reads all files of a task and parts the rows, whether they have one label each or several.
pub fn load_any(task: &TaskFile, seed: u64) -> Result<Loaded, DataError> {
    let read = read(task)?;
    if read.1.iter().flatten().any(|row| is_list(&row.label)) {
        return sets::load(task, read, seed).map(|sets| Loaded::Sets(Box::new(sets)));
    }
    load_classes(task, read, seed).map(|splits| Loaded::Classes(Box::new(splits)))
}

fn load_classes(task: &TaskFile, (files, rows): Read, seed: u64) -> Result<Splits, DataError> {
    let data = &task.data;
    let labels = labels(&rows, data.out_of_scope.as_deref())?;
    data.hierarchy.as_ref().map_or(Ok(()), |separator| hierarchy::check(&labels, separator))?;
    let given = [true, !data.validation.is_empty(), !data.calibration.is_empty(), !data.test.is_empty()];
    let mut parts: [Vec<Example>; 4] = Default::default();
    let mut moved_to_train = 0;
    let [train, others @ ..] = rows;
    let train: Vec<Example> = train.into_iter().map(|row| example(row, &labels)).collect::<Result<_, _>>()?;
    let assigned: Vec<Part> = train.iter().map(|example| assign(&example.row, given, seed)).collect();
    let mut trained = vec![false; labels.len()];
    train.iter().zip(&assigned).for_each(|(example, part)| trained[example.class] |= *part == Part::Train);
    // A label whose rows all hashed elsewhere goes to training whole, with every row of the same group or text.
    let rescued: BTreeSet<String> =
        train.iter().filter(|example| !trained[example.class]).map(|example| key(&example.row)).collect();
    for (example, part) in train.into_iter().zip(assigned) {
        let rescue = part != Part::Train && rescued.contains(&key(&example.row));
        moved_to_train += u64::from(rescue);
        parts[if rescue { Part::Train } else { part } as usize].push(example);
    }
    for (part, rows) in Part::ALL.into_iter().skip(1).zip(others) {
        for row in rows {
            parts[part as usize].push(example(row, &labels)?);
        }
    }
    let leak = leak::check(&mut parts, &data.text);
    if parts[Part::Train as usize].is_empty()
        && let Some(first) = leak.listed.first()
    {
        let message = format!(
            "no training row is left: all {} are like rows that are measured on, such as {}",
            leak.removed, first.measured
        );
        return Err(DataError::Task(format!("{}: {message}", first.train)));
    }
    for (class, label) in labels.iter().enumerate() {
        if data.out_of_scope.as_ref() != Some(label) && !parts[0].iter().any(|example| example.class == class) {
            let message = "every training row is a near-duplicate of a row that is measured on";
            return Err(DataError::Task(format!("label `{label}`: {message}")));
        }
    }
    if parts[Part::Validation as usize].is_empty() {
        let rows = || parts.iter().flatten();
        let different: BTreeSet<String> = rows().map(|example| fold(&example.row.text)).collect();
        if let (1, Some(first)) = (different.len(), rows().next()) {
            let message = format!("all {} rows hold one text: there is nothing to tell apart", rows().count());
            return Err(DataError::row(&first.row.place, message));
        }
        return Err(DataError::Task(format!(
            "no row fell into validation: {} rows are too few to split; give a `data.validation` file",
            parts.iter().map(Vec::len).sum::<usize>()
        )));
    }
    Ok(Splits { labels, parts, files, leak, moved_to_train })
}

/// The files of a task, and their rows by part.
type Read = (Vec<DataFile>, [Vec<Row>; 4]);

/// The files of a task and their rows, by part.
fn read(task: &TaskFile) -> Result<Read, DataError> {
    let data = &task.data;
    let mut files = Vec::new();
    let mut answers = |path: &Option<PathBuf>| match path {
        None => Ok(None),
        Some(path) => {
            let answers = Answers::read(path)?;
            let sha256 = Digest::of_file(path).map_err(|source| DataError::Io { path: path.clone(), source })?;
            files.push(DataFile { role: "answers".to_owned(), sha256, rows: answers.first.len() as u64 });
            Ok(Some(answers))
        }
    };
    let (label_answers, reference_answers) = (answers(&data.label_answers)?, answers(&task.reference_answers)?);
    let columns = Columns {
        text: &data.text,
        label: &data.label,
        group: data.group.as_deref(),
        reference: task.reference.as_deref(),
        label_answers: label_answers.as_ref(),
        reference_answers: reference_answers.as_ref(),
    };
    let mut rows: [Vec<Row>; 4] = Default::default();
    for (part, paths) in Part::ALL.into_iter().zip([&data.train, &data.validation, &data.calibration, &data.test]) {
        for path in paths {
            let read = table::read(path, &columns)?;
            let sha256 = Digest::of_file(path).map_err(|source| DataError::Io { path: path.clone(), source })?;
            check_slices(&read, &data.slice)?;
            files.push(DataFile { role: part.name().to_owned(), sha256, rows: read.len() as u64 });
            rows[part as usize].extend(read);
        }
    }
    Ok((files, rows))
}

/// The same for rows whose answers are texts: parted and checked by the same rules, without labels; every class is 0.
pub fn load_texts(task: &TaskFile, seed: u64) -> Result<Splits, DataError> {
    load_read(task, read(task)?, seed)
}

/// The same of rows that were read.
pub(super) fn load_read(task: &TaskFile, (files, rows): Read, seed: u64) -> Result<Splits, DataError> {
    let data = &task.data;
    let given = [true, !data.validation.is_empty(), !data.calibration.is_empty(), !data.test.is_empty()];
    // One class an output for a while, so that equal inputs with other outputs are found.
    let outputs: BTreeSet<String> = rows.iter().flatten().map(|row| row.label.clone()).collect();
    let outputs: BTreeMap<String, usize> = outputs.into_iter().zip(0..).collect();
    let example = |row: Row| Example { class: outputs[&row.label], row };
    let mut parts: [Vec<Example>; 4] = Default::default();
    let [train, others @ ..] = rows;
    for row in train {
        parts[assign(&row, given, seed) as usize].push(example(row));
    }
    for (part, rows) in Part::ALL.into_iter().skip(1).zip(others) {
        parts[part as usize].extend(rows.into_iter().map(example));
    }
    let leak = leak::check(&mut parts, &data.text);
    parts.iter_mut().flatten().for_each(|example| example.class = 0);
    for part in [Part::Train, Part::Validation] {
        if parts[part as usize].is_empty() {
            return Err(DataError::Task(format!(
                "no row is left for {}: {} rows are too few to split, {} of the training rows were like rows that are \
                 measured on; give more rows, or a `data.{}` file",
                part.name(),
                parts.iter().map(Vec::len).sum::<usize>(),
                leak.removed,
                part.name()
            )));
        }
    }
    Ok(Splits { labels: Vec::new(), parts, files, leak, moved_to_train: 0 })
}

/// The columns that figures are told apart by must be there in every file.
fn check_slices(rows: &[Row], slices: &[String]) -> Result<(), DataError> {
    let Some(first) = rows.first() else { return Ok(()) };
    let columns = || rows.iter().flat_map(|row| row.extra.iter().map(|(column, _)| &**column));
    for slice in slices {
        if !columns().any(|column| column == slice) {
            let near = nearest(slice, columns());
            let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            let message = format!("there is no further column `{slice}` to tell figures apart by (`data.slice`){near}");
            return Err(DataError::row(&first.place, message));
        }
    }
    Ok(())
}

/// Gives rows their classes; a label that is not among the sorted `labels` is an error.
pub fn examples(rows: Vec<Row>, labels: &[String]) -> Result<Vec<Example>, DataError> {
    rows.into_iter().map(|row| example(row, labels)).collect()
}

fn example(row: Row, labels: &[String]) -> Result<Example, DataError> {
    match labels.binary_search(&row.label) {
        Ok(class) => Ok(Example { row, class }),
        Err(_) => {
            let near = nearest(&row.label, labels.iter().map(String::as_str));
            let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            Err(DataError::row(&row.place, format!("label `{}` is not in the training rows{near}", row.label)))
        }
    }
}

/// The sorted labels of the training rows; the out-of-scope label also where only other rows have it.
fn labels(rows: &[Vec<Row>; 4], out_of_scope: Option<&str>) -> Result<Vec<String>, DataError> {
    let mut count: BTreeMap<&str, (usize, &Place)> = BTreeMap::new();
    for row in &rows[0] {
        count.entry(&row.label).or_insert((0, &row.place)).0 += 1;
    }
    if let [(label, (_, place))] = count.iter().collect::<Vec<_>>()[..] {
        let message = format!("all training rows have the label `{label}`: there is nothing to tell apart");
        return Err(DataError::row(place, message));
    }
    if count.len() > MAX_LABELS {
        return Err(DataError::Task(format!(
            "{} different labels; at most {MAX_LABELS} are supported: is the label column right?",
            count.len()
        )));
    }
    let rare = |n: usize, label: &str| n < MIN_ROWS_A_LABEL && out_of_scope != Some(label);
    if let Some((label, (n, place))) = count.iter().find(|(label, (n, _))| rare(*n, label)) {
        let frequent = count.iter().filter(|(_, (n, _))| *n >= MIN_ROWS_A_LABEL).map(|(label, _)| *label);
        let near = nearest(label, frequent).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        let message = format!("label `{label}` has {n} training rows, at least {MIN_ROWS_A_LABEL} are needed{near}");
        return Err(DataError::row(place, message));
    }
    let mut labels: BTreeSet<&str> = count.into_keys().collect();
    if let Some(label) = out_of_scope {
        if !rows.iter().flatten().any(|row| row.label == label) {
            let near = nearest(label, labels.iter().copied());
            let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            return Err(DataError::Task(format!("no row has the out-of-scope label `{label}`{near}")));
        }
        labels.insert(label);
    }
    Ok(labels.into_iter().map(str::to_owned).collect())
}

/// Rows with equal keys stay together.
fn key(row: &Row) -> String {
    row.group.as_ref().map_or_else(|| fold(&row.text), |group| format!("group {group}"))
}

fn assign(row: &Row, given: [bool; 4], seed: u64) -> Part {
    let digest = Digest::of(format!("{seed} {}", key(row)).as_bytes());
    let number = u64::from_be_bytes(digest.0[..8].try_into().expect("eight bytes")) % 1000;
    let mut end = 0;
    for part in Part::ALL.into_iter().skip(1).filter(|part| !given[*part as usize]) {
        end += SHARE_PER_MILLE;
        if number < end {
            return part;
        }
    }
    Part::Train
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::path::Path;

    use super::*;

    fn load_csv(files: &[(&str, &str)], extra: &str) -> Result<Splits, String> {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(dir.path().join(name), text).unwrap());
        let named: String = files.iter().map(|(n, _)| format!("{} = \"{n}\"\n", n.trim_end_matches(".csv"))).collect();
        let toml = format!("name = \"t\"\nkind = \"classify\"\n[data]\n{named}{extra}");
        let task = TaskFile::parse(&toml, &dir.path().join("task.toml"), &|_| None).unwrap();
        load(&task, 7).map_err(|error| error.to_string().replace(&format!("{}/", dir.path().display()), ""))
    }

    /// 400 rows, two labels, 23 customers, no two alike; every text twice in other clothes.
    fn rows() -> String {
        let word = |n: usize| ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath"][n % 8];
        let row = |i: usize| format!("{} {} {} {}", word(i), word(i / 8), word(i / 64 + 3), i * 7919);
        let lines = (0..400).map(|i| {
            format!("{},l{},c{}\n", row(i), i % 2, i % 23)
                + &format!("\"{}!\",l{},c{}\n", row(i).to_uppercase(), i % 2, i % 23)
        });
        format!("text,label,customer\n{}", lines.collect::<String>())
    }

    #[test]
    fn a_teachers_answers_stand_in_for_a_column() {
        use super::super::answers::{Answer, Asked, Writer, key};
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let rows: Vec<(String, &str)> =
            (0..300).map(|i| (format!("text {} {i}", i * 7919), ["a", "b"][i % 2])).collect();
        let csv: String = rows.iter().map(|(text, gold)| format!("{text},{gold}\n")).collect();
        std::fs::write(path("train.csv"), format!("text,gold\n{csv}")).unwrap();
        let (mut writer, _) = Writer::open(&path("answers.jsonl"), &Asked::new("t", "big", "?")).unwrap();
        // Of 300 rows 20 are not answered, and 10 not with a label; else the teacher says the other label.
        for (i, (text, gold)) in rows.iter().enumerate().skip(20) {
            let answer = (i >= 30).then(|| if *gold == "a" { "b" } else { "a" }.to_owned());
            let row = key(text);
            let (said, again, model, cost_usd, receipt) = (None, false, None, None, None);
            writer.add(&Answer { row, answer, said, again, model, cost_usd, receipt }).unwrap();
        }
        drop(writer);
        let read = |extra: &str| {
            let toml = format!("name = \"t\"\nkind = \"classify\"\n[data]\ntrain = \"train.csv\"\n{extra}");
            load(&TaskFile::parse(&toml, &path("task.toml"), &|_| None).unwrap(), 7)
        };
        let splits = read("label = \"answers.jsonl\"").unwrap();
        assert_eq!(splits.counts().values().sum::<u64>(), 270);
        let gold = |example: &Example| example.row.extra[0].1.clone();
        assert!(Part::ALL.iter().flat_map(|part| splits.part(*part)).all(|example| example.row.label != gold(example)));
        assert!(splits.files.iter().any(|file| file.role == "answers"));
        // As the reference all rows stay: what it did not answer is wrong there.
        let splits = read("label = \"gold\"\n[reference]\ncolumn = \"answers.jsonl\"").unwrap();
        assert_eq!(splits.counts().values().sum::<u64>(), 300);
        let references =
            || Part::ALL.iter().flat_map(|part| splits.part(*part)).map(|e| e.row.reference.clone().unwrap());
        assert_eq!(references().filter(String::is_empty).count(), 30);
        std::fs::write(path("train.csv"), "text,gold\nnever asked,a\nnor this,b\n").unwrap();
        let error = read("label = \"answers.jsonl\"").unwrap_err().to_string();
        assert!(error.contains("holds no row that has an answer: `metier dataset label` asks"), "{error}");
    }

    #[test]
    fn parts_by_hash_and_keeps_equal_texts_together() {
        let splits = load_csv(&[("train.csv", &rows())], "").unwrap();
        let counts = splits.counts();
        assert_eq!(counts.values().sum::<u64>() + splits.leak.removed, 800);
        assert!(
            ["validation", "calibration", "test"].iter().all(|part| (40..=130).contains(&counts[*part])),
            "{counts:?}"
        );
        for part in Part::ALL {
            let keys: BTreeSet<String> = splits.part(part).iter().map(|e| key(&e.row)).collect();
            let others = Part::ALL.into_iter().filter(|other| *other != part);
            assert!(others.flat_map(|other| splits.part(other)).all(|e| !keys.contains(&key(&e.row))));
        }
    }

    #[test]
    fn groups_never_part() {
        let splits =
            load_csv(&[("train.csv", &rows())], "group = \"customer\"").unwrap_or_else(|error| panic!("{error}"));
        let parts_of = |group: &str| {
            let is = |e: &&Example| e.row.group.as_deref() == Some(group);
            Part::ALL.iter().filter(|part| splits.part(**part).iter().find(is).is_some()).count()
        };
        assert!((0..23).all(|c| parts_of(&format!("c{c}")) <= 1));
    }

    #[track_caller]
    fn check(files: &[(&str, &str)], extra: &str, message: &str) {
        let error = load_csv(files, extra).expect_err("must be refused");
        assert!(error.contains(message), "`{error}` does not contain `{message}`");
    }

    #[test]
    fn refuses_what_is_no_task() {
        let good = rows();
        check(&[("train.csv", "text,label\na,x\nb,x\nc,x\n")], "", "all training rows have the label `x`");
        let misspelt = format!("{good}something else,l00,c1\n");
        check(
            &[("train.csv", &misspelt)],
            "",
            "train.csv:802: label `l00` has 1 training rows, at least 3 are needed; did you mean `l0`?",
        );
        let test = "text,label\nq,l1\nr,ll1\n";
        check(
            &[("train.csv", &good), ("test.csv", test)],
            "",
            "test.csv:3: label `ll1` is not in the training rows; did you mean `l1`?",
        );
        check(&[("train.csv", &good)], "slice = \"custmer\"", "no further column `custmer`");
        check(&[("train.csv", &good)], "slice = \"custmer\"", "did you mean `customer`?");
        check(
            &[("train.csv", &good)],
            "out_of_scope = \"l3\"",
            "no row has the out-of-scope label `l3`; did you mean `l0`?",
        );
        let few = "text,label\na,x\nb,x\nc,x\nd,y\ne,y\nf,y\n";
        check(&[("train.csv", few)], "", "too few to split");
        assert!(Path::new("train.csv").is_relative());
    }

    #[test]
    fn training_keeps_off_what_is_measured_on() {
        let test = "text,label,customer\nAmber amber delta 0?,l0,c0\n";
        let splits = load_csv(&[("train.csv", &rows()), ("test.csv", test)], "").unwrap();
        let gone = "amber amber delta 0";
        assert!(splits.part(Part::Train).iter().all(|e| fold(&e.row.text) != gone));
        assert_eq!(splits.part(Part::Test).len(), 1);
        assert!(
            splits.leak.removed >= 2
                || splits.part(Part::Validation).iter().any(|e| fold(&e.row.text) == gone)
                || splits.part(Part::Calibration).iter().any(|e| fold(&e.row.text) == gone)
        );
    }
}
