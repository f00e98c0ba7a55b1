//! A streamed answer to a whole one and back, so that any dialect may read what another one wrote.

use std::collections::BTreeMap;

use crate::chat::{Block, ChatReply, Choice, Delta, Finish};
use crate::usage::Usage;

/// Choices and, in each, tool calls that are collected. What a stream says of further ones is left out, and the answer
/// does not count as whole.
const CHOICES_MAX: usize = 128;
const TOOLS_MAX: usize = 1024;

/// Puts the steps of a stream together to the answer they tell.
///
/// Text that comes in several pieces with nothing between them is one block.
#[derive(Clone, Debug, Default)]
pub struct Collector {
    id: String,
    model: String,
    created: Option<u64>,
    usage: Option<Usage>,
    choices: BTreeMap<u32, Collected>,
    output_bytes: u64,
    /// The provider reported a failure, or said more than is collected.
    broken: bool,
}

#[derive(Clone, Debug, Default)]
struct Collected {
    blocks: Vec<Block>,
    /// Where the calls of tools are in `blocks`.
    tools: BTreeMap<u32, usize>,
    finish: Option<Finish>,
    stop_sequence: Option<String>,
}

impl Collector {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add(&mut self, delta: &Delta) {
        self.output_bytes = self.output_bytes.saturating_add(output_bytes(delta));
        match delta {
            Delta::Start { id, model, created } => {
                self.id.clone_from(id);
                self.model.clone_from(model);
                self.created = *created;
            }
            Delta::Text { choice, text } => self.with(*choice, |collected| collected.text(text)),
            Delta::Refusal { choice, text } => self.with(*choice, |collected| collected.refusal(text)),
            Delta::Thinking { choice, text } => self.with(*choice, |collected| collected.thinking(text)),
            Delta::ThinkingSignature { choice, signature } => {
                self.with(*choice, |collected| collected.signature(signature));
            }
            Delta::ToolStart { choice, tool, id, name } => {
                self.with(*choice, |collected| collected.tool(*tool, id, name).is_some());
            }
            Delta::ToolArguments { choice, tool, fragment } => {
                self.with(*choice, |collected| collected.arguments(*tool, fragment));
            }
            Delta::Finish { choice, reason, stop_sequence } => self.with(*choice, |collected| {
                collected.finish = Some(reason.clone());
                collected.stop_sequence.clone_from(stop_sequence);
                true
            }),
            Delta::Usage(usage) => self.usage = Some(*usage),
            Delta::Other { choice, dialect, value } => self.with(*choice, |collected| {
                collected.blocks.push(Block::Other { dialect: dialect.clone(), value: value.clone() });
                true
            }),
            Delta::Fault(_) => self.broken = true,
            Delta::End | Delta::Ping => {}
        }
    }

    /// Whether every choice has its finish reason and nothing went wrong: what ends otherwise was cut.
    pub fn whole(&self) -> bool {
        let counted = (0..).zip(self.choices.keys()).all(|(wanted, choice)| wanted == *choice);
        let finished = self.choices.values().all(|collected| collected.finish.is_some());
        !self.broken && !self.choices.is_empty() && counted && finished
    }

    /// The newest word of the provider. Before the end of the stream it may count only the input.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Bytes of what the model wrote: text, refusals, reasoning, names and arguments of tools.
    pub fn output_bytes(&self) -> u64 {
        self.output_bytes
    }

    pub fn into_reply(self) -> ChatReply {
        let choices = self.choices.into_values().map(|collected| Choice {
            blocks: collected.blocks,
            finish: collected.finish,
            stop_sequence: collected.stop_sequence,
        });
        ChatReply {
            id: self.id,
            model: self.model,
            created: self.created,
            choices: choices.collect(),
            usage: self.usage,
        }
    }

    /// `add` tells whether there was room.
    fn with(&mut self, choice: u32, add: impl FnOnce(&mut Collected) -> bool) {
        let room = self.choices.len() < CHOICES_MAX || self.choices.contains_key(&choice);
        let added = room && add(self.choices.entry(choice).or_default());
        self.broken |= !added;
    }
}

impl Collected {
    fn text(&mut self, more: &str) -> bool {
        match self.blocks.last_mut() {
            _ if more.is_empty() => {}
            Some(Block::Text { text, .. }) => text.push_str(more),
            _ => self.blocks.push(Block::Text { text: more.to_owned(), cache_control: None }),
        }
        true
    }

    fn refusal(&mut self, more: &str) -> bool {
        match self.blocks.last_mut() {
            _ if more.is_empty() => {}
            Some(Block::Refusal { text }) => text.push_str(more),
            _ => self.blocks.push(Block::Refusal { text: more.to_owned() }),
        }
        true
    }

    /// A signature ends a block of reasoning; what comes after it is the next one.
    fn thinking(&mut self, more: &str) -> bool {
        match self.blocks.last_mut() {
            _ if more.is_empty() => {}
            Some(Block::Thinking { text, signature: None }) => text.push_str(more),
            _ => self.blocks.push(Block::Thinking { text: more.to_owned(), signature: None }),
        }
        true
    }

    fn signature(&mut self, given: &str) -> bool {
        match self.blocks.last_mut() {
            Some(Block::Thinking { signature: signature @ None, .. }) => *signature = Some(given.to_owned()),
            _ => self.blocks.push(Block::Thinking { text: String::new(), signature: Some(given.to_owned()) }),
        }
        true
    }

    /// Where the call is; a call already begun keeps its id and name.
    fn tool(&mut self, tool: u32, id: &str, name: &str) -> Option<usize> {
        if let Some(place) = self.tools.get(&tool) {
            return Some(*place);
        }
        if self.tools.len() == TOOLS_MAX {
            return None;
        }
        self.tools.insert(tool, self.blocks.len());
        self.blocks.push(Block::ToolUse { id: id.to_owned(), name: name.to_owned(), arguments: String::new() });
        Some(self.blocks.len() - 1)
    }

    fn arguments(&mut self, tool: u32, fragment: &str) -> bool {
        let place = self.tool(tool, "", "");
        match place.and_then(|place| self.blocks.get_mut(place)) {
            Some(Block::ToolUse { arguments, .. }) => arguments.push_str(fragment),
            _ => return false,
        }
        true
    }
}

fn output_bytes(delta: &Delta) -> u64 {
    let bytes = match delta {
        Delta::Text { text, .. } | Delta::Refusal { text, .. } | Delta::Thinking { text, .. } => text.len(),
        Delta::ToolStart { name, .. } => name.len(),
        Delta::ToolArguments { fragment, .. } => fragment.len(),
        Delta::Other { value, .. } => value.to_string().len(),
        Delta::Start { .. }
        | Delta::ThinkingSignature { .. }
        | Delta::Finish { .. }
        | Delta::Usage(_)
        | Delta::End
        | Delta::Ping
        | Delta::Fault(_) => 0,
    };
    bytes as u64
}

/// A whole answer as the stream that would have told it. [`Collector`] puts it together again.
pub fn deltas_of(reply: &ChatReply) -> Vec<Delta> {
    let mut deltas = vec![Delta::Start { id: reply.id.clone(), model: reply.model.clone(), created: reply.created }];
    for (choice, answer) in (0..).zip(&reply.choices) {
        let mut tools = 0..;
        for block in &answer.blocks {
            deltas_of_block(choice, block, &mut tools, &mut deltas);
        }
        if let Some(reason) = answer.finish.clone() {
            deltas.push(Delta::Finish { choice, reason, stop_sequence: answer.stop_sequence.clone() });
        }
    }
    deltas.extend(reply.usage.map(Delta::Usage));
    deltas.push(Delta::End);
    deltas
}

fn deltas_of_block(choice: u32, block: &Block, tools: &mut impl Iterator<Item = u32>, deltas: &mut Vec<Delta>) {
    match block {
        Block::Text { text, .. } => deltas.push(Delta::Text { choice, text: text.clone() }),
        Block::Refusal { text } => deltas.push(Delta::Refusal { choice, text: text.clone() }),
        Block::Thinking { text, signature } => {
            if !text.is_empty() {
                deltas.push(Delta::Thinking { choice, text: text.clone() });
            }
            deltas.extend(signature.clone().map(|signature| Delta::ThinkingSignature { choice, signature }));
        }
        Block::ToolUse { id, name, arguments } => {
            let tool = tools.next().unwrap_or(u32::MAX);
            deltas.push(Delta::ToolStart { choice, tool, id: id.clone(), name: name.clone() });
            deltas.push(Delta::ToolArguments { choice, tool, fragment: arguments.clone() });
        }
        Block::Other { dialect, value } => {
            deltas.push(Delta::Other { choice, dialect: dialect.clone(), value: value.clone() });
        }
        // No dialect here lets a model answer with these.
        Block::Image { .. } | Block::ToolResult { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::fault::{Fault, FaultKind};

    fn collect(deltas: &[Delta]) -> Collector {
        let mut collector = Collector::new();
        for delta in deltas {
            collector.add(delta);
        }
        collector
    }

    fn finish(choice: u32) -> Delta {
        Delta::Finish { choice, reason: Finish::Stop, stop_sequence: None }
    }

    fn text(choice: u32, text: &str) -> Delta {
        Delta::Text { choice, text: text.to_owned() }
    }

    fn block() -> impl Strategy<Value = Block> {
        let text = || ".{1,8}";
        prop_oneof![
            text().prop_map(|text| Block::Text { text, cache_control: None }),
            text().prop_map(|text| Block::Refusal { text }),
            (".{0,8}", text()).prop_map(|(text, s)| Block::Thinking { text, signature: Some(s) }),
            text().prop_map(|text| Block::Thinking { text, signature: None }),
            (text(), text(), ".{0,8}").prop_map(|(id, name, arguments)| Block::ToolUse { id, name, arguments }),
            text()
                .prop_map(|data| Block::Other { dialect: "anthropic_messages".into(), value: json!({ "data": data }) }),
        ]
    }

    /// Blocks that a stream keeps apart.
    fn apart(blocks: Vec<Block>) -> Vec<Block> {
        let mut kept: Vec<Block> = Vec::new();
        for block in blocks {
            let merges = match (kept.last(), &block) {
                (Some(Block::Text { .. }), Block::Text { .. })
                | (Some(Block::Refusal { .. }), Block::Refusal { .. }) => true,
                (Some(Block::Thinking { signature, .. }), Block::Thinking { .. }) => signature.is_none(),
                _ => false,
            };
            if !merges {
                kept.push(block);
            }
        }
        kept
    }

    fn choice() -> impl Strategy<Value = Choice> {
        let reason = prop_oneof![Just(Finish::Stop), Just(Finish::ToolUse), ".{1,5}".prop_map(Finish::Other)];
        (vec(block(), 0..6), reason, option::of(".{1,5}")).prop_map(|(blocks, reason, stop_sequence)| Choice {
            blocks: apart(blocks),
            finish: Some(reason),
            stop_sequence,
        })
    }

    fn reply() -> impl Strategy<Value = ChatReply> {
        let usage = option::of((any::<u64>(), any::<u64>()));
        (".{0,8}", ".{0,8}", option::of(any::<u64>()), vec(choice(), 1..4), usage).prop_map(
            |(id, model, created, choices, usage)| ChatReply {
                id,
                model,
                created,
                choices,
                usage: usage.map(|(input, output)| Usage { input, output, ..Usage::default() }),
            },
        )
    }

    proptest! {
        /// A cached answer replayed as a stream says what the answer said.
        #[test]
        fn a_replayed_answer_is_the_answer(reply in reply()) {
            let collector = collect(&deltas_of(&reply));

            prop_assert!(collector.whole());
            prop_assert_eq!(collector.into_reply(), reply);
        }
    }

    #[test]
    fn an_answer_is_whole_when_every_choice_is_finished() {
        assert!(!collect(&[]).whole());
        assert!(!collect(&[text(0, "a")]).whole());
        assert!(!collect(&[text(0, "a"), text(1, "b"), finish(1)]).whole());
        assert!(collect(&[text(0, "a"), text(1, "b"), finish(1), finish(0)]).whole());
        assert!(!collect(&[text(1, "b"), finish(1)]).whole());
    }

    #[test]
    fn an_answer_with_a_failure_in_it_is_not_whole() {
        let fault = Fault {
            kind: FaultKind::Overloaded,
            status: None,
            message: String::new(),
            code: None,
            error_type: None,
            param: None,
        };
        assert!(!collect(&[text(0, "a"), finish(0), Delta::Fault(fault)]).whole());
    }

    #[test]
    fn a_flood_of_choices_is_not_collected() {
        let deltas: Vec<Delta> = (0..1000).map(finish).collect();
        let collector = collect(&deltas);
        assert!(!collector.whole());
        assert_eq!(collector.into_reply().choices.len(), CHOICES_MAX);
    }

    #[test]
    fn interleaved_calls_are_put_together() {
        let start = |tool, id: &str| Delta::ToolStart { choice: 0, tool, id: id.into(), name: "f".into() };
        let arguments = |tool, fragment: &str| Delta::ToolArguments { choice: 0, tool, fragment: fragment.into() };
        let deltas = [start(0, "a"), start(1, "b"), arguments(0, "{\"x\""), arguments(1, "{}"), arguments(0, ":1}")];

        let collector = collect(&deltas);

        assert_eq!(collector.output_bytes(), 11);
        let blocks = &collector.into_reply().choices[0].blocks;
        assert_eq!(
            blocks[..],
            [
                Block::ToolUse { id: "a".into(), name: "f".into(), arguments: "{\"x\":1}".into() },
                Block::ToolUse { id: "b".into(), name: "f".into(), arguments: "{}".into() },
            ]
        );
    }
}
