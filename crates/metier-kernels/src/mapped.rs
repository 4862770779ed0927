//! Model files are mapped, not read: start-up costs page faults of what is touched, and processes share the pages.

use std::{fs::File, io, ops::Deref, path::Path};

/// A file, mapped read-only.
///
/// The map is private to this process, but a file that another process *shrinks* while it is mapped makes later reads fail
/// with SIGBUS; model caches rename finished files into place and never write to them again.
pub struct Mapped(Option<memmap2::Mmap>);

impl Mapped {
    /// Maps the whole file. An empty file gives an empty slice.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        if metadata.len() == 0 {
            return Ok(Self(None));
        }
        // SAFETY: read-only and private; model files are immutable once in place (see above).
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self(Some(map)))
    }

    /// Tells the kernel that the pages read so far are not needed soon: resident memory falls, later reads fault again.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Some(map) = &self.0 {
            // SAFETY: the map is read-only and file-backed: dropped pages come back from the file unchanged.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}

impl std::fmt::Debug for Mapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mapped({} bytes)", self.len())
    }
}
