//! Zeroed memory, here or on a device.

use crate::{Device, Error};
use hadal_artifact::ALIGN;
use memmap2::MmapMut;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Zeroed memory. What lies here is taken from the system page by page as it is touched, in huge pages where possible.
pub(crate) struct Region {
    place: Place,
    start: *mut u8,
    /// How many bytes.
    pub bytes: usize,
}

enum Place {
    Nowhere,
    Here(MmapMut),
    There(Arc<dyn Device>),
}

impl Region {
    /// So many bytes of this process; `what` is for errors.
    pub fn new(what: &'static str, bytes: u64) -> Result<Region, Error> {
        Self::on(None, what, bytes)
    }

    /// So many bytes of a device, or of this process.
    pub fn on(device: Option<&Arc<dyn Device>>, what: &'static str, bytes: u64) -> Result<Region, Error> {
        if bytes == 0 {
            // An address that is aligned and never touched.
            let start = std::ptr::without_provenance_mut(ALIGN as usize);
            return Ok(Region { place: Place::Nowhere, start, bytes: 0 });
        }
        let at = |source| Error::Memory { what, bytes, source };
        let size = usize::try_from(bytes).map_err(|_| at(std::io::ErrorKind::OutOfMemory.into()))?;
        if size > isize::MAX as usize {
            return Err(at(std::io::ErrorKind::OutOfMemory.into()));
        }
        if let Some(device) = device {
            let start = device.allocate(size).map_err(|e| at(std::io::Error::other(e)))?;
            return Ok(Region { place: Place::There(device.clone()), start, bytes: size });
        }
        let mut map = MmapMut::map_anon(size).map_err(at)?;
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = map.as_mut_ptr();
        Ok(Region { place: Place::Here(map), start, bytes: size })
    }

    /// The first byte.
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// Some of the bytes.
    pub fn read(&self, range: Range<usize>) -> Result<Cow<'_, [u8]>, Error> {
        match &self.place {
            Place::Nowhere => Ok((&[]).into()),
            Place::Here(map) => Ok((&map[range]).into()),
            Place::There(device) => {
                let from = self.inside(&range);
                let mut bytes = vec![0; range.len()];
                // SAFETY: `inside` finds the range in what this region has of the device.
                unsafe { device.read(from, &mut bytes) }.map_err(Error::Device)?;
                Ok(bytes.into())
            }
        }
    }

    /// The first bytes.
    pub fn read_into(&self, bytes: &mut [u8]) -> Result<(), Error> {
        match &self.place {
            Place::Nowhere => Ok(()),
            Place::Here(map) => {
                bytes.copy_from_slice(&map[..bytes.len()]);
                Ok(())
            }
            Place::There(device) => {
                let from = self.inside(&(0..bytes.len()));
                // SAFETY: as in `read`.
                unsafe { device.read(from, bytes) }.map_err(Error::Device)
            }
        }
    }

    /// Puts bytes at an offset.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), Error> {
        let range = at..at + bytes.len();
        match &mut self.place {
            Place::Nowhere => {}
            Place::Here(map) => map[range].copy_from_slice(bytes),
            Place::There(device) => {
                let (device, to) = (device.clone(), self.inside(&range));
                // SAFETY: as in `read`.
                unsafe { device.write(to, bytes) }.map_err(Error::Device)?;
            }
        }
        Ok(())
    }

    /// Moves bytes towards the front, which may overlap.
    pub fn move_down(&mut self, from: Range<usize>, to: usize) -> Result<(), Error> {
        match &mut self.place {
            Place::Nowhere => {}
            Place::Here(map) => map.copy_within(from, to),
            Place::There(device) => {
                let (device, distance) = (device.clone(), from.start - to);
                // Piece by piece, none of which overlaps with where it goes.
                for first in from.clone().step_by(distance.max(1)).take_while(|_| distance > 0) {
                    let piece = first..from.end.min(first + distance);
                    let (source, target) =
                        (self.inside(&piece), self.inside(&(first - distance..piece.end - distance)));
                    // SAFETY: as in `read`.
                    unsafe { device.copy(source, target, piece.len()) }.map_err(Error::Device)?;
                }
            }
        }
        Ok(())
    }

    /// The first byte of a range, all of which there must be.
    fn inside(&self, range: &Range<usize>) -> *mut u8 {
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?} of {} bytes", self.bytes);
        self.start.wrapping_add(range.start)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Place::There(device) = &self.place {
            // SAFETY: it was allocated so; who has addresses of it has dropped them.
            unsafe { device.free(self.start, self.bytes) }
        }
    }
}
