//! All keys, in 256 parts that are shared between those who read and the one who writes: a change copies one part.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use super::key::{Key, KeyHash, KeyHasher};
use super::kind::Origin;

/// As many as the first byte of a hash has values.
pub const SHARDS: usize = 256;

type Shard = HashMap<KeyHash, Slot, BuildHasherDefault<KeyHasher>>;

/// A key, and what the register keeps with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    pub name: Arc<str>,
    /// JSON, as [`super::wire`] writes it. Empty for a directory that was built from a file alone.
    pub spec: Box<str>,
    /// The serial of the command that last changed it.
    pub version: u64,
    pub origin: Origin,
    pub revoked: bool,
}

/// What a hash leads to. The key stands here and not in the record, so that the look-up of a request has one place in
/// memory less to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot {
    /// `None` where the key is revoked, or where this program cannot read its spec.
    key: Option<Arc<Key>>,
    record: Arc<KeyRecord>,
}

/// Cheap to clone: the parts are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyShards {
    shards: Box<[Arc<Shard>; SHARDS]>,
}

impl Default for KeyShards {
    fn default() -> Self {
        let empty = Arc::new(Shard::default());
        Self { shards: Box::new(std::array::from_fn(|_index| Arc::clone(&empty))) }
    }
}

impl KeyShards {
    /// The key, if it may be used.
    pub fn key(&self, hash: &KeyHash) -> Option<&Arc<Key>> {
        self.shard(hash).get(hash)?.key.as_ref()
    }

    /// Whether it may be used or not.
    pub fn get(&self, hash: &KeyHash) -> Option<&Arc<KeyRecord>> {
        self.shard(hash).get(hash).map(|slot| &slot.record)
    }

    /// Copies the hash's shard if anyone else holds it. A revoked key is not found, whatever `key` is.
    pub fn insert(&mut self, hash: KeyHash, record: KeyRecord, key: Option<Arc<Key>>) {
        let key = key.filter(|_key| !record.revoked);
        self.shard_mut(&hash).insert(hash, Slot { key, record: Arc::new(record) });
    }

    /// As [`Self::insert`].
    pub fn remove(&mut self, hash: &KeyHash) -> Option<Arc<KeyRecord>> {
        self.get(hash)?;
        self.shard_mut(hash).remove(hash).map(|slot| slot.record)
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.is_empty())
    }

    /// In no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = (&KeyHash, &Arc<KeyRecord>)> {
        self.shards.iter().flat_map(|shard| shard.iter()).map(|(hash, slot)| (hash, &slot.record))
    }

    /// How many parts are the very same ones in memory.
    pub fn shared_with(&self, other: &Self) -> usize {
        self.shards.iter().zip(other.shards.iter()).filter(|(one, other)| Arc::ptr_eq(one, other)).count()
    }

    fn shard(&self, hash: &KeyHash) -> &Arc<Shard> {
        &self.shards[usize::from(hash.first_byte())]
    }

    fn shard_mut(&mut self, hash: &KeyHash) -> &mut Shard {
        Arc::make_mut(&mut self.shards[usize::from(hash.first_byte())])
    }
}
