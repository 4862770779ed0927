//! Which named tensors lie in these files together?
//!
//! **Question:** a network's weights may come in one file or in many: what is called so, and where are its bytes? **In:** files and
//! the checked indexes of `format`. **Out:** tensors by name. **Absent:** what a tensor is for, and opening by path.

use std::collections::BTreeMap;

use crate::{
    base::Bytes,
    format::{Tensor, TensorInfo},
};

/// The tensors of one or more files.
#[derive(Default)]
pub(crate) struct TensorFiles {
    files: Vec<Bytes>,
    tensors: BTreeMap<String, Place>,
}

/// Where a tensor lies.
#[derive(Clone)]
pub(crate) struct Place {
    file_idx: usize,
    info: TensorInfo,
}

impl Place {
    /// Index of its file, in the order of [`TensorFiles::add`].
    pub(crate) fn file_idx(&self) -> usize {
        self.file_idx
    }
}

/// A name stands in two files.
#[derive(Debug)]
pub(crate) struct InTwoFiles {
    pub(crate) tensor: String,
    /// Index of the file that had it first, in the order of [`TensorFiles::add`].
    pub(crate) first_idx: usize,
}

impl TensorFiles {
    /// Adds a file; `tensors` must be the index of these bytes.
    pub(crate) fn add(&mut self, bytes: Bytes, tensors: BTreeMap<String, TensorInfo>) -> Result<(), InTwoFiles> {
        let file_idx = self.files.len();
        self.files.push(bytes);
        for (name, info) in tensors {
            if let Some(first) = self.tensors.get(&name) {
                return Err(InTwoFiles { first_idx: first.file_idx, tensor: name });
            }
            self.tensors.insert(name, Place { file_idx, info });
        }
        Ok(())
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> usize {
        self.files.iter().map(|file| file.len()).sum()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let (name, place) = self.tensors.get_key_value(name)?;
        Some(self.at(name, place))
    }

    pub(crate) fn place(&self, name: &str) -> Option<&Place> {
        self.tensors.get(name)
    }

    /// The tensor that lies there; `name` is only what it is called.
    pub(crate) fn at<'a>(&'a self, name: &'a str, place: &'a Place) -> Tensor<'a> {
        let TensorInfo { dtype, shape, range } = &place.info;
        Tensor { name, dtype: *dtype, shape, bytes: &self.files[place.file_idx][range.clone()] }
    }

    /// Lets go of pages that were read once, while repacking.
    pub(crate) fn release(&self) {
        self.files.iter().for_each(Bytes::release);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::format::{Gguf, TensorType, gguf_write::GgufWriter};

    #[test]
    fn files_are_one_set_of_names() {
        let file = |name: &str, byte: u8| {
            let bytes = GgufWriter::new().tensor(name, &[4], TensorType::F32, vec![byte; 16]).finish();
            let tensors = Gguf::parse(&bytes).unwrap().tensors().clone();
            (Bytes::Owned(bytes), tensors)
        };
        let mut files = TensorFiles::default();
        for (name, byte) in [("a", 1), ("b", 2)] {
            let (bytes, tensors) = file(name, byte);
            files.add(bytes, tensors).unwrap();
        }
        assert_eq!(files.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(files.tensor("b").unwrap().bytes, [2; 16]);
        assert!(files.tensor("c").is_none() && !files.has("c"));
        let (bytes, tensors) = file("b", 3);
        let twice = files.add(bytes, tensors).unwrap_err();
        assert_eq!((twice.tensor.as_str(), twice.first_idx), ("b", 1));
    }
}
