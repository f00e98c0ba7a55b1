//! What the simulator answers: seeded, so that the same question gets the same answer from the same seed.
//!
//! | the question | the answer |
//! |---|---|
//! | `repeat after me: TEXT` | TEXT |
//! | `count to N` | `1 2 3 … N` |
//! | names an offered tool, or must call one | the call, its arguments made from the schema |
//! | asks for JSON | a value that follows the schema |
//! | anything else | what a bank's support might say |

use serde_json::{Map, Value, json};

use super::question::{Question, Tool, ToolChoice};
use super::tokens;

/// How far `count to N` counts.
const COUNT_MAX: u64 = 100_000;

/// How deep a schema is followed when a value is made up from it.
const SCHEMA_DEPTH_MAX: u32 = 8;

/// What thinking costs where it is asked for.
const THOUGHT: &str = "The customer asks for help; a short and exact answer is best.";

#[derive(Debug)]
pub struct Answer {
    pub choices: Vec<Choice>,
    /// Tokens of thinking, text and calls together.
    pub output_tokens: u64,
    /// The thinking among them.
    pub reasoning_tokens: u64,
}

#[derive(Debug)]
pub struct Choice {
    pub thinking: Option<&'static str>,
    pub text: String,
    pub calls: Vec<Call>,
    pub finish: Finish,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Call {
    pub id: u64,
    pub name: String,
    pub arguments: Value,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Finish {
    Stop,
    StopSequence(String),
    Length,
    ToolCalls,
}

/// Where a length is fixed, by `length` tokens of text; else by what was asked.
pub fn answer(seed: u64, length: Option<u64>, question: &Question) -> Answer {
    let mut answer = Answer { choices: Vec::new(), output_tokens: 0, reasoning_tokens: 0 };
    for index in 0..question.choices {
        let seed = hash(seed.wrapping_add(index), &question.conversation);
        let mut budget = question.output_max.unwrap_or(u64::MAX);
        let mut choice = Choice { thinking: None, text: String::new(), calls: Vec::new(), finish: Finish::Stop };
        if question.thinks {
            let (thought, spent) = tokens::prefix(THOUGHT, budget);
            budget -= spent;
            answer.reasoning_tokens += spent;
            choice.thinking = Some(thought);
        }
        choice.calls = calls(seed, question);
        if choice.calls.is_empty() {
            let text = text(seed, length, question);
            answer.output_tokens += choice.say(&text, &question.stop, budget);
        } else {
            answer.output_tokens += choice.call(budget);
        }
        answer.choices.push(choice);
    }
    answer.output_tokens += answer.reasoning_tokens;
    answer
}

impl Choice {
    /// Says `text` up to a stop sequence or the end of `budget`; returns what it costs.
    fn say(&mut self, text: &str, stop: &[String], budget: u64) -> u64 {
        let first = stop
            .iter()
            .filter(|stop| !stop.is_empty())
            .filter_map(|stop| text.find(stop.as_str()).map(|at| (at, stop)))
            .min_by_key(|(at, _stop)| *at);
        let said = first.map_or(text, |(at, _stop)| &text[..at]);
        let (kept, spent) = tokens::prefix(said, budget);
        self.finish = match first {
            _ if kept.len() < said.len() => Finish::Length,
            Some((_at, stop)) => Finish::StopSequence(stop.clone()),
            None => Finish::Stop,
        };
        kept.clone_into(&mut self.text);
        spent
    }

    /// Keeps the calls that `budget` affords whole; returns what they cost.
    fn call(&mut self, budget: u64) -> u64 {
        let mut spent = 0;
        let wanted = self.calls.len();
        self.calls.retain(|call| {
            let cost = call.tokens();
            let kept = spent + cost <= budget;
            spent += if kept { cost } else { 0 };
            kept
        });
        self.finish = if self.calls.len() == wanted { Finish::ToolCalls } else { Finish::Length };
        spent
    }
}

impl Call {
    fn tokens(&self) -> u64 {
        tokens::count(&self.name) + tokens::count(&self.arguments.to_string())
    }
}

/// A stable 64-bit hash of `text`.
pub fn hash(seed: u64, text: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(text.as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

/// One of `all`, which are not empty, picked by `seed`.
fn pick<'a, T: ?Sized>(seed: u64, all: &[&'a T]) -> &'a T {
    let length = all.len() as u64;
    all[usize::try_from(seed % length).unwrap_or(0)]
}

fn calls(seed: u64, question: &Question) -> Vec<Call> {
    let asked = question.asked.to_lowercase();
    let named = |tool: &&Tool| {
        let name = tool.name.to_lowercase();
        !name.is_empty() && (asked.contains(&name) || asked.contains(&name.replace('_', " ")))
    };
    let tools: Vec<&Tool> = match &question.tool_choice {
        ToolChoice::Never => Vec::new(),
        ToolChoice::Named(name) => question.tools.iter().filter(|tool| tool.name == *name).collect(),
        ToolChoice::Auto => question.tools.iter().filter(named).collect(),
        ToolChoice::Required => {
            let all: Vec<&Tool> = question.tools.iter().filter(named).collect();
            if all.is_empty() { question.tools.iter().take(1).collect() } else { all }
        }
    };
    tools
        .into_iter()
        .take(question.calls_max)
        .map(|tool| {
            let id = hash(seed, &tool.name);
            let arguments = match example(id, &tool.schema, &question.asked, 0) {
                Value::Object(fields) => Value::Object(fields),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => json!({}),
            };
            Call { id, name: tool.name.clone(), arguments }
        })
        .collect()
}

/// A value that follows `schema`, made from the words of the question.
fn example(seed: u64, schema: &Value, asked: &str, depth: u32) -> Value {
    if let Some(first) = schema["enum"].as_array().and_then(|all| all.first()) {
        let said = schema["enum"].as_array().into_iter().flatten().find(|one| {
            one.as_str().is_some_and(|word| !word.is_empty() && asked.to_lowercase().contains(&word.to_lowercase()))
        });
        return said.unwrap_or(first).clone();
    }
    if let Some(value) = schema.get("const") {
        return value.clone();
    }
    let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str());
    let number = asked.split(|character: char| !character.is_ascii_digit()).find_map(|word| word.parse::<u32>().ok());
    match kind {
        Some("integer" | "number") => json!(number.unwrap_or(u32::try_from(seed % 100).unwrap_or(0))),
        Some("boolean") => json!(seed.is_multiple_of(2)),
        Some("string") => json!(last_name(asked)),
        Some("array") if depth < SCHEMA_DEPTH_MAX => json!([example(seed, &schema["items"], asked, depth + 1)]),
        Some("array") => json!([]),
        Some("null") => Value::Null,
        _object => {
            let mut fields = Map::new();
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                if depth < SCHEMA_DEPTH_MAX {
                    fields.insert(name.clone(), example(hash(seed, name), field, asked, depth + 1));
                }
            }
            Value::Object(fields)
        }
    }
}

/// The last capitalised word of a sentence, as people name places and persons; else its last word.
fn last_name(asked: &str) -> &str {
    let words = || asked.split(|character: char| !character.is_alphanumeric()).filter(|word| !word.is_empty());
    let capital = |word: &&str| word.starts_with(char::is_uppercase) && word.len() > 1;
    words().skip(1).filter(capital).last().or_else(|| words().next_back()).unwrap_or("unknown")
}

fn text(seed: u64, length: Option<u64>, question: &Question) -> String {
    if let Some(schema) = &question.schema {
        let mut value = example(seed, schema, &question.asked, 0);
        if value.as_object().is_some_and(Map::is_empty) {
            value = json!({ "answer": advice(seed, &question.asked) });
        }
        return value.to_string();
    }
    let asked = question.asked.trim();
    let lower = asked.to_ascii_lowercase();
    if let Some(at) = lower.find("repeat after me:") {
        return asked[at + "repeat after me:".len()..].trim_start().to_owned();
    }
    if let Some(most) = lower.strip_prefix("count to ").and_then(|rest| rest.trim_end_matches('.').parse::<u64>().ok())
    {
        return (1..=most.min(COUNT_MAX)).map(|number| number.to_string()).collect::<Vec<_>>().join(" ");
    }
    let mut sentence = advice(seed, asked);
    if question.images > 0 {
        sentence = format!("I have looked at what you sent ({} of them). {sentence}", question.images);
    }
    match length {
        None => sentence,
        Some(length) => repeat(&sentence, length),
    }
}

/// `sentence` again and again, to exactly `length` tokens.
fn repeat(sentence: &str, length: u64) -> String {
    let mut pieces = Vec::new();
    let spaced = format!(" {sentence}");
    while pieces.len() as u64 <= length {
        pieces.extend(tokens::pieces(&spaced));
    }
    pieces.truncate(usize::try_from(length).unwrap_or(0));
    pieces.concat()
}

fn advice(seed: u64, asked: &str) -> String {
    let lower = asked.to_lowercase();
    let hits = |topic: &&Topic| topic.words.iter().filter(|word| lower.contains(**word)).count();
    let best = TOPICS.iter().max_by_key(hits).filter(|topic| hits(topic) > 0);
    let body = match best {
        Some(topic) => pick(seed >> 8, topic.answers),
        None => pick(seed >> 8, GENERAL),
    };
    [pick(seed, OPENINGS), body, pick(seed >> 16, CLOSINGS)].concat()
}

/// What people ask their bank about, told by the words they use.
struct Topic {
    words: &'static [&'static str],
    answers: &'static [&'static str],
}

const OPENINGS: &[&str] =
    &["Thank you for asking. ", "Happy to help. ", "Let me explain. ", "Good question. ", "I can help with that. "];

const CLOSINGS: &[&str] = &[
    "",
    " Is there anything else I can do for you?",
    " If that does not help, write to us in the app at any time.",
    " You will find the details in the app under Help.",
];

const GENERAL: &[&str] = &[
    "Please tell me a little more, for example the date and the amount, so that I can look it up for you.",
    "Our support team is in the app around the clock; open Help and choose the account it is about.",
];

const TOPICS: &[Topic] = &[
    Topic {
        words: &["lost", "stolen", "freeze", "block", "missing card"],
        answers: &[
            "Freeze the card in the app under Cards at once; nobody can pay with it from that moment. A new one arrives within five working days.",
            "Please freeze your card in the app right away and order a replacement there. Payments made after the freeze are refused.",
        ],
    },
    Topic {
        words: &["arrive", "delivery", "new card", "order", "deliver"],
        answers: &[
            "A new card leaves us within one working day and usually arrives within five. You can pay with the virtual card until then.",
            "Cards take three to five working days by post. The app shows where yours is under Cards.",
        ],
    },
    Topic {
        words: &["pin", "passcode", "password", "unlock"],
        answers: &[
            "You can see your PIN in the app under Cards after you confirm it is you. A new PIN can be chosen at any cash machine.",
            "After three wrong tries the PIN is blocked for a day. Unblock it in the app under Cards, Security.",
        ],
    },
    Topic {
        words: &["transfer", "wire", "send money", "iban", "recipient", "beneficiary"],
        answers: &[
            "A transfer inside the euro area arrives within ten seconds if the other bank takes instant payments, else on the next working day.",
            "Transfers sent before 16:00 leave the same day. Please check the recipient's IBAN in the app; a wrong one comes back within three days.",
        ],
    },
    Topic {
        words: &["fee", "charge", "cost", "charged", "price"],
        answers: &[
            "The account has no monthly fee. Cash abroad costs 1.5 %, at least $2.00, and a replacement card $8.00.",
            "That fee is for the currency exchange: 0.5 % on weekdays and 1 % at weekends. It is shown before you confirm.",
        ],
    },
    Topic {
        words: &["exchange", "currency", "rate", "abroad", "foreign", "euro", "dollar"],
        answers: &[
            "We use the rate of the moment you pay and add 0.5 %. The app shows rate and fee before you confirm.",
            "You can hold and exchange twenty-eight currencies in the app. At weekends the rate is fixed on Friday evening.",
        ],
    },
    Topic {
        words: &["refund", "dispute", "chargeback", "money back", "not recognise", "recognize", "fraud"],
        answers: &[
            "Open the payment in the app and choose Dispute. We ask the merchant for proof and answer within fifteen working days.",
            "A refund takes as long as the merchant needs, mostly five to ten working days. Nothing else is needed from you.",
        ],
    },
    Topic {
        words: &["top up", "top-up", "deposit", "add money", "cheque", "check"],
        answers: &[
            "You can top up by card at once or by transfer within a working day. Cheques are not accepted.",
            "Choose Add money in the app. The first top-up by card is limited to $500 and is free of charge.",
        ],
    },
    Topic {
        words: &["atm", "cash", "withdraw"],
        answers: &[
            "Five withdrawals a month are free of charge, up to $300 a day. Some machines add a fee of their own and must show it first.",
            "The machine may have refused because of the daily limit of $300. You can raise it in the app under Cards, Limits.",
        ],
    },
    Topic {
        words: &["limit", "maximum", "how much can"],
        answers: &[
            "Card payments are limited to $3,000 a day and transfers to $10,000. Both can be changed in the app under Limits.",
            "You can set your own limits in the app. A lower one counts at once, a higher one after you confirm it is you.",
        ],
    },
    Topic {
        words: &["identity", "verify", "passport", "document", "selfie", "proof"],
        answers: &[
            "Please photograph your passport or identity card in the app in good light. The check takes a few minutes.",
            "We need a valid document and a short video. If it is refused, the app says why, and you may try again.",
        ],
    },
    Topic {
        words: &["declined", "refused", "not working", "rejected", "fail"],
        answers: &[
            "A payment is mostly declined because of a limit, a frozen card or a wrong code. The app shows the reason next to the payment.",
            "Please check under Cards that online payments are allowed, and that the balance covers the amount in that currency.",
        ],
    },
    Topic {
        words: &["pending", "balance", "statement", "booked"],
        answers: &[
            "A pending payment is reserved and not yet booked. It becomes final within seven days or is released by itself.",
            "Your balance already has pending payments taken off. Statements come on the first of the month under Documents.",
        ],
    },
    Topic {
        words: &["close", "terminate", "delete", "cancel"],
        answers: &[
            "You can close the account in the app under Profile once its balance is zero. We keep the statements for you for ten years.",
            "A direct debit can be cancelled up to eight weeks after it was booked; open it in the app and choose Return.",
        ],
    },
    Topic {
        words: &["phone", "address", "change my", "email", "name"],
        answers: &[
            "You can change address, phone and email in the app under Profile; we ask you to confirm it is you.",
            "A new name needs a document that shows it. Upload it under Profile and we change it within two working days.",
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::super::question::{Dialect, Refusal};
    use super::*;

    fn ask(body: &Value) -> Answer {
        let question = Question::read(Dialect::OpenAi, body.to_string().as_bytes()).expect("a question");
        answer(7, None, &question)
    }

    fn user(text: &str) -> Value {
        json!({ "model": "m", "messages": [{ "role": "user", "content": text }] })
    }

    fn merged(mut body: Value, more: Value) -> Value {
        let (Value::Object(fields), Value::Object(more)) = (&mut body, more) else { panic!("objects") };
        fields.extend(more);
        body
    }

    #[test]
    fn the_same_question_gets_the_same_answer() {
        let one = ask(&user("How do I freeze my stolen card?"));
        let two = ask(&user("How do I freeze my stolen card?"));

        assert_eq!(one.choices[0].text, two.choices[0].text);
        assert!(one.choices[0].text.to_lowercase().contains("freeze"), "{}", one.choices[0].text);
        assert_eq!(one.output_tokens, tokens::count(&one.choices[0].text));
    }

    #[test]
    fn max_tokens_ends_an_answer_with_length() {
        let answer = ask(&merged(user("count to 50"), json!({ "max_tokens": 3 })));

        assert_eq!(answer.choices[0].text, "1 2 3");
        assert_eq!((answer.output_tokens, &answer.choices[0].finish), (3, &Finish::Length));
    }

    #[test]
    fn a_stop_sequence_is_not_said() {
        let answer = ask(&merged(user("count to 9"), json!({ "stop": ["7", " 4"] })));

        assert_eq!(answer.choices[0].text, "1 2 3");
        assert_eq!(answer.choices[0].finish, Finish::StopSequence(" 4".to_owned()));
    }

    #[test]
    fn named_tools_are_called_and_results_are_answered_in_words() {
        let schema = json!({ "type": "object", "properties": {
            "city": { "type": "string" }, "unit": { "enum": ["celsius", "fahrenheit"] }, "days": { "type": "integer" } } });
        let tool = |name: &str| json!({ "type": "function", "function": { "name": name, "parameters": schema } });
        let tools = json!({ "tools": [tool("get_weather"), tool("get_time"), tool("get_rate")] });
        let asked = user("get weather and get_time in Berlin for 3 days in fahrenheit");

        let answer = ask(&merged(asked.clone(), tools.clone()));
        let names: Vec<_> = answer.choices[0].calls.iter().map(|call| call.name.as_str()).collect();
        assert_eq!(names, ["get_weather", "get_time"]);
        assert_eq!(answer.choices[0].calls[0].arguments, json!({ "city": "Berlin", "unit": "fahrenheit", "days": 3 }));
        assert_eq!(answer.choices[0].finish, Finish::ToolCalls);

        let one = ask(&merged(merged(asked.clone(), tools.clone()), json!({ "parallel_tool_calls": false })));
        assert_eq!(one.choices[0].calls.len(), 1);

        let required = ask(&merged(merged(user("hello"), tools.clone()), json!({ "tool_choice": "required" })));
        assert_eq!(required.choices[0].calls[0].name, "get_weather");

        let mut after = merged(asked, tools);
        after["messages"].as_array_mut().unwrap().push(json!({ "role": "tool", "tool_call_id": "x", "content": "12" }));
        assert!(ask(&after).choices[0].calls.is_empty());
    }

    #[test]
    fn tools_of_anthropic_are_read_too() {
        let body = json!({ "model": "m", "max_tokens": 99, "tool_choice": { "type": "tool", "name": "b" },
            "tools": [{ "name": "a", "input_schema": {} }, { "name": "b", "input_schema": {} }],
            "messages": [{ "role": "user", "content": [{ "type": "text", "text": "go" }] }] });
        let question = Question::read(Dialect::Anthropic, body.to_string().as_bytes()).unwrap();

        assert_eq!(answer(0, None, &question).choices[0].calls[0].name, "b");
    }

    #[test]
    fn every_choice_is_its_own_and_a_length_can_be_fixed() {
        let body = merged(user("anything"), json!({ "n": 3, "reasoning_effort": "low" }));
        let question = Question::read(Dialect::OpenAi, body.to_string().as_bytes()).unwrap();
        let answer = answer(1, Some(100), &question);

        assert_eq!(answer.choices.len(), 3);
        assert_eq!(answer.output_tokens, 300 + answer.reasoning_tokens);
        assert!(answer.reasoning_tokens > 0);
    }

    #[test]
    fn a_schema_is_followed() {
        let format = json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": {
            "type": "object", "properties": { "list": { "type": "array", "items": { "type": "number" } } } } } } });

        assert_eq!(ask(&merged(user("give me 42"), format)).choices[0].text, r#"{"list":[42]}"#);
    }

    #[test]
    fn what_the_real_apis_refuse_is_refused() {
        let refused = |dialect, body: &str| Question::read(dialect, body.as_bytes()).expect_err("refused");

        assert_eq!(refused(Dialect::OpenAi, "{").param, None);
        assert_eq!(refused(Dialect::OpenAi, r#"{"messages":[{"role":"user","content":"x"}]}"#).param, Some("model"));
        assert_eq!(refused(Dialect::OpenAi, r#"{"model":"m","messages":[]}"#).param, Some("messages"));
        let no_max: Refusal = refused(Dialect::Anthropic, &user("x").to_string());
        assert_eq!(no_max.param, Some("max_tokens"));
    }
}
