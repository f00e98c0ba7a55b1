//! From the provider's answer to the client's: passes bytes where both speak one dialect, transcodes where not, meters
//! what went by, and settles the receipts of the attempt however it ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cluster::clock;
use cluster::directory::price::TokenCounts;
use cluster::ledger::money::NanoUsd;
use futures_util::future::BoxFuture;
use llm::chat::{ChatReply, Delta};
use llm::dialect::{Dialect, StreamDecoder, StreamEncoder, StreamOptions};
use llm::fault::{Fault, FaultKind};
use llm::transcode::{self, Collector};
use llm::usage::Usage;
use llm::{sse, tokens};

use crate::breaker::{Admission, Verdict};
use crate::cache::flight::{End, Head, Next, Piece, Reader, Source};
use crate::ingress::error::Failure;
use crate::provider::{BodyError, Credential, UpstreamBody};
use crate::quota::{Bill, Charge};
use crate::supervisor::Tasks;

/// A silent stream is kept alive this often.
pub const PING_EVERY: Duration = Duration::from_secs(15);

/// The longest line of a provider's stream. A longer one ends the stream with a typed error.
pub const LINE_MAX: usize = 8 * 1024 * 1024;

/// What an attempt holds until it ends. Dropped unfinished, it charges what went by and says nothing of the provider.
pub struct Receipts {
    charge: Option<Charge>,
    admission: Option<Admission>,
    bill: Option<Bill>,
}

impl Receipts {
    pub fn new(charge: Charge, admission: Admission) -> Self {
        Self { charge: Some(charge), admission: Some(admission), bill: None }
    }

    /// The provider refused: nothing is charged.
    pub fn void(self) -> Option<Admission> {
        if let Some(charge) = self.charge {
            let _nothing = charge.void();
        }
        self.admission
    }

    /// The answer is whole. A provider that does not say what it used is charged as one that was cut.
    fn settle(&mut self, usage: Option<Usage>, output_bytes: u64) {
        if let Some(charge) = self.charge.take() {
            self.bill = Some(match usage {
                Some(usage) => charge.settle(counts(usage)),
                None => charge.cut(tokens::output_estimate(output_bytes)),
            });
        }
        self.verdict(Verdict::Success);
    }

    /// The answer broke off and nobody saw how far it had come: the charge is dropped, which costs the full bound.
    fn unknown(&mut self, verdict: Verdict) {
        drop(self.charge.take());
        self.verdict(verdict);
    }

    /// The answer stopped before its end, by whoever's fault `verdict` says.
    fn cut(&mut self, usage: Option<Usage>, output_bytes: u64, verdict: Verdict) {
        if let Some(charge) = self.charge.take() {
            let said = usage.map_or(0, |usage| usage.output);
            self.bill = Some(charge.cut(said.max(tokens::output_estimate(output_bytes))));
        }
        self.verdict(verdict);
    }

    fn verdict(&mut self, verdict: Verdict) {
        if let Some(admission) = self.admission.take() {
            admission.finish(verdict, clock::now());
        }
    }
}

/// Usage as the price list counts it.
fn counts(usage: Usage) -> TokenCounts {
    TokenCounts {
        input: usage.input,
        cached_input: usage.cached_input,
        cache_write: usage.cache_write,
        output: usage.output,
        reasoning: usage.reasoning,
        images: 0,
        calls: 1,
    }
}

/// An attempt a provider is answering. Yields its pieces in order; dropped early, the provider is told to stop.
pub struct Live {
    pub source: Source,
    credential: Credential,
    body: UpstreamBody,
    receipts: Receipts,
    collector: Collector,
    kind: Kind,
    ready: VecDeque<Piece>,
    state: State,
    /// Why the answer stopped; told once everything that came before it was given.
    failure: Option<Failure>,
}

enum Kind {
    Stream {
        events: sse::Decoder,
        decoder: StreamDecoder,
    },
    /// The whole body so far, and the most it may be.
    Whole {
        buffer: BytesMut,
        bytes_max: usize,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Ended,
}

impl Live {
    pub fn stream(source: Source, credential: Credential, body: UpstreamBody, receipts: Receipts) -> Self {
        let decoder = source.dialect.stream_decoder();
        let kind = Kind::Stream { events: sse::Decoder::new(LINE_MAX), decoder };
        Self::new(source, credential, body, receipts, kind)
    }

    pub fn whole(
        source: Source,
        credential: Credential,
        body: UpstreamBody,
        receipts: Receipts,
        bytes_max: usize,
    ) -> Self {
        Self::new(source, credential, body, receipts, Kind::Whole { buffer: BytesMut::new(), bytes_max })
    }

    fn new(source: Source, credential: Credential, body: UpstreamBody, receipts: Receipts, kind: Kind) -> Self {
        let (collector, ready) = (Collector::new(), VecDeque::new());
        Self { source, credential, body, receipts, collector, kind, ready, state: State::Open, failure: None }
    }

    /// What it cost; known once the answer has ended.
    pub fn bill(&self) -> Option<&Bill> {
        self.receipts.bill.as_ref()
    }

    /// What the answer used, as far as the provider said.
    pub fn usage(&self) -> Option<Usage> {
        self.collector.usage()
    }

    /// A piece that is there already.
    pub fn ready(&mut self) -> Option<Piece> {
        self.ready.pop_front()
    }

    /// Waits until there is content to give, so that a provider that fails before it can still be left for another.
    /// Everything read meanwhile stays ready.
    pub async fn until_content(&mut self) -> Result<(), Failure> {
        while !self.ready.iter().any(has_content) && self.state == State::Open {
            self.fill().await;
        }
        if self.ready.iter().any(has_content) {
            return Ok(());
        }
        self.failure.take().map_or(Ok(()), Err)
    }

    /// The next piece, `None` at the whole end. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Piece>, Failure> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            if self.state == State::Ended {
                return self.failure.take().map_or(Ok(None), Err);
            }
            self.fill().await;
        }
    }

    /// The whole answer, for the cache; to be asked once, after the end.
    pub fn take_reply(&mut self) -> Option<ChatReply> {
        let collector = std::mem::take(&mut self.collector);
        collector.whole().then(|| collector.into_reply())
    }

    /// The provider took too long over its first content.
    pub fn give_up(&mut self) {
        self.close(Verdict::Failure);
    }

    /// Ends the attempt before its end. Of an answer that comes whole nothing was seen until all of it was there, so
    /// what the provider had written by then is not known.
    fn close(&mut self, verdict: Verdict) {
        self.state = State::Ended;
        let seen = self.collector.output_bytes();
        match &self.kind {
            Kind::Whole { .. } if seen == 0 => self.receipts.unknown(verdict),
            Kind::Whole { .. } | Kind::Stream { .. } => self.receipts.cut(self.collector.usage(), seen, verdict),
        }
    }

    /// Reads on: more is ready then, or the answer has ended.
    async fn fill(&mut self) {
        let step = match self.body.chunk().await {
            Ok(Some(chunk)) => self.take(chunk),
            Ok(None) => self.eof(),
            Err(BodyError::Idle { .. }) => {
                Err(Failure::UpstreamTimeout { provider: self.provider(), what: "it fell silent in its answer" })
            }
            Err(error @ (BodyError::Broken { .. } | BodyError::TooLarge { .. })) => {
                Err(Failure::Cut { provider: self.provider(), what: error.to_string() })
            }
        };
        if let Err(failure) = step {
            // What the request itself is to blame for, or our own bound, says nothing against the provider.
            let blamed = failure.blames_provider();
            self.close(if blamed { Verdict::Failure } else { Verdict::Neutral });
            self.failure = Some(failure);
        }
    }

    fn take(&mut self, chunk: Bytes) -> Result<(), Failure> {
        match &mut self.kind {
            Kind::Whole { buffer, bytes_max } => {
                if buffer.len() + chunk.len() > *bytes_max {
                    let bytes_max = *bytes_max;
                    return Err(Failure::ReplyTooLarge { provider: self.provider(), bytes_max });
                }
                buffer.extend_from_slice(&chunk);
                Ok(())
            }
            Kind::Stream { events, .. } => {
                events.feed(chunk);
                self.events()
            }
        }
    }

    fn events(&mut self) -> Result<(), Failure> {
        loop {
            let Kind::Stream { events, decoder } = &mut self.kind else { return Ok(()) };
            let event = match events.next() {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(()),
                Err(too_long) => {
                    return Err(Failure::Cut { provider: self.provider(), what: too_long.to_string() });
                }
            };
            let deltas = match decoder.event(&event) {
                Ok(deltas) => deltas,
                Err(fault) => return Err(self.fault(fault)),
            };
            for delta in &deltas {
                if let Delta::Fault(fault) = delta {
                    let fault = fault.clone();
                    return Err(self.fault(fault));
                }
                self.collector.add(delta);
            }
            self.ready.push_back(Piece::Event { raw: event.raw, deltas: deltas.into() });
        }
    }

    fn eof(&mut self) -> Result<(), Failure> {
        match &mut self.kind {
            Kind::Whole { buffer, .. } => {
                let body = std::mem::take(buffer).freeze();
                let reply = match self.source.dialect.decode_reply(&body) {
                    Ok(reply) => reply,
                    Err(fault) => return Err(self.fault(fault)),
                };
                for delta in transcode::deltas_of(&reply) {
                    self.collector.add(&delta);
                }
                if !self.collector.whole() {
                    let what = "the answer has no finish reason".to_owned();
                    return Err(Failure::Cut { provider: self.provider(), what });
                }
                self.receipts.settle(reply.usage, self.collector.output_bytes());
                self.ready.push_back(Piece::Whole { body, reply: Arc::new(reply) });
            }
            Kind::Stream { .. } => {
                if !self.collector.whole() {
                    let what = "the stream ended without a finish reason".to_owned();
                    return Err(Failure::Cut { provider: self.provider(), what });
                }
                self.receipts.settle(self.collector.usage(), self.collector.output_bytes());
            }
        }
        self.state = State::Ended;
        Ok(())
    }

    fn fault(&self, mut fault: Fault) -> Failure {
        self.credential.strike_from(&mut fault);
        let provider = self.provider();
        match fault.kind {
            FaultKind::Malformed => Failure::Upstream { provider, what: fault.message, status: fault.status },
            FaultKind::Throttled => Failure::Throttled { provider, retry_after: None },
            FaultKind::Overloaded => Failure::Overloaded { provider, status: fault.status },
            FaultKind::Timeout => Failure::UpstreamTimeout { provider, what: "it gave up waiting" },
            FaultKind::Credential => Failure::CredentialsExhausted { provider, status: fault.status },
            FaultKind::ContextLength => Failure::ContextLength { provider, fault: Box::new(fault) },
            FaultKind::ContentFilter => Failure::ContentFilter { provider, fault: Box::new(fault) },
            FaultKind::BadRequest => Failure::Rejected { provider, fault: Box::new(fault) },
            FaultKind::Server | FaultKind::NotFound => match self.kind {
                Kind::Whole { .. } => Failure::Upstream { provider, what: fault.message, status: fault.status },
                Kind::Stream { .. } => Failure::Cut { provider, what: fault.message },
            },
        }
    }

    fn provider(&self) -> String {
        self.source.provider.as_ref().to_owned()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.close(Verdict::Neutral);
    }
}

/// Whether a client would see this piece as part of the answer.
fn has_content(piece: &Piece) -> bool {
    match piece {
        Piece::Whole { .. } => true,
        Piece::Event { deltas, .. } => deltas.iter().any(|delta| match delta {
            Delta::Text { text, .. } | Delta::Refusal { text, .. } | Delta::Thinking { text, .. } => !text.is_empty(),
            Delta::ThinkingSignature { .. }
            | Delta::ToolStart { .. }
            | Delta::ToolArguments { .. }
            | Delta::Other { .. }
            | Delta::Finish { .. } => true,
            Delta::Start { .. } | Delta::Usage(_) | Delta::End | Delta::Ping | Delta::Fault(_) => false,
        }),
    }
}

/// Where the pieces of an answer come from.
pub enum Supply {
    /// Candidates are being tried; who has given a head so far is in the [`Head`].
    Pending(BoxFuture<'static, Result<Box<Live>, Failure>>, Head),
    Live(Box<Live>),
    /// A call shared with others, what it cost once it has ended, and the call itself where this reader drives it.
    Flight(Reader<Arc<Failure>>, Option<NanoUsd>, Option<Drive>),
}

/// A shared call driven by the reader who leads: no task, no thread but its own. When that reader leaves before the
/// end, the call goes on as a task, for the others.
pub struct Drive {
    call: Option<BoxFuture<'static, ()>>,
    tasks: Tasks,
}

impl Drive {
    pub fn new(call: BoxFuture<'static, ()>, tasks: Tasks) -> Self {
        Self { call: Some(call), tasks }
    }

    /// Ends with the call. Cancel-safe.
    async fn finish(&mut self) {
        if let Some(call) = &mut self.call {
            call.as_mut().await;
            self.call = None;
        }
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            self.tasks.spawn("flight", call);
        }
    }
}

impl Supply {
    pub fn flight(reader: Reader<Arc<Failure>>) -> Self {
        Self::Flight(reader, None, None)
    }

    pub fn driven(reader: Reader<Arc<Failure>>, drive: Drive) -> Self {
        Self::Flight(reader, None, Some(drive))
    }

    /// The next piece, `None` at the whole end. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Piece>, Failure> {
        if let Self::Pending(attempts, _head) = self {
            let live = attempts.as_mut().await?;
            *self = Self::Live(live);
        }
        match self {
            Self::Live(live) => live.next().await,
            Self::Flight(reader, cost, drive) => match read(reader, drive).await {
                Next::Piece(piece) => Ok(Some(piece)),
                Next::End(End::Whole { cost: said }) => {
                    *cost = said;
                    Ok(None)
                }
                Next::End(End::Broken(Some(failure))) => Err(Failure::clone(&failure)),
                Next::End(End::Broken(None)) => Err(Failure::Internal),
                Next::Overrun => {
                    let what = "this client read too slowly to share the answer".to_owned();
                    let provider = reader.source().map_or_else(String::new, |source| source.provider.to_string());
                    Err(Failure::Cut { provider, what })
                }
            },
            Self::Pending(..) => Ok(None),
        }
    }

    /// A piece that can be had without waiting.
    pub fn ready(&mut self) -> Option<Piece> {
        match self {
            Self::Live(live) => live.ready(),
            Self::Flight(reader, ..) => reader.ready(),
            Self::Pending(..) => None,
        }
    }

    /// Who answers, once a provider has given a head.
    pub fn source(&self) -> Option<Source> {
        match self {
            Self::Pending(_attempts, head) => head.lock().answers.clone(),
            Self::Live(live) => Some(live.source.clone()),
            Self::Flight(reader, ..) => reader.source(),
        }
    }

    /// The last provider that was called, whatever came of it.
    pub fn asked(&self) -> Option<Source> {
        match self {
            Self::Pending(_attempts, head) => head.lock().asked.clone(),
            Self::Live(live) => Some(live.source.clone()),
            Self::Flight(reader, ..) => reader.asked(),
        }
    }

    /// What it cost this client; known once the answer has ended.
    pub fn cost(&self) -> Option<NanoUsd> {
        match self {
            Self::Live(live) => live.bill().and_then(|bill| bill.cost),
            Self::Flight(reader, cost, _drive) => {
                if reader.leads() {
                    *cost
                } else {
                    Some(NanoUsd::default())
                }
            }
            Self::Pending(..) => None,
        }
    }
}

/// What comes next, with the call making progress meanwhile where this reader drives it.
async fn read(reader: &mut Reader<Arc<Failure>>, drive: &mut Option<Drive>) -> Next<Arc<Failure>> {
    if let Some(driven) = drive {
        tokio::select! {
            biased;
            next = reader.next() => return next,
            () = driven.finish() => *drive = None,
        }
    }
    reader.next().await
}

/// How the client wants its answer.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub dialect: Dialect,
    pub stream: bool,
    pub options: StreamOptions,
}

/// Pieces of an answer to the bytes of a client's stream.
pub struct Writer {
    form: Form,
    encoder: Option<StreamEncoder>,
    /// The provider said that the stream is over.
    ended: bool,
}

impl Writer {
    pub fn new(form: Form) -> Self {
        Self { form, encoder: None, ended: false }
    }

    /// The exact bytes for one piece; empty where the piece says nothing in this form.
    pub fn piece(&mut self, from: Dialect, piece: &Piece) -> Bytes {
        match piece {
            Piece::Event { raw, deltas } if from == self.form.dialect && self.encoder.is_none() => {
                self.ended |= deltas.iter().any(|delta| matches!(delta, Delta::End));
                if self.unasked_usage(deltas) { Bytes::new() } else { raw.clone() }
            }
            Piece::Event { deltas, .. } => self.encode(deltas),
            Piece::Whole { reply, .. } => self.encode(&transcode::deltas_of(reply)),
        }
    }

    /// What still lacks after the last piece.
    pub fn finish(&mut self) -> Bytes {
        match &mut self.encoder {
            Some(encoder) => {
                let mut out = Vec::new();
                encoder.finish(&mut out);
                Bytes::from(out)
            }
            // Some vendors leave it out; clients wait for it.
            None if self.form.dialect == Dialect::OpenAiChat && !self.ended => Bytes::from_static(b"data: [DONE]\n\n"),
            None => Bytes::new(),
        }
    }

    /// The usage chunk we asked for and the client did not.
    fn unasked_usage(&self, deltas: &[Delta]) -> bool {
        self.form.dialect == Dialect::OpenAiChat
            && !self.form.options.include_usage
            && !deltas.is_empty()
            && deltas.iter().all(|delta| matches!(delta, Delta::Usage(_)))
    }

    fn encode(&mut self, deltas: &[Delta]) -> Bytes {
        let form = self.form;
        let encoder = self.encoder.get_or_insert_with(|| form.dialect.stream_encoder(form.options));
        let mut out = Vec::with_capacity(256);
        for delta in deltas {
            if let Delta::Start { id, model, created: None } = delta {
                let created = Some(clock::since_epoch().as_secs());
                encoder.delta(&Delta::Start { id: id.clone(), model: model.clone(), created }, &mut out);
            } else {
                encoder.delta(delta, &mut out);
            }
        }
        Bytes::from(out)
    }
}

/// An answer as one body.
pub struct Gathered {
    pub body: Bytes,
    pub usage: Option<Usage>,
}

/// Gathers a whole answer in the dialect asked. `first` was taken from the supply already.
pub async fn gather(
    first: Option<Piece>,
    supply: &mut Supply,
    from: Dialect,
    to: Dialect,
) -> Result<Gathered, Failure> {
    let mut collector = Collector::new();
    let mut gathered = None;
    let mut next = first;
    loop {
        let piece = match next.take() {
            Some(piece) => piece,
            None => match supply.next().await? {
                Some(piece) => piece,
                None => break,
            },
        };
        match piece {
            Piece::Whole { body, reply } => {
                let body = if from == to { body } else { encoded(to, &reply) };
                gathered = Some(Gathered { body, usage: reply.usage });
            }
            Piece::Event { deltas, .. } => deltas.iter().for_each(|delta| collector.add(delta)),
        }
    }
    Ok(gathered.unwrap_or_else(|| {
        let reply = collector.into_reply();
        Gathered { body: encoded(to, &reply), usage: reply.usage }
    }))
}

/// A whole answer in a dialect. One that came without the time it was made was made now.
pub fn encoded(to: Dialect, reply: &ChatReply) -> Bytes {
    if reply.created.is_some() {
        return Bytes::from(to.encode_reply(reply, &reply.model));
    }
    let dated = ChatReply { created: Some(clock::since_epoch().as_secs()), ..reply.clone() };
    Bytes::from(to.encode_reply(&dated, &dated.model))
}
