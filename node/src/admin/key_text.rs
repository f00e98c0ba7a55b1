//! What the text of a key looks like: `lea-<12 public>-<32 secret>`.

/// Letters and digits only: a double click selects a whole part, and no shell or YAML needs quotes.
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// Tells keys apart, and may be shown.
const PUBLIC_LENGTH: usize = 12;

/// 62 possibilities each: 190 bits.
const SECRET_LENGTH: usize = 32;

/// `lea-<12 public>-<32 secret>`.
pub fn new_key<E>(random: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<String, E> {
    let public = letters(PUBLIC_LENGTH, random)?;
    let secret = letters(SECRET_LENGTH, random)?;
    Ok(format!("lea-{public}-{secret}"))
}

fn letters<E>(length: usize, random: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<String, E> {
    let mut text = String::with_capacity(length);
    let mut bytes = [0_u8; 64];
    while text.len() < length {
        random(&mut bytes)?;
        // Six bits each. The two values beyond the alphabet are passed over, so that every letter is equally likely.
        let fitting = bytes.iter().filter_map(|byte| ALPHABET.get(usize::from(byte & 63)));
        text.extend(fitting.take(length - text.len()).map(|letter| char::from(*letter)));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn counting() -> impl FnMut(&mut [u8]) -> Result<(), Infallible> {
        let mut next = 0_u8;
        move |bytes| {
            for byte in bytes {
                *byte = next;
                next = next.wrapping_add(1);
            }
            Ok(())
        }
    }

    #[test]
    fn a_key_has_its_two_parts_in_the_alphabet() {
        let key = new_key(&mut counting()).unwrap();

        let parts: Vec<_> = key.split('-').collect();
        assert_eq!((parts[0], parts[1].len(), parts[2].len()), ("lea", 12, 32));
        assert!(parts[1..].concat().bytes().all(|byte| byte.is_ascii_alphanumeric()), "{key}");
    }

    #[test]
    fn every_letter_is_equally_likely() {
        let text = letters(62 * 4, &mut counting()).unwrap();

        for letter in ALPHABET {
            assert_eq!(text.bytes().filter(|byte| byte == letter).count(), 4, "{}", char::from(*letter));
        }
    }

    #[test]
    fn two_keys_differ() {
        assert_ne!(new_key(&mut getrandom::fill).unwrap(), new_key(&mut getrandom::fill).unwrap());
    }
}
