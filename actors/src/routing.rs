//! x
use std::time::Duration;
use std::time::Instant;
use cluster::directory::route::{Route, Target};
pub struct Plan { pub candidates: Vec<Target> }
pub struct Routing;
impl Routing { pub fn plan(&self, _r: &Route, _b: &crate::breaker::Breakers) -> Plan { Plan { candidates: vec![] } } }
pub struct RetryBudget;
impl RetryBudget { pub fn take(&self, _n: Instant) -> bool { true } }
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass { Credential, Throttled { retry_after: Option<Duration> }, Overloaded, Server, Connect, Timeout, ContextLength, NotFound, BadRequest, Malformed }
impl FailureClass { pub fn name(self) -> &'static str { "x" } }
pub enum Next { NextCredential, NextCandidate { after: Duration }, GiveUp }
pub fn after(_c: FailureClass, _m: u32, _r: u64) -> Next { Next::GiveUp }
