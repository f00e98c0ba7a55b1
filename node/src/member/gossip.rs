//! What this node tells the others of itself, and what it takes from what they tell.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actors::ingress::pipeline::Gateway;
use cluster::bootstrap::Home;
use cluster::clock;
use cluster::id::NodeId;
use cluster::membership::{Membership, MembershipConfig, NodeState, OwnState};
use cluster::register::COMMAND_VERSION;
use tracing::{debug, warn};

use super::{GENERATION, Inner, Member, Phase};
use crate::config::reload::describe;

/// How often what is told is made anew.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// How often the gossip ports of the others are asked for, while there are some this node does not hear.
const SEEDS_EVERY: Duration = Duration::from_secs(2);

/// `host:port` under which the gossip port is reached: the host of the peer address.
pub fn advertised(peer: &str, gossip: SocketAddr) -> String {
    match peer.rsplit_once(':') {
        Some((host, _port)) if gossip.ip().is_unspecified() => format!("{host}:{}", gossip.port()),
        Some(_) | None => gossip.to_string(),
    }
}

/// Begins to gossip, once the cluster is known. A node that is alone does not.
pub fn begin(member: &Member, home: Home) {
    let inner = &member.0;
    let (Some(trust), Some(socket)) = (&inner.trust, inner.gossip_socket.lock().take()) else { return };
    let generation = match next_generation(inner) {
        Ok(generation) => generation,
        Err(error) => return warn!(error = describe(&error), "this node does not gossip"),
    };
    let loaded = inner.loaded.load();
    let mut config = MembershipConfig::new(inner.introduction.me, home.cluster, home.epoch, generation);
    config.interval = loaded.config.cluster.gossip_interval;
    config.advertise = reachable(&inner.introduction.gossip);
    let own = own_state(inner, loaded.config.listen.api, loaded.config.listen.admin);
    match Membership::start(socket, trust.clone(), config, own, &inner.tasks) {
        Ok(membership) => {
            let _only_once = inner.gossip.set(membership);
            inner.tasks.spawn("gossip seeds", follow_seeds(Arc::clone(inner)));
            inner.tasks.spawn("members", follow_members(Arc::clone(inner)));
        }
        Err(error) => warn!(error = describe(&error), "this node does not gossip"),
    }
}

/// Tells and hears marks of providers, until the node ends.
pub fn follow_marks(member: &Member, gateway: Arc<Gateway>) {
    member.0.tasks.spawn("marks", tell_and_hear(Arc::clone(&member.0), gateway));
}

/// Tells the others that this node takes no new requests.
pub fn drains(member: &Member) {
    set(&member.0, |own| own.state = NodeState::Draining);
}

async fn tell_and_hear(inner: Arc<Inner>, gateway: Arc<Gateway>) {
    let news = gateway.breakers.news();
    loop {
        let waited = tokio::time::timeout(TELL_EVERY, news.notified());
        // A change is told at once, everything else when the time has come.
        let _either = waited.await;
        let Some(membership) = inner.gossip.get() else { continue };
        let now = clock::now();
        let marks = gateway.marks(now);
        let applied = inner.consensus.progress().borrow().applied.unwrap_or_default();
        let fresh_age = fresh_age(&inner);
        let state = state_of(&inner, membership.own().state);
        let load = u32::try_from(gateway.queue.in_flight()).unwrap_or(u32::MAX);
        set(&inner, |own| {
            own.state = state;
            own.applied = applied;
            own.fresh_age = fresh_age;
            own.load = load;
        });
        if marks.len() <= membership.own().marks_room() {
            set(&inner, |own| own.marks = marks);
        }
        let members = membership.members();
        let members = members.borrow().clone();
        let me = inner.introduction.me;
        let others: Vec<(u64, &str)> = members
            .alive()
            .filter(|member| member.node != me)
            .map(|member| (member.node.get(), member.told.marks.as_str()))
            .collect();
        gateway.hear(me.get(), &others, now);
    }
}

/// Who begins to drain stays so.
fn state_of(inner: &Inner, told: NodeState) -> NodeState {
    match (told, &*inner.phase.borrow()) {
        (NodeState::Draining, _) => NodeState::Draining,
        (_, Phase::Member) => NodeState::Ready,
        (_, Phase::Looking(_) | Phase::Joining | Phase::Starting | Phase::Declaring(_)) => NodeState::Joining,
    }
}

/// How long ago this node was last certain; `None` before the first time.
pub fn fresh_age(inner: &Inner) -> Option<Duration> {
    let until = match inner.fresh_until.load(Ordering::Acquire) {
        0 => return None,
        nanos => Duration::from_nanos(nanos),
    };
    Some((clock::since_boot() + inner.timing.stale_max).saturating_sub(until))
}

/// Addresses and who is alive, for consensus and calls.
async fn follow_members(inner: Arc<Inner>) {
    let Some(membership) = inner.gossip.get() else { return };
    let mut members = membership.members();
    loop {
        {
            let members = members.borrow_and_update();
            inner.consensus.controller().hear(members.iter().map(|member| (member.node, member.alive)));
        }
        address_everyone(&inner);
        // Also without news of gossip, the register may have learnt of someone.
        let waited = tokio::time::timeout(Duration::from_secs(1), members.changed()).await;
        if matches!(waited, Ok(Err(_))) {
            return;
        }
    }
}

/// From the least to the most recent: where it was admitted, what it said at its start, what it gossips.
fn address_everyone(inner: &Inner) {
    let mut addresses: HashMap<NodeId, String> = HashMap::new();
    {
        let metrics = inner.consensus.metrics();
        let metrics = metrics.borrow();
        let places = metrics.membership_config.nodes().map(|(node, place)| (*node, place.address.clone()));
        addresses.extend(places);
    }
    inner.consensus.read(|register| {
        let said = register.members().iter().map(|(node, member)| (node, member.info.peer.clone()));
        addresses.extend(said.filter(|(_node, peer)| !peer.is_empty()));
    });
    if let Some(membership) = inner.gossip.get() {
        let members = membership.members();
        let members = members.borrow();
        let alive = members.alive().map(|member| (member.node, member.told.peer.clone()));
        addresses.extend(alive.filter(|(_node, peer)| !peer.is_empty()));
    }
    addresses.remove(&inner.introduction.me);
    let known = addresses.iter().all(|(node, address)| inner.book.get(*node).as_ref() == Some(address));
    if !known {
        inner.book.set(addresses);
    }
}

/// Asks for the gossip ports of the others, while gossip does not reach all of them.
async fn follow_seeds(inner: Arc<Inner>) {
    let Some(membership) = inner.gossip.get() else { return };
    let mut known = Vec::new();
    loop {
        let peers = inner.consensus.read(|register| {
            register.members().iter().map(|(_node, member)| member.info.peer.clone()).collect::<Vec<_>>()
        });
        let heard = membership.members().borrow().alive().count();
        if heard < peers.len().max(2) {
            let mut seeds = inner.bootstrap.gossip_of(&*inner.transport, &peers).await;
            seeds.sort();
            if !seeds.is_empty() && seeds != known {
                debug!(?seeds, "gossip begins with these");
                membership.set_seeds(seeds.clone());
                known = seeds;
            }
        }
        tokio::time::sleep(if heard > 1 { SEEDS_EVERY } else { TELL_EVERY }).await;
    }
}

fn set(inner: &Inner, change: impl FnOnce(&mut OwnState)) {
    if let Some(membership) = inner.gossip.get()
        && let Err(error) = membership.set(change)
    {
        debug!(error = describe(&error), "what this node tells of itself stays as it was");
    }
}

fn own_state(inner: &Inner, api: SocketAddr, admin: SocketAddr) -> OwnState {
    let place = &inner.introduction.place;
    OwnState {
        name: place.name.clone(),
        zone: place.zone.clone().unwrap_or_default(),
        peer: place.address.clone(),
        api: api.to_string(),
        admin: admin.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        format: u32::from(COMMAND_VERSION),
        ..OwnState::default()
    }
}

/// More than that of every earlier process of this node.
fn next_generation(inner: &Inner) -> Result<u64, storage::cell::CellError> {
    let cells = inner.data.cells();
    let stored = cells.get(GENERATION)?.and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
    let now = u64::try_from(clock::since_epoch().as_millis()).unwrap_or_default();
    let next = now.max(stored.unwrap_or_default() + 1);
    cells.set(GENERATION, &next.to_le_bytes())?;
    Ok(next)
}

/// `None` where the address is a name: then gossip is known by the address it is bound to.
fn reachable(gossip: &str) -> Option<SocketAddr> {
    let (host, port) = gossip.rsplit_once(':')?;
    let ip: IpAddr = host.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    Some((ip, port.parse().ok()?).into())
}
