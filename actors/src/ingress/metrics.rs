//! What the listeners and connections count.

use metrics::Unit;

use crate::metrics::{Described, Kind};

pub const CONNECTIONS: &str = "lea_connections";
pub const CONNECTIONS_ACCEPTED: &str = "lea_connections_accepted_total";
pub const CONNECTIONS_AT_LIMIT: &str = "lea_connections_at_limit_total";
pub const CONNECTIONS_CLOSED: &str = "lea_connections_closed_total";
pub const ACCEPT_ERRORS: &str = "lea_accept_errors_total";

pub const METRICS: &[Described] = &[
    Described {
        name: CONNECTIONS,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &[],
        help: "Client connections open now.",
    },
    Described {
        name: CONNECTIONS_ACCEPTED,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &[],
        help: "Client connections accepted.",
    },
    Described {
        name: CONNECTIONS_AT_LIMIT,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &[],
        help: "Times accepting stopped because `limits.connections_max` were open.",
    },
    Described {
        name: CONNECTIONS_CLOSED,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["reason"],
        help: "Client connections ended, by why: done, idle, header_timeout, tls, protocol, cut.",
    },
    Described {
        name: ACCEPT_ERRORS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &[],
        help: "Connections that could not be accepted, as when no file descriptors are left.",
    },
];
