//! What gossip shows.

use crate::metrics::{Described, Kind};
use metrics::Unit;

pub const MEMBERS: &str = "lea_gossip_members";
pub const DATAGRAMS: &str = "lea_gossip_datagrams_total";
pub const DROPPED: &str = "lea_gossip_dropped_total";
pub const RESTARTS: &str = "lea_gossip_restarts_total";

pub const METRICS: &[Described] = &[
    Described {
        name: MEMBERS,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &["state"],
        help: "Nodes that gossip tells of, this one included, that are `alive` or `dead`.",
    },
    Described {
        name: DATAGRAMS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["direction"],
        help: "Datagrams of gossip `sent` and `received` that were in order.",
    },
    Described {
        name: DROPPED,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["reason"],
        help: "Datagrams dropped: not sealed with the cluster's key, without sense, or not to be sent.",
    },
    Described {
        name: RESTARTS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &[],
        help: "Times gossip had to be started again within the process.",
    },
];
