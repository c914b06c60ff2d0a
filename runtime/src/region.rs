//! Zeroed memory.

use crate::Error;
use hadal_artifact::ALIGN;
use memmap2::MmapMut;

/// Zeroed memory, taken from the system page by page as it is touched, in huge pages where possible.
pub(crate) struct Region {
    map: Option<MmapMut>,
    start: *mut u8,
    /// How many bytes.
    pub bytes: usize,
}

impl Region {
    /// So many bytes; `what` is for errors.
    pub fn new(what: &'static str, bytes: u64) -> Result<Region, Error> {
        if bytes == 0 {
            // An address that is aligned and never touched.
            return Ok(Region { map: None, start: std::ptr::without_provenance_mut(ALIGN as usize), bytes: 0 });
        }
        let at = |source| Error::Memory { what, bytes, source };
        let size = usize::try_from(bytes).map_err(|_| at(std::io::ErrorKind::OutOfMemory.into()))?;
        if size > isize::MAX as usize {
            return Err(at(std::io::ErrorKind::OutOfMemory.into()));
        }
        let mut map = MmapMut::map_anon(size).map_err(at)?;
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = map.as_mut_ptr();
        Ok(Region { map: Some(map), start, bytes: size })
    }

    /// The first byte.
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// All bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    /// All bytes, to be changed.
    pub fn as_mut_bytes(&mut self) -> &mut [u8] {
        self.map.as_deref_mut().unwrap_or(&mut [])
    }
}
