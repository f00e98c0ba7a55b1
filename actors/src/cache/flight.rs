//! One upstream call shared by all who ask the same thing while it runs.
//!
//! The call runs in a task of its own and writes [`Piece`]s to one shared buffer; every reader, the one who leads
//! included, reads from the start at its own pace. The call is cancelled when its last reader has left, unless it was
//! told to run on.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use cluster::ledger::money::NanoUsd;
use llm::chat::Delta;
use llm::dialect::Dialect;
use parking_lot::Mutex;
use storage::cache::{Key, Scope};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use bytes::Bytes;

/// Who answers, as told in the headers of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub dialect: Dialect,
    pub provider: Arc<str>,
    pub model: Arc<str>,
    /// The number of calls it took, this one included.
    pub attempts: u32,
    /// The cap on output tokens that was put in where the client gave none.
    pub cap: Option<Cap>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    pub tokens: u64,
    /// The budgets of who leads have no more, those of others may. Otherwise the provider needs one, whoever asks.
    pub of_budget: bool,
}

impl Source {
    /// Whether the answer may be shorter than another's would be.
    pub fn is_capped_by_budget(&self) -> bool {
        self.cap.is_some_and(|cap| cap.of_budget)
    }
}

/// How far a call is.
pub type Head = Arc<Mutex<Progress>>;

/// Who was asked, and who answers, as far as it is known yet.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The last provider that was called.
    pub asked: Option<Source>,
    /// The provider whose head has arrived.
    pub answers: Option<Source>,
}

/// A part of an answer as it came from a provider.
#[derive(Clone, Debug)]
pub enum Piece {
    /// One event of a stream: its exact bytes, and what it says.
    Event { raw: Bytes, deltas: Arc<[Delta]> },
    /// A whole answer: its exact bytes.
    Whole { body: Bytes, reply: Arc<llm::chat::ChatReply> },
}

impl Piece {
    fn weight(&self) -> usize {
        match self {
            Self::Event { raw, .. } => raw.len(),
            Self::Whole { body, .. } => body.len(),
        }
    }
}

/// How a flight ended.
#[derive(Clone, Debug)]
pub enum End<E> {
    /// The answer is whole; what it cost whoever led.
    Whole { cost: Option<NanoUsd> },
    /// The call failed, or its task died (`None`).
    Broken(Option<E>),
}

/// What a reader gets next.
#[derive(Clone, Debug)]
pub enum Next<E> {
    Piece(Piece),
    End(End<E>),
    /// This reader was more than the buffer's bound behind the fastest one.
    Overrun,
}

/// Shared by the call and its readers.
#[derive(Debug)]
struct Flight<E> {
    id: u64,
    head: Head,
    buffer: Mutex<Buffer<E>>,
    /// Bumped on every change of the buffer; a reader that has seen all there is waits for the next bump.
    changed: watch::Sender<u64>,
    readers: AtomicUsize,
    cancel: CancellationToken,
    /// Runs on without readers (`disconnect: drain`).
    runs_on: bool,
    bytes_max: usize,
}

#[derive(Debug)]
struct Buffer<E> {
    pieces: VecDeque<Piece>,
    /// Of the pieces held.
    bytes: usize,
    /// Was over `bytes_max` once: nobody may join any more, and what the fastest reader has read is forgotten.
    spilled: bool,
    /// How many pieces were forgotten at the front.
    forgotten: usize,
    /// How far the fastest reader is.
    fastest: usize,
    end: Option<End<E>>,
}

impl<E> Buffer<E> {
    /// Forgets what the fastest reader has read, down to `bytes_max`; whoever is further behind is overrun.
    fn forget(&mut self, bytes_max: usize) -> bool {
        let before = self.forgotten;
        while self.bytes > bytes_max && self.forgotten < self.fastest {
            let Some(piece) = self.pieces.pop_front() else { break };
            self.bytes -= piece.weight();
            self.forgotten += 1;
        }
        self.forgotten > before
    }
}

type Flights<E> = Arc<Mutex<HashMap<(Scope, Key), Arc<Flight<E>>>>>;

/// The flights of this node, by what they answer.
#[derive(Debug)]
pub struct Tower<E> {
    flights: Flights<E>,
    ids: AtomicU64,
}

impl<E> Default for Tower<E> {
    fn default() -> Self {
        Self { flights: Arc::default(), ids: AtomicU64::new(0) }
    }
}

/// A place in a flight.
pub enum Seat<E> {
    /// The flight was there: read on.
    Joined(Reader<E>),
    /// There was none: whoever gets this makes the call.
    Leads(Pilot<E>, Reader<E>),
}

impl<E: Clone> Tower<E> {
    /// Joins the flight for this key or starts one. `runs_on` and `bytes_max` count where one is started.
    pub fn board(&self, scope: Scope, key: Key, runs_on: bool, bytes_max: usize) -> Seat<E> {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(&(scope, key))
            && let Some(reader) = Reader::join(flight)
        {
            return Seat::Joined(reader);
        }
        let (pilot, reader) = self.launch(scope, key, runs_on, bytes_max);
        flights.insert((scope, key), Arc::clone(&pilot.flight));
        Seat::Leads(pilot, reader)
    }

    /// Starts a flight nobody else can join: for a client who insists on a fresh answer.
    pub fn alone(&self, scope: Scope, key: Key, runs_on: bool, bytes_max: usize) -> (Pilot<E>, Reader<E>) {
        self.launch(scope, key, runs_on, bytes_max)
    }

    fn launch(&self, scope: Scope, key: Key, runs_on: bool, bytes_max: usize) -> (Pilot<E>, Reader<E>) {
        let buffer = Buffer { pieces: VecDeque::new(), bytes: 0, spilled: false, forgotten: 0, fastest: 0, end: None };
        let flight = Arc::new(Flight {
            id: self.ids.fetch_add(1, Ordering::Relaxed),
            head: Head::default(),
            buffer: Mutex::new(buffer),
            changed: watch::Sender::new(0),
            readers: AtomicUsize::new(1),
            cancel: CancellationToken::new(),
            runs_on,
            bytes_max,
        });
        let reader = Reader { flight: Arc::clone(&flight), changed: flight.changed.subscribe(), at: 0, leads: true };
        (Pilot { flight, flights: Arc::clone(&self.flights), at: (scope, key), landed: false }, reader)
    }

    /// How many flights can be joined now.
    pub fn len(&self) -> usize {
        self.flights.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The call's end of a flight. Dropped without [`Pilot::land`], readers learn that the call died.
#[must_use]
pub struct Pilot<E> {
    flight: Arc<Flight<E>>,
    flights: Flights<E>,
    at: (Scope, Key),
    landed: bool,
}

impl<E> Pilot<E> {
    /// Done when the last reader has left; never, for a call that runs on.
    pub fn abandoned(&self) -> CancellationToken {
        self.flight.cancel.clone()
    }

    /// Where to tell who answers.
    pub fn head(&self) -> Head {
        Arc::clone(&self.flight.head)
    }

    /// Adds to the buffer. `false` once the answer is too large to be shared or stored.
    pub fn push(&self, piece: Piece) -> bool {
        let fits = {
            let mut buffer = self.flight.buffer.lock();
            buffer.bytes += piece.weight();
            buffer.pieces.push_back(piece);
            if buffer.bytes > self.flight.bytes_max {
                buffer.spilled = true;
                if self.flight.readers.load(Ordering::Acquire) == 0 {
                    // A call that runs on without readers is read for its end, not for its words.
                    buffer.forgotten += buffer.pieces.len();
                    buffer.pieces.clear();
                    buffer.bytes = 0;
                }
            }
            !buffer.spilled
        };
        if !fits {
            self.leave_tower();
        }
        self.bump();
        fits
    }

    /// Waits while more than the bound lies unread by the fastest reader: the provider is read no faster than the client.
    pub async fn room(&self) {
        let mut changed = self.flight.changed.subscribe();
        while self.flight.buffer.lock().bytes > self.flight.bytes_max && self.flight.readers.load(Ordering::Acquire) > 0
        {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// The call is over. Whoever asks from now on starts anew, so store first.
    pub fn land(mut self, end: End<E>) {
        self.finish(end);
    }

    fn finish(&mut self, end: End<E>) {
        self.landed = true;
        self.leave_tower();
        self.flight.buffer.lock().end.get_or_insert(end);
        self.bump();
    }

    fn leave_tower(&self) {
        let mut flights = self.flights.lock();
        if flights.get(&self.at).is_some_and(|flight| flight.id == self.flight.id) {
            flights.remove(&self.at);
        }
    }

    fn bump(&self) {
        self.flight.changed.send_modify(|version| *version = version.wrapping_add(1));
    }
}

impl<E> Drop for Pilot<E> {
    fn drop(&mut self) {
        if !self.landed {
            self.finish(End::Broken(None));
        }
    }
}

/// One client's place in a flight.
#[derive(Debug)]
pub struct Reader<E> {
    flight: Arc<Flight<E>>,
    changed: watch::Receiver<u64>,
    at: usize,
    leads: bool,
}

impl<E> Reader<E> {
    /// `None` where the flight can no longer be joined.
    fn join(flight: &Arc<Flight<E>>) -> Option<Self> {
        let buffer = flight.buffer.lock();
        if buffer.spilled || buffer.end.is_some() || flight.cancel.is_cancelled() {
            return None;
        }
        flight.readers.fetch_add(1, Ordering::AcqRel);
        drop(buffer);
        Some(Self { flight: Arc::clone(flight), changed: flight.changed.subscribe(), at: 0, leads: false })
    }

    /// Whether this reader pays for the call; its failure is this reader's own.
    pub fn leads(&self) -> bool {
        self.leads
    }

    /// The last provider that was called.
    pub fn asked(&self) -> Option<Source> {
        self.flight.head.lock().asked.clone()
    }

    /// Who answers, once a provider has given a head.
    pub fn source(&self) -> Option<Source> {
        self.flight.head.lock().answers.clone()
    }
}

impl<E: Clone> Reader<E> {
    /// What comes next, as soon as it is there. Cancel-safe.
    pub async fn next(&mut self) -> Next<E> {
        loop {
            self.changed.mark_unchanged();
            if let Some(next) = self.take() {
                return next;
            }
            if self.changed.changed().await.is_err() {
                return Next::End(End::Broken(None));
            }
        }
    }

    /// A piece that is there already.
    pub fn ready(&mut self) -> Option<Piece> {
        match self.take()? {
            Next::Piece(piece) => Some(piece),
            Next::End(_) | Next::Overrun => None,
        }
    }

    fn take(&mut self) -> Option<Next<E>> {
        let mut buffer = self.flight.buffer.lock();
        if self.at < buffer.forgotten {
            return Some(Next::Overrun);
        }
        let Some(piece) = buffer.pieces.get(self.at - buffer.forgotten).cloned() else {
            return buffer.end.clone().map(Next::End);
        };
        self.at += 1;
        buffer.fastest = buffer.fastest.max(self.at);
        if buffer.forget(self.flight.bytes_max) {
            drop(buffer);
            self.flight.changed.send_modify(|version| *version = version.wrapping_add(1));
        }
        Some(Next::Piece(piece))
    }
}

impl<E> Drop for Reader<E> {
    fn drop(&mut self) {
        let buffer = self.flight.buffer.lock();
        let last = self.flight.readers.fetch_sub(1, Ordering::AcqRel) == 1;
        if last && !self.flight.runs_on {
            self.flight.cancel.cancel();
        }
        drop(buffer);
        self.flight.changed.send_modify(|version| *version = version.wrapping_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Flights = Tower<&'static str>;
    const AT: (Scope, Key) = (Scope([1; 16]), Key([2; 32]));

    fn piece(text: &'static str) -> Piece {
        Piece::Event { raw: Bytes::from_static(text.as_bytes()), deltas: Arc::from([]) }
    }

    fn text(next: &Next<&'static str>) -> String {
        match next {
            Next::Piece(Piece::Event { raw, .. }) => String::from_utf8(raw.to_vec()).unwrap(),
            Next::Piece(Piece::Whole { .. }) | Next::End(_) | Next::Overrun => format!("{next:?}"),
        }
    }

    fn lead(tower: &Flights, runs_on: bool, bytes_max: usize) -> (Pilot<&'static str>, Reader<&'static str>) {
        match tower.board(AT.0, AT.1, runs_on, bytes_max) {
            Seat::Leads(pilot, reader) => (pilot, reader),
            Seat::Joined(_) => panic!("somebody flies already"),
        }
    }

    fn join(tower: &Flights) -> Reader<&'static str> {
        match tower.board(AT.0, AT.1, false, 100) {
            Seat::Joined(reader) => reader,
            Seat::Leads(..) => panic!("nobody flies"),
        }
    }

    #[tokio::test]
    async fn who_joins_late_reads_from_the_start() {
        let tower = Flights::default();
        let (pilot, mut leader) = lead(&tower, false, 100);
        pilot.push(piece("one"));
        assert_eq!(text(&leader.next().await), "one");

        let mut late = join(&tower);
        pilot.push(piece("two"));
        pilot.land(End::Whole { cost: None });

        assert_eq!(text(&late.next().await), "one");
        assert_eq!(text(&late.next().await), "two");
        assert!(matches!(late.next().await, Next::End(End::Whole { .. })));
        assert_eq!(text(&leader.next().await), "two");
        assert!(tower.is_empty());
    }

    /// The provider is told to stop when nobody listens any more, and not before.
    #[tokio::test]
    async fn the_call_ends_with_its_last_reader() {
        let tower = Flights::default();
        let (pilot, leader) = lead(&tower, false, 100);
        let other = join(&tower);
        let abandoned = pilot.abandoned();

        drop(leader);
        assert!(!abandoned.is_cancelled());
        drop(other);
        assert!(abandoned.is_cancelled());
        assert!(matches!(tower.board(AT.0, AT.1, false, 100), Seat::Leads(..)), "nobody joins a call that ends");
    }

    #[tokio::test]
    async fn a_call_that_runs_on_is_not_ended() {
        let tower = Flights::default();
        let (pilot, leader) = lead(&tower, true, 100);

        drop(leader);

        assert!(!pilot.abandoned().is_cancelled());
    }

    /// P-STREAM: a call whose task died is a failure its readers see, not silence.
    #[tokio::test]
    async fn a_call_that_dies_is_told_to_its_readers() {
        let tower = Flights::default();
        let (pilot, mut leader) = lead(&tower, false, 100);

        drop(pilot);

        assert!(matches!(leader.next().await, Next::End(End::Broken(None))));
        assert!(tower.is_empty());
    }

    #[tokio::test]
    async fn a_large_answer_is_no_longer_shared_but_reaches_its_readers() {
        let tower = Flights::default();
        let (pilot, mut leader) = lead(&tower, false, 5);
        let mut joined = join(&tower);

        assert!(pilot.push(piece("four")));
        assert!(!pilot.push(piece("fours")));
        assert!(tower.is_empty(), "nobody may join");
        assert_eq!(text(&leader.next().await), "four");
        assert_eq!(text(&joined.next().await), "Overrun", "what the fastest has read is forgotten");
        assert_eq!(text(&leader.next().await), "fours");
    }

    /// Memory stays bounded: the provider is read no faster than the fastest client reads.
    #[tokio::test]
    async fn a_call_waits_for_its_reader() {
        let tower = Flights::default();
        let (pilot, mut leader) = lead(&tower, false, 5);
        pilot.push(piece("too long"));

        let waits = tokio::time::timeout(std::time::Duration::ZERO, pilot.room()).await.is_err();
        leader.next().await;
        pilot.push(piece("x"));
        leader.next().await;

        assert!(waits);
        pilot.room().await;
    }
}
