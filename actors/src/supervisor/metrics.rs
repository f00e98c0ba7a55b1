//! What the supervisor counts.

use crate::metrics::{Described, Kind};
use metrics::Unit;

pub const RESTARTS: &str = "lea_actor_restarts_total";
pub const MAILBOX_FULL: &str = "lea_mailbox_full_total";
pub const TASK_PANICS: &str = "lea_task_panics_total";

pub const METRICS: &[Described] = &[
    Described {
        name: RESTARTS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["room"],
        help: "Actors started again after they died.",
    },
    Described {
        name: MAILBOX_FULL,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["room"],
        help: "Messages not sent because the actor's mailbox was full.",
    },
    Described {
        name: TASK_PANICS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["task"],
        help: "Tasks that ended in a panic. Each is a defect; the log has its message.",
    },
];
