//! An answer on its way: a list of steps, each at its time.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::clock;
use futures_util::future::BoxFuture;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use super::attempt::{Attempt, Pace};
use super::connection::Line;
use super::question::Dialect;
use super::script::{Break, Fault, How, Place};
use super::wire;

/// Before a connection is broken, so that what was sent before arrives first.
const BREAK_AFTER: Duration = Duration::from_millis(5);

/// Bytes of a long line in one piece.
const FILLER: usize = 64 << 10;

#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Due `due` after the head.
    Send { bytes: Bytes, tokens: u64, due: Duration },
    /// Wait for `POST /simulator/release`.
    Hold,
    /// Silence for good.
    Hang,
    /// End the connection; `resets` with an RST.
    Break { resets: bool },
}

/// The events of an answer and all that befalls them, as steps.
pub fn plan(
    dialect: Dialect,
    streams: bool,
    events: Vec<(Bytes, u64)>,
    pace: Pace,
    fault: Option<&Fault>,
) -> Vec<Step> {
    let breaks = fault.and_then(Fault::breaks).filter(|(place, _how)| *place != Place::BeforeHead);
    let events = if breaks.is_some() && !streams { halve(events) } else { events };
    let break_at = breaks.map(|(place, how)| (index_of(place, &events), how));
    let mut steps = Vec::with_capacity(events.len());
    let mut sent = 0;
    for (index, (bytes, tokens)) in events.into_iter().enumerate() {
        if let Some((_at, how)) = break_at.filter(|(at, _how)| *at == index)
            && !apply(how, dialect, streams, &bytes, pace.due(sent), &mut steps)
        {
            break;
        }
        steps.push(Step::Send { bytes, tokens, due: pace.due(sent) });
        sent += tokens;
    }
    match fault.and_then(|fault| fault.chunk_bytes) {
        Some(size) => steps.into_iter().flat_map(|step| split(step, size)).collect(),
        None => steps,
    }
}

/// Puts in what `how` says before the event `next`; false if the answer ends with it.
fn apply(how: Break, dialect: Dialect, streams: bool, next: &Bytes, due: Duration, steps: &mut Vec<Step>) -> bool {
    let send = |bytes| Step::Send { bytes, tokens: 0, due };
    match how {
        Break::Hold => {
            steps.push(Step::Hold);
            return true;
        }
        Break::LongLine(length) => {
            steps.extend(long_line(streams, length).into_iter().map(send));
            return true;
        }
        Break::Hang => steps.push(Step::Hang),
        Break::ErrorEvent => steps.push(send(wire::error_event(dialect, "the simulator was told to fail here"))),
        Break::Cut(How::Reset) => steps.push(Step::Break { resets: true }),
        Break::Cut(How::Abrupt) => steps.push(Step::Break { resets: false }),
        Break::Cut(How::HalfEvent) => steps.push(send(next.slice(..next.len() / 2))),
        Break::Cut(How::End) => {}
    }
    false
}

/// Where among `events` a place is: before the first event that may not be sent any more.
fn index_of(place: Place, events: &[(Bytes, u64)]) -> usize {
    let total: u64 = events.iter().map(|(_bytes, tokens)| tokens).sum();
    let most = match place {
        Place::BeforeHead | Place::AfterHead => return 0,
        Place::AfterTokens(tokens) => tokens.min(total),
        Place::MidStream => total / 2,
    };
    if total == 0 {
        return events.len() / 2;
    }
    let mut sent = 0;
    for (index, (_bytes, tokens)) in events.iter().enumerate() {
        let is_over = sent + tokens > most || (most == total && sent == total);
        if is_over {
            return index;
        }
        sent += tokens;
    }
    events.len()
}

/// A whole answer in two halves, so that there is a middle to break it at. All its tokens were generated before it was sent.
fn halve(events: Vec<(Bytes, u64)>) -> Vec<(Bytes, u64)> {
    let cut = |(bytes, _tokens): (Bytes, u64)| {
        let middle = bytes.len() / 2;
        [(bytes.slice(..middle), 0), (bytes.slice(middle..), 0)]
    };
    events.into_iter().flat_map(cut).collect()
}

/// A line of `length` bytes: data of an event, or blanks in a JSON body.
fn long_line(streams: bool, length: u64) -> Vec<Bytes> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let filler = Bytes::from(vec![if streams { b'x' } else { b' ' }; FILLER]);
    let mut pieces = vec![Bytes::from_static(if streams { b"data: " } else { b"" })];
    pieces.extend(std::iter::repeat_n(filler.clone(), length / FILLER));
    pieces.push(filler.slice(..length % FILLER));
    pieces.push(Bytes::from_static(if streams { b"\n\n" } else { b"" }));
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// A step in pieces of at most `size` bytes; the tokens count with the last.
fn split(step: Step, size: usize) -> Vec<Step> {
    let (mut bytes, tokens, due) = match step {
        Step::Send { bytes, tokens, due } if bytes.len() > size => (bytes, tokens, due),
        other @ (Step::Send { .. } | Step::Hold | Step::Hang | Step::Break { .. }) => return vec![other],
    };
    let mut steps = Vec::with_capacity(bytes.len() / size + 1);
    while bytes.len() > size {
        steps.push(Step::Send { bytes: bytes.split_to(size), tokens: 0, due });
    }
    steps.push(Step::Send { bytes, tokens, due });
    steps
}

/// The connection was broken by order.
#[derive(Debug, thiserror::Error)]
#[error("the simulator breaks this answer off")]
pub struct BrokenOff;

/// The steps, as hyper takes them. Dropped early, the client has left.
pub struct AnswerBody {
    steps: VecDeque<Step>,
    /// Bytes left, where the length is told.
    left: Option<u64>,
    /// When the head was sent; deadlines count from here.
    start: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    attempt: Option<Attempt>,
    release: Option<BoxFuture<'static, ()>>,
    line: Option<Arc<Line>>,
}

impl AnswerBody {
    /// All at once.
    pub fn whole(bytes: Bytes) -> Self {
        let left = Some(bytes.len() as u64);
        let steps = VecDeque::from([Step::Send { bytes, tokens: 0, due: Duration::ZERO }]);
        Self { steps, left, start: None, timer: None, attempt: None, release: None, line: None }
    }

    /// By `steps`. `tells_length` where the whole length is known and to be told.
    pub fn stepped(steps: Vec<Step>, tells_length: bool, attempt: Attempt) -> Self {
        let length = |step: &Step| match step {
            Step::Send { bytes, .. } => bytes.len() as u64,
            Step::Hold | Step::Hang | Step::Break { .. } => 0,
        };
        let left = tells_length.then(|| steps.iter().map(length).sum());
        let attempt = Some(attempt);
        Self { steps: steps.into(), left, start: None, timer: None, attempt, release: None, line: None }
    }

    /// What a [`Step::Hold`] waits for.
    pub fn released_by(mut self, release: Option<BoxFuture<'static, ()>>) -> Self {
        self.release = release;
        self
    }

    /// What a [`Step::Break`] breaks, and the length that is promised and then not kept.
    pub fn breaking(mut self, line: Arc<Line>, promised: Option<u64>) -> Self {
        self.line = Some(line);
        self.left = promised.or(self.left);
        self
    }

    fn poll_due(&mut self, due: Duration, context: &mut Context<'_>) -> Poll<()> {
        if due.is_zero() {
            return Poll::Ready(());
        }
        if self.timer.is_none() {
            let start = *self.start.get_or_insert_with(clock::now);
            let deadline = start + due;
            if deadline <= clock::now() {
                return Poll::Ready(());
            }
            self.timer = Some(Box::pin(tokio::time::sleep_until(deadline.into())));
        }
        if let Some(timer) = &mut self.timer {
            ready!(timer.as_mut().poll(context));
        }
        self.timer = None;
        Poll::Ready(())
    }

    fn poll_release(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(release) = &mut self.release {
            ready!(release.as_mut().poll(context));
        }
        self.release = None;
        Poll::Ready(())
    }

    /// When the connection is to be broken, counted from the head.
    fn break_due(&mut self) -> Duration {
        let start = *self.start.get_or_insert_with(clock::now);
        clock::now().saturating_duration_since(start) + BREAK_AFTER
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let this = &mut *self;
        if this.start.is_none() && this.steps.len() > 1 {
            this.start = Some(clock::now());
        }
        loop {
            match this.steps.front() {
                None => {
                    if let Some(attempt) = this.attempt.take() {
                        attempt.end();
                    }
                    return Poll::Ready(None);
                }
                Some(Step::Send { due, .. }) => {
                    let due = *due;
                    ready!(this.poll_due(due, context));
                }
                Some(Step::Hold) => ready!(this.poll_release(context)),
                Some(Step::Hang) => return Poll::Pending,
                Some(Step::Break { .. }) => {
                    let due = if this.timer.is_some() { BREAK_AFTER } else { this.break_due() };
                    ready!(this.poll_due(due, context));
                }
            }
            match this.steps.pop_front() {
                Some(Step::Send { bytes, tokens, .. }) => return Poll::Ready(Some(Ok(this.send(bytes, tokens)))),
                Some(Step::Break { resets }) => {
                    if let Some(line) = &this.line {
                        line.end(resets);
                    }
                    if let Some(attempt) = this.attempt.take() {
                        attempt.end();
                    }
                    return Poll::Ready(Some(Err(BrokenOff)));
                }
                Some(Step::Hold | Step::Hang) | None => {}
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

impl AnswerBody {
    fn send(&mut self, bytes: Bytes, tokens: u64) -> Frame<Bytes> {
        self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
        if let Some(attempt) = &mut self.attempt {
            attempt.sent(tokens);
        }
        if self.steps.is_empty()
            && let Some(attempt) = self.attempt.take()
        {
            attempt.end();
        }
        Frame::data(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A role, four tokens, a finish.
    fn events() -> Vec<(Bytes, u64)> {
        [("role;", 0), ("one;", 1), ("two;", 1), ("three;", 1), ("four;", 1), ("finish;", 0)]
            .map(|(text, tokens)| (Bytes::from_static(text.as_bytes()), tokens))
            .to_vec()
    }

    fn planned(streams: bool, fault: &serde_json::Value) -> (String, Vec<Step>) {
        let fault: Fault = serde_json::from_value(fault.clone()).expect("a fault");
        let events = if streams { events() } else { vec![(Bytes::from_static(b"{\"whole\":1}"), 4)] };
        let steps = plan(Dialect::OpenAi, streams, events, Pace::default(), Some(&fault));
        let mut text = String::new();
        let mut others = Vec::new();
        for step in steps {
            match step {
                Step::Send { bytes, .. } => text.push_str(std::str::from_utf8(&bytes).expect("text")),
                other @ (Step::Hold | Step::Hang | Step::Break { .. }) => {
                    text.push('|');
                    others.push(other);
                }
            }
        }
        (text, others)
    }

    #[test]
    fn an_answer_breaks_where_it_is_told_to() {
        let cut = |at: serde_json::Value| planned(true, &json!({ "cut": { "at": at, "how": "end" } })).0;

        assert_eq!(cut(json!("after_head")), "");
        assert_eq!(cut(json!({ "after_tokens": 0 })), "role;");
        assert_eq!(cut(json!({ "after_tokens": 1 })), "role;one;");
        assert_eq!(cut(json!("mid_stream")), "role;one;two;");
        assert_eq!(cut(json!({ "after_tokens": 99 })), "role;one;two;three;four;");
    }

    #[test]
    fn an_answer_breaks_as_it_is_told_to() {
        let at = json!({ "after_tokens": 1 });

        assert_eq!(
            planned(true, &json!({ "hold": at })),
            ("role;one;|two;three;four;finish;".into(), vec![Step::Hold])
        );
        assert_eq!(planned(true, &json!({ "hang": at })), ("role;one;|".into(), vec![Step::Hang]));
        let reset = json!({ "cut": { "at": at, "how": "reset" } });
        assert_eq!(planned(true, &reset), ("role;one;|".into(), vec![Step::Break { resets: true }]));
        assert_eq!(planned(true, &json!({ "cut": { "at": at, "how": "half_event" } })).0, "role;one;tw");
        let error = planned(true, &json!({ "error_event": at })).0;
        assert!(error.starts_with("role;one;data: {\"error\":") && error.ends_with("\n\n"), "{error}");
    }

    #[test]
    fn a_whole_answer_breaks_in_its_middle() {
        assert_eq!(planned(false, &json!({ "cut": { "at": "mid_stream", "how": "end" } })).0, "{\"who");
        assert_eq!(planned(false, &json!({ "cut": { "at": "after_head", "how": "end" } })).0, "");
    }

    #[test]
    fn a_long_line_is_as_long_as_it_says() {
        let (text, _others) = planned(true, &json!({ "long_line": 200_000 }));

        assert_eq!(text.lines().map(str::len).max(), Some("role;one;two;data: ".len() + 200_000));
        assert!(text.ends_with("three;four;finish;"));
    }

    #[test]
    fn chunks_are_as_small_as_it_says() {
        let fault: Fault = serde_json::from_value(json!({ "chunk_bytes": 1 })).expect("a fault");
        let steps = plan(Dialect::OpenAi, true, events(), Pace::default(), Some(&fault));

        let tokens: u64 = steps
            .iter()
            .map(|step| match step {
                Step::Send { bytes, tokens, .. } => {
                    assert_eq!(bytes.len(), 1);
                    *tokens
                }
                Step::Hold | Step::Hang | Step::Break { .. } => panic!("not in this plan"),
            })
            .sum();
        assert_eq!(tokens, 4);
    }
}
