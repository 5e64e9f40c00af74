//! Short names that follow from content, so that the same content is never created twice.

/// Characters without vowels and without those that are easily mistaken for others.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// `length` characters, valid anywhere in an object's name, that depend on `content` only.
pub fn short(content: &str, length: usize) -> String {
    // FNV-1a: stable over releases, which the standard library's hashers do not promise.
    let mut rest = content
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    // The low bits of neighbouring contents differ least.
    rest ^= rest >> 32;
    let base = ALPHABET.len() as u64;
    let mut text = String::with_capacity(length);
    for _ in 0..length {
        text.push(char::from(ALPHABET[(rest % base) as usize]));
        rest /= base;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_content() {
        assert_eq!(short("a", 10), short("a", 10));
        assert_ne!(short("a", 10), short("b", 10));
        assert_eq!(short("", 5).len(), 5);
    }
}
