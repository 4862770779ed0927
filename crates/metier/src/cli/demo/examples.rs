//! The four example tasks, carried in the binary so that the demo works wherever it lies. What they are and how their rows were written
//! stands in `examples/*/README.md`.

use std::{fs, io, path::Path};

/// One task of `examples/`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Example {
    /// Its folder, and the specialist's name.
    pub(super) name: &'static str,
    /// (file name, content)
    files: &'static [(&'static str, &'static str)],
}

macro_rules! example {
    ($name:literal) => {
        example!($name: "task.toml", "train.csv", "validation.csv", "calibration.csv", "test.csv")
    };
    ($name:literal: $($file:literal),*) => {
        Example {
            name: $name,
            files: &[$(($file, include_str!(concat!("../../../../../examples/", $name, "/", $file)))),*],
        }
    };
}

/// In the order in which the demo builds them.
pub(super) const EXAMPLES: [Example; 4] = [
    example!("support-tickets"),
    example!("contract-clauses"),
    example!("claim-triage"),
    example!("catalogue-category"),
];

/// Texts that belong to none of the tasks: `auto` has to say so.
pub(super) const FAR: [&str; 8] = [
    "What is the capital of Peru?",
    "Write a haiku about the moon over a frozen lake.",
    "In which year was the printing press invented?",
    "Explain photosynthesis to a child of six.",
    "How many moves does a knight need to cross a chess board?",
    "Translate `good morning, my friends` into Portuguese.",
    "Which key is Beethoven's fifth symphony in?",
    "Prove that there is no largest prime number.",
];

/// One row that nothing was trained or calibrated on.
#[derive(Clone, Debug, serde::Deserialize)]
pub(super) struct Row {
    /// What the specialist reads.
    pub(super) text: String,
    /// The right answer.
    pub(super) label: String,
}

impl Example {
    /// Writes the files into a folder of the task's name; returns the task file's path.
    pub(super) fn write(&self, under: &Path) -> io::Result<std::path::PathBuf> {
        let dir = under.join(self.name);
        fs::create_dir_all(&dir)?;
        for (name, content) in self.files {
            fs::write(dir.join(name), content)?;
        }
        Ok(dir.join("task.toml"))
    }

    fn file(&self, wanted: &str) -> &'static str {
        let found = self.files.iter().find(|(name, _)| *name == wanted);
        found.map(|(_, content)| *content).expect("every example has the same files")
    }

    /// The held-out rows.
    pub(super) fn test_rows(&self) -> Vec<Row> {
        let rows: Result<_, _> =
            csv::Reader::from_reader(self.file("test.csv").as_bytes()).into_deserialize().collect();
        rows.expect("a test reads every row of the examples")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_example_is_large_enough_and_reads() {
        for example in EXAMPLES {
            let rows = |file| -> Vec<Row> {
                csv::Reader::from_reader(example.file(file).as_bytes()).into_deserialize().map(Result::unwrap).collect()
            };
            let n_rows: usize = ["train.csv", "validation.csv", "calibration.csv", "test.csv"]
                .map(|file| rows(file).len())
                .iter()
                .sum();
            let classes: BTreeSet<_> = rows("train.csv").into_iter().map(|row| row.label).collect();
            assert!(n_rows >= 500 && classes.len() >= 8, "{}: {n_rows} rows, {} classes", example.name, classes.len());
            assert!(rows("calibration.csv").len() >= 100 && example.test_rows().len() >= 100, "{}", example.name);
            assert!(example.test_rows().iter().all(|row| classes.contains(&row.label)), "{}", example.name);
        }
    }
}
