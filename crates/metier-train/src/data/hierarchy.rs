//! Labels that are paths: are they, and is every part of them there?

use metier_model::specialist::hierarchy::depth;

use super::DataError;

/// Most parts of a path.
pub const MAX_DEPTH: usize = 10;

/// Whether labels can be read as paths.
///
/// # Errors
///
/// Where no label has two parts, one has an empty part, or too many.
pub fn check(labels: &[String], separator: &str) -> Result<(), DataError> {
    for label in labels {
        if label.split(separator).any(|part| part.trim().is_empty()) {
            return Err(DataError::Task(format!(
                "label `{label}` has an empty part between its `{separator}`: with `data.hierarchy` a label is a path, such as `billing{separator}refund`"
            )));
        }
        if depth(label, separator) > MAX_DEPTH {
            return Err(DataError::Task(format!("label `{label}` has more than {MAX_DEPTH} parts")));
        }
    }
    if labels.iter().all(|label| depth(label, separator) == 1) {
        return Err(DataError::Task(format!(
            "no label has a `{separator}`, which `data.hierarchy` says separates the parts of a path: leave it out, or name what does"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_whole_parts() {
        let check = |labels: &[&str]| {
            let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
            check(&labels, "/").map_err(|error| error.to_string())
        };
        assert_eq!(check(&["a", "b/c", "b/c/d"]), Ok(()));
        assert!(check(&["a", "b"]).unwrap_err().contains("no label has a `/`"));
        assert!(check(&["a/b", "a//b"]).unwrap_err().contains("`a//b` has an empty part"));
        assert!(check(&["a/b", "/b"]).is_err() && check(&["a/b", "b/ "]).is_err());
        assert!(check(&["a/b", "1/2/3/4/5/6/7/8/9/10/11"]).unwrap_err().contains("more than 10 parts"));
    }
}
