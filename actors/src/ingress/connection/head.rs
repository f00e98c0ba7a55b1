//! Looks at the raw bytes of an HTTP/1.1 head for what the parser after it resolves silently. Pure.
//!
//! A request with two framings (`content-length` twice, or beside `transfer-encoding`) is how requests are smuggled
//! past a proxy. hyper lets `transfer-encoding` win and closes the connection afterwards, so nothing can be smuggled
//! past *us*; but whoever sends such a thing is refused, not served.

/// Names longer than this are none of those looked for.
const NAME_MAX: usize = "transfer-encoding".len();

/// Fed with the bytes as they arrive, in pieces of any size.
#[derive(Clone, Debug, Default)]
pub(super) struct Scan {
    place: Place,
    name: Vec<u8>,
    lengths: u32,
    encodings: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Empty lines before the request line are allowed and skipped.
    #[default]
    Start,
    RequestLine,
    Name,
    Value,
    /// The head has ended; what follows is body.
    Done,
}

impl Scan {
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.place = match (self.place, byte) {
                (Place::Done, _) => return,
                (Place::Start, b'\r' | b'\n') => Place::Start,
                (Place::Start, _) => Place::RequestLine,
                (Place::RequestLine | Place::Value, b'\n') => self.line_start(),
                (place @ (Place::RequestLine | Place::Value), _) => place,
                (Place::Name, b'\n') if self.name.is_empty() => Place::Done,
                (Place::Name, b'\n') => self.line_start(),
                (Place::Name, b'\r') => Place::Name,
                (Place::Name, b':') => self.name_end(),
                (Place::Name, letter) => self.letter(letter),
            };
        }
    }

    /// Two framings were said.
    pub fn ambiguous(&self) -> bool {
        self.lengths + self.encodings > 1
    }

    fn line_start(&mut self) -> Place {
        self.name.clear();
        Place::Name
    }

    fn name_end(&mut self) -> Place {
        match self.name.as_slice() {
            b"content-length" => self.lengths += 1,
            b"transfer-encoding" => self.encodings += 1,
            _ => {}
        }
        Place::Value
    }

    fn letter(&mut self, letter: u8) -> Place {
        if self.name.len() <= NAME_MAX {
            self.name.push(letter.to_ascii_lowercase());
        }
        Place::Name
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ambiguous(head: &str) -> bool {
        let mut scan = Scan::default();
        scan.feed(head.as_bytes());
        scan.ambiguous()
    }

    #[test]
    fn two_framings_are_seen_in_any_order_and_case() {
        assert!(ambiguous("POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"));
        assert!(ambiguous("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nCONTENT-LENGTH: 5\r\n\r\n"));
        assert!(ambiguous("POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n"));
        assert!(ambiguous("\r\nPOST / HTTP/1.1\ncontent-length: 5\ncontent-length: 6\n\n"));
    }

    #[test]
    fn one_framing_is_fine_and_the_body_is_not_read() {
        assert!(!ambiguous("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n"));
        assert!(!ambiguous("POST / HTTP/1.1\r\nx: content-length: 1\r\ncontent-length: 5\r\n\r\n"));
        assert!(!ambiguous("POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\ncontent-length: 9\r\n"));
        assert!(!ambiguous("POST / HTTP/1.1\r\nx-content-length: 5\r\ncontent-length: 5\r\n\r\n"));
    }

    proptest! {
        /// How the bytes are cut into reads changes nothing.
        #[test]
        fn any_chunking_sees_the_same(cut in 0usize..80, second in any::<bool>()) {
            let extra = if second { "transfer-encoding: chunked\r\n" } else { "" };
            let head = format!("POST / HTTP/1.1\r\ncontent-length: 5\r\n{extra}\r\n");
            let (before, after) = head.as_bytes().split_at(cut.min(head.len()));

            let mut scan = Scan::default();
            scan.feed(before);
            scan.feed(after);

            prop_assert_eq!(scan.ambiguous(), second);
        }
    }
}
