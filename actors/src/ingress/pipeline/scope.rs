//! The scope of a cached answer: who may ever be given it (P-ISOLATE).

use cluster::directory::key::Key;
use cluster::directory::route::{CacheShare, Route};
use storage::cache::Scope;

/// Raised when cached answers of earlier builds must not be found any more.
const FORMAT: u8 = 1;

/// The longest `x-lea-cache-namespace`; a longer one is refused.
pub const NAMESPACE_MAX: usize = 128;

/// BLAKE3 over a tagged encoding in which every part has its length before it, so that no two lists of parts read the
/// same. Computed once for each request, when it has been decoded.
pub fn scope(key: &Key, route: &Route, namespace: Option<&str>) -> Scope {
    let (level, owner) = match route.cache.share {
        CacheShare::Tenant => (b't', key.tenant.as_bytes()),
        CacheShare::Key => (b'k', key.name.as_bytes()),
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[FORMAT, level]);
    for part in [owner, key.tenant.as_bytes(), namespace.unwrap_or("").as_bytes(), route.name.as_bytes()] {
        hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        hasher.update(part);
    }
    // What the route leads to and keeps is part of it: an answer of a target that was replaced is not found any more.
    for target in &route.targets {
        for part in [target.provider.as_bytes(), target.model.as_bytes()] {
            hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            hasher.update(part);
        }
    }
    hasher.update(&route.cache.ttl.as_nanos().to_le_bytes());
    hasher.update(&[u8::from(route.cache.tool_calls)]);
    let mut scope = [0; 16];
    hasher.finalize_xof().fill(&mut scope);
    Scope(scope)
}
