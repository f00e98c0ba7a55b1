//! What a configuration file declares, as it travels: canonical, in parts, without a secret.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::bytes::{self, DecodeError};
use super::command::{Act, Kind};
use crate::directory::problems::Problems;
use crate::directory::resources::Resources;
use crate::directory::secret::SecretRef;
use crate::directory::wire::{Spec, hashed, shape_specs};
use crate::id::NodeId;

/// Bytes of one part: it shares a log entry with other commands.
pub const PART_BYTES_MAX: usize = 256 * 1024;

/// Bytes of all parts together. A larger file is refused before its first part is proposed.
pub const FILE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Version of the parts' content.
const FORMAT: u8 = 1;

/// BLAKE3 of [`FileResources`]' bytes: the same for the same declarations, whatever node or program version made it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

/// 12 hexadecimal digits: enough to tell two apart.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(6).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The specs by kind and name.
pub type Declared = BTreeMap<(Kind, String), String>;

/// Everything a file declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileResources {
    declared: Declared,
    bytes: Vec<u8>,
    digest: Digest,
}

impl FileResources {
    /// Secrets of keys become hashes; credentials become references. `secrets` gives the text a reference stands for.
    pub fn new(resources: &Resources, secrets: &dyn Fn(&SecretRef) -> Option<String>) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        let mut declared = Declared::new();
        let keys = resources.keys.iter().filter_map(|(name, spec)| {
            let spec = problems.within("keys", |problems| problems.within(name, |p| hashed(spec, secrets, p)))?;
            Some((name.clone(), Spec::Key(Box::new(spec))))
        });
        let keys: Vec<_> = keys.collect();
        for (name, spec) in shape_specs(resources).chain(keys) {
            match spec.write(&name) {
                Ok(text) => drop(declared.insert((spec.kind(), name), text)),
                Err(error) => problems.within(spec.kind().name(), |problems| problems.add(&name, error.to_string())),
            }
        }
        let bytes = bytes::encode(FORMAT, &declared);
        if bytes.len() > FILE_BYTES_MAX {
            let length = bytes.len();
            problems.add("", format!("the resources come to {length} bytes; {FILE_BYTES_MAX} are allowed"));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self { digest: Digest::of(&bytes), declared, bytes })
    }

    pub fn digest(&self) -> Digest {
        self.digest
    }

    pub fn declared(&self) -> &Declared {
        &self.declared
    }

    /// One act a part, to be proposed in this order. `shape` is what the resources were checked against.
    pub fn acts(&self, revision: Option<u64>, shape: u64, by: NodeId) -> impl Iterator<Item = Act> {
        let of = u32::try_from(self.bytes.len().div_ceil(PART_BYTES_MAX)).unwrap_or(u32::MAX);
        self.bytes.chunks(PART_BYTES_MAX).zip(0..of).map(move |(bytes, part)| Act::ReconcilePart {
            digest: self.digest,
            revision,
            part,
            of,
            bytes: bytes.to_vec(),
            shape,
            by,
        })
    }
}

/// What all parts together declare.
pub(super) fn read_declared(bytes: &[u8]) -> Result<Declared, DecodeError> {
    bytes::decode(FORMAT, bytes, FILE_BYTES_MAX as u64)
}
