//! How the simulator counts. Its own way on purpose: what tests compare the gateway's figures with must not share its code.
//!
//! One token is up to four characters of one word together with the blanks before it, so a word of nine letters is three
//! tokens. Blanks at the very end belong to the last token. The pieces of a text, joined, are the text.

/// Characters of a word in one token.
const CHARACTERS_MAX: usize = 4;

/// What every message costs besides its text.
pub const PER_MESSAGE: u64 = 3;

/// What an image costs, whatever its size.
pub const PER_IMAGE: u64 = 85;

/// How many tokens `text` is.
pub fn count(text: &str) -> u64 {
    pieces(text).fold(0, |sum, _piece| sum + 1)
}

/// The tokens of `text`, in order.
pub fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (piece, after) = rest.split_at(first_piece(rest));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The start of `text` that is at most `tokens_max` tokens, and how many it is.
pub fn prefix(text: &str, tokens_max: u64) -> (&str, u64) {
    let mut end = 0;
    let mut tokens = 0;
    for piece in pieces(text) {
        if tokens == tokens_max {
            break;
        }
        end += piece.len();
        tokens += 1;
    }
    (&text[..end], tokens)
}

/// Where the first token of `text` ends.
fn first_piece(text: &str) -> usize {
    let mut in_word = 0;
    for (at, character) in text.char_indices() {
        if character.is_whitespace() {
            if in_word > 0 {
                return if text[at..].trim_start().is_empty() { text.len() } else { at };
            }
        } else if in_word == CHARACTERS_MAX {
            return at;
        } else {
            in_word += 1;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_joined_are_the_text() {
        for text in ["", " ", "one", "a  bank transfer\n", "  Überweisung nach Zürich ", "👍🏽👍🏽👍🏽 ok", "a\u{a0}b"]
        {
            assert_eq!(pieces(text).collect::<String>(), text);
        }
    }

    #[test]
    fn a_token_is_four_characters_of_a_word() {
        assert_eq!(pieces("My transfer is late. ").collect::<Vec<_>>(), ["My", " tran", "sfer", " is", " late", ". "]);
        assert_eq!(count("Überweisung"), 3);
        assert_eq!(count(""), 0);
    }

    #[test]
    fn a_prefix_ends_between_tokens() {
        assert_eq!(prefix("My transfer is late", 2), ("My tran", 2));
        assert_eq!(prefix("short", 9), ("short", 2));
        assert_eq!(prefix("short", 0), ("", 0));
    }
}
