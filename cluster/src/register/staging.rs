//! Parts of what files declare, until the last of them is there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::command::Refusal;
use super::file::{Declared, Digest, FILE_BYTES_MAX, PART_BYTES_MAX, read_declared};

/// Files on their way at once. The one not heard of for longest makes room: who sends it begins again.
pub const STAGINGS_MAX: usize = 4;

/// Parts of one file.
const PARTS_MAX: u32 = 64;

const _: () = assert!(PARTS_MAX as usize * PART_BYTES_MAX == FILE_BYTES_MAX, "as many parts as a file may have bytes");

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Stagings(BTreeMap<Digest, Staging>);

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Staging {
    of: u32,
    /// The serial of the command that brought the last part.
    touched: u64,
    parts: Vec<Vec<u8>>,
}

/// One part, as the command has it.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub digest: Digest,
    pub number: u32,
    pub of: u32,
    pub bytes: &'a [u8],
}

impl Stagings {
    /// `Some`: with this part all are there. Nothing is kept of the last part, so that it can be sent again.
    pub(super) fn take(&mut self, part: Part<'_>, serial: u64) -> Result<Option<Declared>, Refusal> {
        let Part { digest, number: part, of, bytes } = part;
        if of == 0 || of > PARTS_MAX || part >= of {
            return Err(damaged(format!("part {part} of {of}; there are 1 to {PARTS_MAX}")));
        }
        if bytes.is_empty() || bytes.len() > PART_BYTES_MAX {
            return Err(damaged(format!("a part has {} bytes; 1 to {PART_BYTES_MAX} are allowed", bytes.len())));
        }
        if part == 0 && !self.0.contains_key(&digest) && of > 1 {
            self.make_room();
        }
        let before = self.0.get(&digest);
        let wanted = before.map_or(0, |staging| staging.parts.len());
        let number = part as usize;
        if number > wanted {
            return Err(Refusal::PartMissing { wanted: u32::try_from(wanted).unwrap_or(u32::MAX), part });
        }
        if before
            .is_some_and(|staging| staging.of != of || staging.parts.get(number).is_some_and(|known| known != bytes))
        {
            self.0.remove(&digest);
            return Err(damaged("another part came under the same number before".to_owned()));
        }
        if part + 1 == of {
            return self.whole(digest, bytes).map(Some);
        }
        let staging = self.0.entry(digest).or_insert_with(|| Staging { of, touched: serial, parts: Vec::new() });
        staging.touched = serial;
        if number == staging.parts.len() {
            staging.parts.push(bytes.to_vec());
        }
        Ok(None)
    }

    pub(super) fn forget(&mut self, digest: Digest) {
        self.0.remove(&digest);
    }

    fn make_room(&mut self) {
        while self.0.len() >= STAGINGS_MAX {
            let stalest = self.0.iter().min_by_key(|(_digest, staging)| staging.touched).map(|(digest, _)| *digest);
            if let Some(digest) = stalest {
                self.0.remove(&digest);
            }
        }
    }

    fn whole(&mut self, digest: Digest, last: &[u8]) -> Result<Declared, Refusal> {
        let parts = self.0.get(&digest).map(|staging| staging.parts.concat()).unwrap_or_default();
        let bytes = [parts.as_slice(), last].concat();
        if Digest::of(&bytes) != digest {
            self.0.remove(&digest);
            return Err(damaged("the digest of all parts is another".to_owned()));
        }
        read_declared(&bytes).map_err(|_error| damaged("they hold no resources".to_owned()))
    }
}

fn damaged(why: String) -> Refusal {
    Refusal::Damaged { why }
}
