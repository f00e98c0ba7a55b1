//! A disk in memory that forgets like a real one: what was not synced may be gone, or half there, after a crash.
//!
//! [`SimulatedDisk`] is the machine's medium and outlives its processes; [`SimulatedDisk::disk`] is what one life of the
//! process holds. After [`SimulatedDisk::crash`] or [`SimulatedDisk::kill`] every handle of that life fails, so that a
//! writer that has not heard of its death changes nothing.
//!
//! The model: within a file, changes reach the medium in order; a crash keeps any prefix of them, the last one possibly
//! torn, its missing part absent or zero. Names of one directory change in order too (a journalled file system), and
//! independently of contents: a renamed file may be found empty.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, File};

/// The medium. Cheap to clone: clones are the same medium.
#[derive(Clone, Default)]
pub struct SimulatedDisk {
    medium: Arc<Mutex<Medium>>,
}

#[derive(Default)]
struct Medium {
    /// Which life of the process may use it.
    life: u64,
    files: BTreeMap<u64, Content>,
    file_next: u64,
    directories: BTreeMap<String, Directory>,
    faults: Faults,
    syncs: u64,
}

#[derive(Default)]
struct Faults {
    syncs_before_failure: Option<u64>,
    capacity: Option<u64>,
}

/// Bytes as a reader sees them, and how they differ from what the medium holds.
#[derive(Default)]
struct Content {
    cached: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

enum Change {
    Append(Vec<u8>),
    Truncate(u64),
}

#[derive(Default)]
struct Directory {
    cached: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    pending: Vec<Naming>,
}

#[derive(Clone)]
enum Naming {
    Create(String, u64),
    Remove(String),
    Rename(String, String),
}

impl SimulatedDisk {
    pub fn new() -> Self {
        Self::default()
    }

    /// What the present life of the process uses.
    pub fn disk(&self) -> Arc<dyn Disk> {
        let life = self.medium.lock().life;
        Arc::new(View { medium: Arc::clone(&self.medium), life, path: String::new() })
    }

    /// The power goes: of what was not synced any prefix remains. The same seed loses the same.
    pub fn crash(&self, seed: u64) {
        let mut random = Random(seed);
        let mut medium = self.medium.lock();
        medium.life += 1;
        for content in medium.files.values_mut() {
            content.crash(&mut random);
        }
        for directory in medium.directories.values_mut() {
            directory.crash(&mut random);
        }
        medium.forget_unnamed();
    }

    /// Another medium, of one directory of this one: all of it that is sure to be there whenever the power goes.
    #[must_use]
    pub fn synced(&self, path: &str) -> Self {
        let medium = self.medium.lock();
        let names = medium.directories.get(path).map(|directory| directory.durable.clone()).unwrap_or_default();
        let content = |file: &u64| {
            let durable = medium.files.get(file)?.durable.clone();
            Some((*file, Content { cached: durable.clone(), durable, pending: Vec::new() }))
        };
        let files = names.values().filter_map(content).collect();
        let directory = Directory { cached: names.clone(), durable: names, pending: Vec::new() };
        let directories = BTreeMap::from([(path.to_owned(), directory)]);
        let copy = Medium { files, directories, file_next: medium.file_next, ..Medium::default() };
        Self { medium: Arc::new(Mutex::new(copy)) }
    }

    /// The process ends and the machine stays: nothing written is lost, every handle is.
    pub fn kill(&self) {
        self.medium.lock().life += 1;
    }

    /// After `more` further syncs that work, each fails.
    pub fn fail_syncs_after(&self, more: u64) {
        self.medium.lock().faults.syncs_before_failure = Some(more);
    }

    pub fn mend_syncs(&self) {
        self.medium.lock().faults.syncs_before_failure = None;
    }

    /// Bytes all files together may have; what does not fit is written in part and fails. `None`: no end.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.medium.lock().faults.capacity = bytes;
    }

    /// Syncs of files and directories so far, for who counts or delays them.
    pub fn syncs(&self) -> u64 {
        self.medium.lock().syncs
    }

    /// Flips bits in a file, cached and durable alike. `name` is a path such as `log/x`. False if there is no such byte.
    pub fn damage(&self, name: &str, offset: usize, flip: u8) -> bool {
        let mut medium = self.medium.lock();
        let (directory, name) = name.rsplit_once('/').unwrap_or(("", name));
        let Some(&file) = medium.directories.get(directory).and_then(|directory| directory.cached.get(name)) else {
            return false;
        };
        let Some(content) = medium.files.get_mut(&file) else { return false };
        let found = content.cached.get_mut(offset).map(|byte| *byte ^= flip).is_some();
        if let Some(byte) = content.durable.get_mut(offset) {
            *byte ^= flip;
        }
        found
    }
}

impl Medium {
    fn check(&self, life: u64) -> io::Result<()> {
        if self.life == life {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::BrokenPipe, "this life of the process has ended"))
        }
    }

    fn check_sync(&mut self) -> io::Result<()> {
        self.syncs += 1;
        match &mut self.faults.syncs_before_failure {
            None => Ok(()),
            Some(0) => Err(io::Error::other("simulated: the medium did not take it")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn used(&self) -> u64 {
        self.files.values().map(|content| content.cached.len() as u64).sum()
    }

    fn room(&self) -> u64 {
        self.faults.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.used()))
    }

    /// Drops contents that no name leads to any more, now or after a crash.
    fn forget_unnamed(&mut self) {
        let named: Vec<u64> = self
            .directories
            .values()
            .flat_map(|directory| {
                let pending = directory.pending.iter().filter_map(|naming| match naming {
                    Naming::Create(_name, file) => Some(*file),
                    Naming::Remove(_) | Naming::Rename(..) => None,
                });
                directory.cached.values().chain(directory.durable.values()).copied().chain(pending)
            })
            .collect();
        self.files.retain(|file, _content| named.contains(file));
    }
}

impl Content {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.cached);
        self.pending.push(change);
    }

    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    fn crash(&mut self, random: &mut Random) {
        let keep = random.below(self.pending.len() + 1);
        for (position, change) in self.pending.drain(..).enumerate() {
            if position < keep {
                change.apply(&mut self.durable);
            } else if position == keep {
                change.tear(&mut self.durable, random);
            }
        }
        self.cached.clone_from(&self.durable);
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Append(bytes) => content.extend_from_slice(bytes),
            Self::Truncate(length) => content.truncate(usize::try_from(*length).unwrap_or(usize::MAX)),
        }
    }

    /// Applies a part of it.
    fn tear(&self, content: &mut Vec<u8>, random: &mut Random) {
        match self {
            Self::Append(bytes) => {
                let arrived = random.below(bytes.len() + 1);
                content.extend_from_slice(&bytes[..arrived]);
                // The length was written before the bytes were.
                let zeros = if random.below(2) == 0 { 0 } else { random.below(bytes.len() - arrived + 1) };
                content.resize(content.len() + zeros, 0);
            }
            Self::Truncate(_) => {}
        }
    }
}

impl Directory {
    fn change(&mut self, naming: Naming) {
        naming.apply(&mut self.cached);
        self.pending.push(naming);
    }

    fn sync(&mut self) {
        for naming in self.pending.drain(..) {
            naming.apply(&mut self.durable);
        }
    }

    fn crash(&mut self, random: &mut Random) {
        let keep = random.below(self.pending.len() + 1);
        for naming in self.pending.drain(..).take(keep) {
            naming.apply(&mut self.durable);
        }
        self.cached.clone_from(&self.durable);
    }
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Create(name, file) => drop(names.insert(name.clone(), *file)),
            Self::Remove(name) => drop(names.remove(name)),
            Self::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
        }
    }
}

/// One directory as one life of the process sees it.
struct View {
    medium: Arc<Mutex<Medium>>,
    life: u64,
    path: String,
}

impl View {
    fn with<T>(&self, act: impl FnOnce(&mut Medium, &str) -> io::Result<T>) -> io::Result<T> {
        let mut medium = self.medium.lock();
        medium.check(self.life)?;
        act(&mut medium, &self.path)
    }

    fn handle(&self, file: u64) -> Box<dyn File> {
        Box::new(Handle { medium: Arc::clone(&self.medium), life: self.life, file })
    }
}

impl Disk for View {
    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let file = self.with(|medium, path| {
            let file = medium.file_next;
            let directory = medium.directories.entry(path.to_owned()).or_default();
            if directory.cached.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            directory.change(Naming::Create(name.to_owned(), file));
            medium.files.insert(file, Content::default());
            medium.file_next += 1;
            Ok(file)
        })?;
        Ok(self.handle(file))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        let file = self.with(|medium, path| medium.find(path, name))?;
        Ok(self.handle(file))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.with(|medium, path| {
            Ok(medium
                .directories
                .get(path)
                .map(|directory| directory.cached.keys().cloned().collect())
                .unwrap_or_default())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.with(|medium, path| {
            medium.find(path, name)?;
            medium.directories.entry(path.to_owned()).or_default().change(Naming::Remove(name.to_owned()));
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.with(|medium, path| {
            medium.find(path, from)?;
            let naming = Naming::Rename(from.to_owned(), to.to_owned());
            medium.directories.entry(path.to_owned()).or_default().change(naming);
            Ok(())
        })
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.with(|medium, path| {
            medium.check_sync()?;
            medium.directories.entry(path.to_owned()).or_default().sync();
            medium.forget_unnamed();
            Ok(())
        })
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.with(|medium, _path| Ok(medium.room()))
    }

    fn within(&self, name: &str) -> io::Result<Arc<dyn Disk>> {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}/{name}", self.path) };
        Ok(Arc::new(Self { medium: Arc::clone(&self.medium), life: self.life, path }))
    }
}

impl Medium {
    fn find(&self, path: &str, name: &str) -> io::Result<u64> {
        let directory = self.directories.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(*directory.cached.get(name).ok_or(io::ErrorKind::NotFound)?)
    }
}

struct Handle {
    medium: Arc<Mutex<Medium>>,
    life: u64,
    file: u64,
}

impl Handle {
    fn with<T>(&self, act: impl FnOnce(&mut Medium) -> io::Result<T>) -> io::Result<T> {
        let mut medium = self.medium.lock();
        medium.check(self.life)?;
        act(&mut medium)
    }

    fn content<'a>(&self, medium: &'a mut Medium) -> io::Result<&'a mut Content> {
        medium.files.get_mut(&self.file).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl File for Handle {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.with(|medium| {
            let room = usize::try_from(medium.room()).unwrap_or(usize::MAX);
            let fits = bytes.len().min(room);
            self.content(medium)?.change(Change::Append(bytes[..fits].to_vec()));
            if fits == bytes.len() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.with(|medium| {
            medium.check_sync()?;
            self.content(medium)?.sync();
            Ok(())
        })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.with(|medium| {
            let content = &self.content(medium)?.cached;
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let wanted = start.checked_add(buffer.len()).and_then(|end| content.get(start..end));
            buffer.copy_from_slice(wanted.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn length(&self) -> io::Result<u64> {
        self.with(|medium| Ok(self.content(medium)?.cached.len() as u64))
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.with(|medium| {
            self.content(medium)?.change(Change::Truncate(length));
            Ok(())
        })
    }
}

/// `SplitMix64` (Steele, Lea and Flood, 2014): small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content_after(seed: u64, act: impl FnOnce(&dyn Disk)) -> Option<Vec<u8>> {
        let machine = SimulatedDisk::new();
        act(&*machine.disk());
        machine.crash(seed);
        machine.disk().read_all("a").ok()
    }

    #[test]
    fn what_was_synced_stays_and_what_was_not_is_lost_in_every_way() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..2_000 {
            let content = content_after(seed, |disk| {
                let mut file = disk.create("a").unwrap();
                file.append(b"kept").unwrap();
                file.sync().unwrap();
                disk.sync_directory().unwrap();
                file.append(b"lost").unwrap();
            });
            seen.insert(content.expect("its name was synced"));
        }

        assert!(seen.iter().all(|content| content.starts_with(b"kept")), "{seen:?}");
        for possible in [&b"kept"[..], b"keptl", b"keptlost", b"keptlo\0", b"kept\0\0\0\0"] {
            assert!(seen.contains(possible), "{possible:?} in {seen:?}");
        }
    }

    #[test]
    fn a_name_that_was_not_synced_may_be_lost_although_its_bytes_were() {
        let found: Vec<bool> = (0..50)
            .map(|seed| {
                let content = content_after(seed, |disk| {
                    let mut file = disk.create("a").unwrap();
                    file.append(b"kept").unwrap();
                    file.sync().unwrap();
                });
                content.is_some()
            })
            .collect();

        assert!(found.contains(&true) && found.contains(&false));
    }

    #[test]
    fn what_was_not_synced_is_not_in_what_is_sure_to_stay() {
        let machine = SimulatedDisk::new();
        let disk = machine.disk().within("here").unwrap();
        let mut file = disk.create("a").unwrap();
        file.append(b"kept").unwrap();
        file.sync().unwrap();
        let read = |name: &str| machine.synced("here").disk().within("here").unwrap().read_all(name).ok();
        assert_eq!(read("a"), None, "its name may be lost");

        disk.sync_directory().unwrap();
        file.append(b"lost").unwrap();
        disk.create("b").unwrap();

        assert_eq!((read("a"), read("b")), (Some(b"kept".to_vec()), None));
        assert_eq!(disk.read_all("a").unwrap(), b"keptlost", "a look changes nothing");
    }

    #[test]
    fn handles_of_an_earlier_life_fail() {
        let machine = SimulatedDisk::new();
        let disk = machine.disk();
        let mut file = disk.create("a").unwrap();
        file.append(b"kept").unwrap();

        machine.kill();

        assert!(file.append(b"x").is_err() && file.sync().is_err() && disk.list().is_err());
        assert_eq!(machine.disk().read_all("a").unwrap(), b"kept");
    }

    #[test]
    fn a_full_disk_takes_what_fits_and_says_so() {
        let machine = SimulatedDisk::new();
        let mut file = machine.disk().create("a").unwrap();
        machine.set_capacity(Some(6));

        file.append(b"four").unwrap();
        let error = file.append(b"four").unwrap_err();

        assert!(super::super::is_full(&error));
        assert_eq!(file.length().unwrap(), 6);
        assert_eq!(machine.disk().free_bytes().unwrap(), 0);
    }
}
